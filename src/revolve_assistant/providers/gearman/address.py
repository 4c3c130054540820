"""What a gearman:// URL says: servers, namespace and options, the same for tasks and messages."""

from __future__ import annotations

from typing import NamedTuple

from ...errors import UsageError
from ...protocols.stream import PORT, Address
from ..url import Url
from .names import Names

MAX_BODY = 64 << 20
"""Bytes of the largest packet that is read; a longer one is refused before anything is allocated for it."""
LARGEST = 32 << 20
"""Bytes of the largest body or frame: as base64 it still is one packet."""
TIMEOUT = 5.0  # seconds
NAMESPACE = "assistant"


class Place(NamedTuple):
    """Where the tasks or messages are."""

    servers: tuple[Address, ...]
    names: Names
    timeout: float
    base64: bool
    text: str  # for errors
    exceptions: bool = False  # exposed functions answer with WORK_EXCEPTION: see `exposing`

    @classmethod
    def read(cls, url: Url, options: dict[str, object]) -> Place:
        """`gearman://host:port,host2:port2/namespace?timeout=5&encode=base64&exceptions=yes`. Raises `UsageError`."""
        url = url.with_options(options).only("timeout", "encode", "exceptions")
        if url.user is not None or url.password is not None:
            raise UsageError(
                "gearman:// takes no user or password: gearmand knows none, and lets in whoever reaches it"
            )
        servers = tuple(dict.fromkeys(url.addresses(PORT)))
        return cls(
            servers,
            Names(url.path or NAMESPACE),
            url.number("timeout", TIMEOUT, least=0.05, most=3600.0),
            url.text("encode", "none", choices=("none", "base64")) == "base64",
            str(url),
            url.flag("exceptions"),
        )
