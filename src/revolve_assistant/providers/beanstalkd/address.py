"""What a beanstalkd:// URL says: servers, namespace and options, the same for tasks and messages."""

from __future__ import annotations

from typing import NamedTuple

from ...errors import UsageError
from ...protocols.beanstalkd import PORT
from ...protocols.stream import Address
from ..url import Url
from .names import Names

MAX_BODY = 64 << 20
"""Bytes of the longest answer that is read; a longer one is refused before anything is allocated for it."""
LARGEST = 32 << 20
"""Bytes of the largest body of a task."""
LARGEST_FRAME = 1 << 20
"""Bytes of the largest frame."""
TIMEOUT = 5.0  # seconds
LEASE = 30.0  # seconds
KEEP_BURIED = 7 * 86400.0  # seconds
MOST_BURIED = 10_000
NAMESPACE = "assistant"
KIND = "beanstalkd"


class Place(NamedTuple):
    """Where the tasks or messages are. `lease`: whole seconds that a task may be held without a touch."""

    servers: tuple[Address, ...]
    names: Names
    timeout: float
    text: str  # for errors
    lease: int
    keep_buried: float
    most_buried: int

    @classmethod
    def read(cls, url: Url, options: dict[str, object]) -> Place:
        """`beanstalkd://host:port,host2/namespace?timeout=5&lease=30&keep_buried=…&most_buried=…`. Raises
        `UsageError`."""
        url = url.with_options(options).only("timeout", "lease", "keep_buried", "most_buried")
        if url.user is not None or url.password is not None:
            raise UsageError(
                "beanstalkd:// takes no user or password: beanstalkd knows none, and lets in whoever reaches it"
            )
        lease = url.number("lease", LEASE, least=0.01, most=86400.0)
        return cls(
            tuple(dict.fromkeys(url.addresses(PORT))),
            Names(url.path or NAMESPACE),
            url.number("timeout", TIMEOUT, least=0.05, most=3600.0),
            str(url),
            max(1, -int(-lease // 1)),
            url.number("keep_buried", KEEP_BURIED, least=0.0),
            url.whole("most_buried", MOST_BURIED),
        )
