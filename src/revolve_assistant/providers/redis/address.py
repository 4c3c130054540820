"""What a Redis URL says: where the server is, who asks, and under which names; the same for tasks and messages.

redis://[user:password@]host[:port]/db?option=value       rediss://…                  the same over TLS
redis+unix:///path/to/socket?db=0                         redis+sentinel://host[:port][,host2…]/service/db
"""

from __future__ import annotations

from typing import NamedTuple

from ...errors import UsageError
from ..url import Url

PORT = 6379
SENTINEL_PORT = 26379
TIMEOUT = 5.0  # seconds
NAMESPACE = "assistant"
OPTIONS = ("namespace", "timeout", "db", "lease", "keep_buried", "most_buried")  # the last three are for queues
_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_SENTINEL = ("sentinel_user", "sentinel_password", "ssl")


class Tls(NamedTuple):
    """How a server is verified, and how we show who we are. There is no way to leave the verification out."""

    ca_certs: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    check_hostname: bool = True


class Place(NamedTuple):
    """Where tasks or messages are. Its `repr` holds no password."""

    hosts: tuple[tuple[str, int], ...] = (("127.0.0.1", PORT),)  # of the sentinels, if there is a `service`
    socket: str = ""  # path of a Unix socket
    service: str = ""  # what the sentinels call it
    db: int = 0
    user: str | None = None
    password: str | None = None
    sentinel_user: str | None = None
    sentinel_password: str | None = None
    tls: Tls | None = None
    namespace: str = NAMESPACE
    timeout: float = TIMEOUT
    text: str = "redis://127.0.0.1"  # for people: without a password

    @classmethod
    def read(cls, url: Url, options: dict[str, object] | None = None) -> Place:
        """What the URL says, with `options` laid over it. What is for queues alone is read by those.

        Raises `UsageError`.
        """
        url = url.with_options(options or {})
        encrypted = url.scheme == "rediss"
        extra: tuple[str, ...] = _TLS if encrypted else ()
        hosts, socket, service, path = tuple(url.addresses(PORT)), "", "", url.path
        if url.scheme == "redis+sentinel":
            extra = _SENTINEL + _TLS
            url.only(*OPTIONS, *extra)
            hosts, encrypted = tuple(url.addresses(SENTINEL_PORT)), url.flag("ssl")
            service, _, path = path.partition("/")
            if not service:
                raise UsageError(f"{url} names no service: write redis+sentinel://host:{SENTINEL_PORT}/service/0")
        elif url.scheme == "redis+unix":
            hosts, socket, path = (), url.path, ""
            if url.hosts or len(socket) < 2:
                raise UsageError(f"{url} must name a socket's absolute path, as in redis+unix:///run/redis.sock?db=0")
        url.only(*OPTIONS, *extra)
        if len(hosts) > 1 and not service:
            raise UsageError(
                f"{url.scheme}:// takes one server; of several with fail-over name the sentinels: "
                f"redis+sentinel://host:{SENTINEL_PORT},host2:{SENTINEL_PORT}/service/0"
            )
        return cls(
            hosts,
            socket,
            service,
            _db(url, path),
            url.user,
            url.password,
            url.text("sentinel_user"),
            url.text("sentinel_password"),
            _tls(url) if encrypted else None,
            checked(url.text("namespace") or NAMESPACE),
            url.number("timeout", TIMEOUT, least=0.05, most=3600.0),
            str(url),
        )

    def key(self, kind: str, name: str) -> bytes:
        """A key of this namespace. All of them have one hash tag, so that one script may touch several in a cluster."""
        return f"{{{self.namespace}}}:{kind}:{name}".encode()

    def is_at(self, other: Place) -> bool:
        """Whether it is the same server and database, met as the same user."""
        return self[:9] == other[:9]

    def __repr__(self) -> str:
        return f"<Place {self.text}>"


def checked(namespace: str) -> str:
    """A namespace that can be part of a key. Raises `UsageError`."""
    if not namespace or len(namespace) > 200 or "{" in namespace or "}" in namespace:
        raise UsageError(f"redis: a namespace has 1 to 200 characters, none of them a brace, not {namespace[:80]!r}")
    return namespace


def _db(url: Url, path: str) -> int:
    if not path:
        return url.whole("db", 0, most=1_000_000)
    if "db" in url.options:
        raise UsageError(f"{url} names its database twice: in its path, and by db=")
    if not path.isdecimal() or len(path) > 6:
        raise UsageError(
            f"{url}: the path is the number of a database, as in /0, not {path[:80]!r}; "
            "names are kept apart by ?namespace=…"
        )
    return int(path)


def _tls(url: Url) -> Tls:
    hostname = url.flag("ssl_check_hostname", True)
    return Tls(url.text("ssl_ca_certs"), url.text("ssl_certfile"), url.text("ssl_keyfile"), hostname)
