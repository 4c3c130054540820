"""Token, project and host, found as Iron.io's own clients find them.

    ~/.iron.json ─▶ IRON_* ─▶ IRON_MQ_* or IRON_WORKER_* ─▶ ./iron.json ─▶ a named file ─▶ what is given

The later wins; so a file in the current folder wins over the environment, which surprises many. In a file an object
named `iron_mq` or `iron_worker` wins over what stands beside it. A token is shown nowhere: see `Token`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from ...errors import UsageError

log = logging.getLogger("revolve_assistant")

FIELDS = ("token", "project_id", "host", "protocol", "port", "api_version", "path_prefix", "cloud", "keystone")
HOSTS = {"iron_mq": "mq-aws-us-east-1-1.iron.io", "iron_worker": "worker-aws-us-east-1.iron.io"}
VERSIONS = {"iron_mq": 3, "iron_worker": 2}
NAMES = {"iron_mq": "IronMQ", "iron_worker": "IronWorker"}
MOST = 1 << 20  # bytes of a file


class Token:
    """A token on its way to a header. Says nothing of itself."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The token: for the header, never for printing."""
        return self._text

    def hide(self, text: str) -> str:
        """The text, without the token, should somebody have echoed it."""
        return text.replace(self._text, "***")

    def __repr__(self) -> str:
        return "<token>"

    def __reduce__(self) -> NoReturn:
        raise UsageError("a token stays in its process")


class Settings(NamedTuple):
    """Where one product of a project is, and the token to enter with."""

    product: str  # iron_mq, iron_worker
    token: Token
    project_id: str
    host: str
    protocol: str = "https"
    port: int = 443
    path_prefix: str = ""

    @property
    def name(self) -> str:
        """The product, for people."""
        return NAMES[self.product]

    @property
    def origin(self) -> str:
        """`https://host`, with the port where that is not the usual one."""
        tail = "" if (self.protocol, self.port) in (("https", 443), ("http", 80)) else f":{self.port}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol}://{host}{tail}"

    @property
    def base(self) -> str:
        """What every request's address begins with, up to the slash after the project."""
        return f"{self.origin}{self.path_prefix}/{VERSIONS[self.product]}/projects/{self.project_id}/"


def read(
    product: str,
    *,
    file: str | None = None,
    environment: Mapping[str, str] | None = None,
    folder: str | None = None,
    **given: Any,
) -> Settings:
    """The settings of `iron_mq` or `iron_worker`; `given` are fields that win over all others, None: not given.

    Reads two or three small files and the environment (None: this process's; `folder`: the current one). Raises
    `UsageError`, which names what is missing or wrong and where it would be looked for, and shows no token.
    """
    environment = os.environ if environment is None else environment
    found: dict[str, Any] = {"host": HOSTS[product], "protocol": "https", "port": 443}
    home = os.path.join(environment.get("HOME") or os.path.expanduser("~"), ".iron.json")
    try:
        _from_file(found, home, product)
    except UsageError as error:  # the official clients pass over it too, in silence
        log.warning("%s; it is passed over", error)
    for prefix in ("IRON", product.upper()):
        for field in FIELDS:
            value = environment.get(f"{prefix}_{field.upper()}")
            if value is not None:
                found[field] = value
    _from_file(found, os.path.join(folder or "", "iron.json"), product)
    if file is not None:
        if not os.path.exists(file):
            raise UsageError(f"there is no file {file} with settings of Iron's")
        _from_file(found, file, product)
    found.update({name: value for name, value in given.items() if value is not None})
    if given.get("host") is not None and given.get("cloud") is None:
        found.pop("cloud", None)  # of a file: somebody said another host
    return _settings(product, found)


def _from_file(found: dict[str, Any], path: str, product: str) -> None:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MOST)
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {type(error).__name__}") from None
    try:
        raw = json.loads(text)
    except ValueError:
        raw = None
    text = ""
    own = raw.get(product) if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(own or {}, dict):
        raise UsageError(f'{path} is no JSON such as {{"project_id": "…", "token": "…"}}')
    for part in (raw, own or {}):
        found.update({field: part[field] for field in FIELDS if field in part})


def _settings(product: str, found: dict[str, Any]) -> Settings:
    name, prefix = NAMES[product], product.upper()
    where = f"set IRON_{{0}} or {prefix}_{{0}}, or put it into iron.json or ~/.iron.json"
    token = found.pop("token", None)
    if token is None and found.get("keystone") is not None:
        raise UsageError(f"{name}: tokens by keystone are not supported: give a token")
    for field, value in (("project_id", found.get("project_id")), ("token", token)):
        if value is None or value == "":
            raise UsageError(f"{name} has no {field}: {where.format(field.upper())}")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"the token for {name} holds what no token does (a blank, a line break?)")
    project = found["project_id"]
    if not isinstance(project, str) or not project.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"{name}: project_id={project!r:.100} is no id of a project")
    host, protocol, port = found.get("host"), found.get("protocol"), found.get("port")
    path = found.get("path_prefix") or ""
    if found.get("cloud") is not None:
        host, protocol, port, path = _cloud(name, found["cloud"], port)
    if protocol not in ("https", "http"):
        raise UsageError(f"{name}: protocol={protocol!r:.100} must be https or http")
    if not isinstance(host, str) or not host or any(each in host for each in "/@?# "):
        raise UsageError(f"{name}: host={host!r:.100} is no name of a host")
    if not str(port).isascii() or not str(port).isdigit() or not 0 < int(str(port)) < 65536:
        raise UsageError(f"{name}: port={port!r:.100} is no number from 1 to 65535")
    path = "/" + str(path).strip("/") if str(path).strip("/") else ""
    return Settings(product, Token(token), project, host, protocol, int(str(port)), path)


def _cloud(name: str, cloud: Any, port: Any) -> tuple[str, str, Any, str]:
    """One address for host, protocol, port and prefix."""
    try:
        parts = urlsplit(str(cloud))
        return parts.hostname or "", parts.scheme, parts.port or port, parts.path
    except ValueError:
        raise UsageError(f"{name}: cloud={cloud!r:.100} is no address such as https://host:port/prefix") from None
