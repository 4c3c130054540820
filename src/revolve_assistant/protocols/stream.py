"""A TCP connection to a server: non-blocking, every call bounded, its errors name host and port. Not thread-safe."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import socket
import time
from collections.abc import Iterable

from ..errors import ProtocolError, Unreachable, UsageError

Address = tuple[str, int]

PORT = 4730  # Gearman's
_CHUNK = 64 << 10  # bytes read at once; malloc would map and unmap pages for more
_FIRST, _LONGEST = 0.05, 5.0  # seconds between attempts to connect: the first pause, the longest


class Stream:
    """An open connection. `connect` makes one."""

    def __init__(self, one: socket.socket, address: Address) -> None:
        self.address = address
        self._socket = one
        one.setblocking(False)
        with contextlib.suppress(OSError):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._poll = select.poll()
        self._poll.register(one, select.POLLIN)

    @classmethod
    def connect(cls, address: Address, timeout: float) -> Stream:
        """Connect within `timeout` seconds (name look-up apart). Raises `Unreachable`."""
        try:
            one = socket.create_connection(address, timeout=max(timeout, 0.001))
        except TimeoutError:
            raise Unreachable(f"{named(address)} did not accept a connection within {timeout:.3g} s") from None
        except OSError as error:
            raise Unreachable(f"no connection to {named(address)}: {_reason(error)}") from error
        return cls(one, address)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes | memoryview) -> int:
        """Send what goes now; how many bytes. Raises `Unreachable`."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise Unreachable(f"lost the connection to {named(self.address)}: {_reason(error)}") from error

    def receive(self) -> bytes | None:
        """The bytes that are there, None if none are. Raises `Unreachable` when the connection has ended."""
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return None
        except OSError as error:
            raise Unreachable(f"lost the connection to {named(self.address)}: {_reason(error)}") from error
        if not data:
            raise Unreachable(f"{named(self.address)} closed the connection")
        return data

    def wait(self, timeout: float | None, *, read: bool = True, write: bool = False) -> bool:
        """Wait until there is something to read, or room to write; False: the `timeout` in seconds is up."""
        poll = self._poll
        if write:
            poll = select.poll()
            poll.register(self._socket, (select.POLLIN if read else 0) | select.POLLOUT)
        return bool(poll.poll(None if timeout is None else max(0.0, timeout * 1000)))

    def shutdown(self) -> None:
        """End it for everybody; a `wait` in another thread returns."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it; the connection lives on in a process that was forked."""
        self._socket.close()


class Dial:
    """An attempt to connect that never blocks (name look-up apart): poll it for POLLOUT, then ask `stream`."""

    def __init__(self, address: Address) -> None:
        """Raises `Unreachable`."""
        self.address = address
        try:
            self._left = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Unreachable(f"no connection to {named(address)}: {_reason(error)}") from error
        self._socket = self._next(None)

    def fileno(self) -> int:
        return self._socket.fileno()

    def stream(self) -> Stream | None:
        """The connection; None: the next of the host's addresses is being tried. Raises `Unreachable`."""
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._socket.close()
            self._socket = self._next(OSError(code, os.strerror(code)))
            return None
        return Stream(self._socket, self.address)

    def close(self) -> None:
        self._socket.close()

    def _next(self, error: OSError | None) -> socket.socket:
        while self._left:
            family, kind, protocol, _, address = self._left.pop(0)
            one = None
            try:
                one = socket.socket(family, kind, protocol)
                one.setblocking(False)
                code = one.connect_ex(address)
                if code in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
                    return one
                raise OSError(code, os.strerror(code))
            except OSError as problem:
                error = problem
                if one is not None:
                    one.close()
        error = error or OSError("the name has no address")
        raise Unreachable(f"no connection to {named(self.address)}: {_reason(error)}") from error


class Server:
    """An address, and how long to leave it alone after it failed."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.error: Exception | None = None
        self.not_before = 0.0
        self._pause = 0.0

    def failed(self, error: Exception) -> None:
        self.error = error
        self._pause = min(max(self._pause * 2, _FIRST), _LONGEST)
        self.not_before = time.monotonic() + self._pause * random.uniform(0.5, 1.0)

    def worked(self) -> None:
        self.error, self._pause, self.not_before = None, 0.0, 0.0


def addresses(servers: str | Address | Iterable[str | Address], default: int = PORT) -> list[Address]:
    """`("host", port)`, "host:port", "host" or several of these. Raises `UsageError`."""
    if isinstance(servers, str):
        servers = [servers]
    elif isinstance(servers, tuple) and len(servers) == 2 and isinstance(servers[1], int):
        servers = [(str(servers[0]), servers[1])]
    found = []
    for each in servers:
        if isinstance(each, str):
            host, colon, port = each.rpartition(":") if each.count(":") == 1 or "]:" in each else (each, "", "")
            if colon and not port.isdigit():
                raise UsageError(f"{each!r} is no server; write host:port or (host, port)")
            address = (host.strip("[]"), int(port or default))
        else:
            address = (each[0], int(each[1]))
        if not address[0] or not 0 < address[1] < 65536:
            raise UsageError(f"{each!r} is no server; write host:port or (host, port), a port from 1 to 65535")
        found.append(address)
    if not found:
        raise UsageError(f"no server; give at least one, e.g. [('127.0.0.1', {default})]")
    return found


def named(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def stranger(address: Address, error: ProtocolError, kind: str = "Gearman") -> ProtocolError:
    """The same error, with where it came from."""
    made = ProtocolError(f"{named(address)}: {error}; is a {kind} server on this port?")
    made.__cause__ = error
    return made


def _reason(error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED:
        return "connection refused, nothing listens there"
    return error.strerror or str(error) or type(error).__name__
