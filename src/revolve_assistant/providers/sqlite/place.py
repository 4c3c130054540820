"""Where a database is, and how it is to be used: what an address and its options say."""

from __future__ import annotations

import os
from urllib.parse import quote

import msgspec

from ...errors import UsageError
from ..url import Url

OPTIONS = ("namespace", "timeout", "synchronous", "network")
OF_QUEUES = ("lease", "keep_buried", "most_buried")
LEVELS = ("off", "normal", "full", "extra")
TIMEOUT = 5.0  # seconds


class Place(msgspec.Struct, frozen=True):
    """`path` is absolute. `timeout`: seconds to wait for another program's lock. `network`: may it be on a share?"""

    path: str
    namespace: str = "assistant"
    timeout: float = TIMEOUT
    synchronous: str = "normal"
    network: bool | None = None

    @classmethod
    def read(cls, url: Url, options: dict[str, object]) -> Place:
        """`sqlite:///relative` or `sqlite:////absolute`, with options. Raises `UsageError`."""
        url = url.with_options(options).only(*OPTIONS, *OF_QUEUES)
        if url.hosts or url.user is not None:
            raise UsageError(
                f"{url} names a host: a file of this host has three slashes, sqlite:///{url.host}, or four"
            )
        if not url.path or url.path.endswith("/"):
            raise UsageError(f"{url} names no file: sqlite:///relative.db or sqlite:////absolute.db")
        if ":memory:" in url.path:
            raise UsageError("a database in memory cannot be shared: use memory://")
        if "\0" in url.path:
            raise UsageError(f"{url}: the name of a file holds no NUL")
        network = url.text("network", "auto", choices=("auto", "no"))
        return cls(
            os.path.abspath(url.path),
            url.text("namespace", "assistant") or "assistant",
            url.number("timeout", TIMEOUT, least=0.01, most=3600.0),
            url.text("synchronous", "normal", choices=LEVELS),
            None if network == "auto" else False,
        )

    @property
    def text(self) -> str:
        """For people."""
        return "sqlite:///" + quote(self.path, safe="/:,+=~")
