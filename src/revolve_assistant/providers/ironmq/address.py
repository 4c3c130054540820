"""What an ironmq:// address says: project, host, namespace and options, the same for tasks and messages."""

from __future__ import annotations

from typing import NamedTuple

from ...errors import UsageError
from ...protocols.iron import Settings, read
from ...protocols.iron.caller import PATIENCE, TIMEOUT, Caller
from ...protocols.iron.limits import PLANS
from ..url import Url
from .names import Names

NAMESPACE = "assistant"
OPTIONS = ("project_id", "token", "protocol", "path_prefix", "cloud", "config", "limit", "timeout", "patience")
OF_QUEUES = ("lease",)
OF_MESSENGERS = ("reserve",)


class Place(NamedTuple):
    """Where the tasks or messages are. `limit`: bytes of a request, as the plan has it."""

    settings: Settings
    names: Names
    limit: int
    timeout: float
    patience: float
    text: str  # for errors

    @classmethod
    def read(cls, url: Url, options: dict[str, object]) -> Place:
        """`ironmq://[project[:token]@][host[:port]]/namespace?protocol=https&limit=65536&timeout=10&patience=20`.

        What is not said comes from variables and files, as the official clients have it. Raises `UsageError`.
        """
        url = url.with_options(options).only(*OPTIONS, *OF_QUEUES, *OF_MESSENGERS)
        return cls(
            settings_of(url, "iron_mq"),
            Names(url.path or NAMESPACE),
            url.whole("limit", PLANS[0], least=1 << 10, most=PLANS[1]),
            url.number("timeout", TIMEOUT, least=0.05, most=3600.0),
            url.number("patience", PATIENCE, least=0.0, most=3600.0),
            str(url),
        )

    def caller(self) -> Caller:
        """A way there, not connected."""
        return Caller(self.settings, timeout=self.timeout, patience=self.patience)


def settings_of(url: Url, product: str) -> Settings:
    """The settings of a product, where the address has the last word. Raises `UsageError`."""
    if len(url.hosts) > 1:
        raise UsageError(f"{url} names several hosts: a project of Iron's is at one")
    host, port = url.hosts[0] if url.hosts else (None, None)
    return read(
        product,
        file=url.text("config"),
        project_id=url.user or url.text("project_id"),
        token=url.password or url.text("token"),
        host=host,
        port=port,
        protocol=url.text("protocol", choices=("https", "http")),
        path_prefix=url.text("path_prefix"),
        cloud=url.text("cloud"),
    )
