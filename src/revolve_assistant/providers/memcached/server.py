"""One memcached server: a connection that is made when needed, and dropped when anything is in doubt.

A connection is never used again after a time-out, an unexpected end or an answer that cannot be read: what arrives
later would be taken for the answer to something else. One that ended while it lay idle (the server was restarted) is
replaced once, in silence, since every request of this provider may be sent twice.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence

from ...errors import AssistantError, ClientClosed, Overloaded, ProtocolError, ProviderError, Unreachable, UsageError
from .codec import Answer, Parser

_CHUNK = 256 << 10  # bytes read at once
_TRICKLE = 10_000  # bytes a second that count as moving
_COMMANDS = 1000  # sent at once: what comes back must fit the buffers while we still send
_BYTES = 2 << 20  # sent at once, each with a time-out of its own


class _Ended(Exception):
    """The other side closed or reset the connection."""


class _Link:
    """A connection and what has been read from it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.parser = Parser()

    def exchange(self, data: bytes, number: int, timeout: float) -> list[Answer]:
        """Send `data`, which holds `number` commands. Raises TimeoutError, _Ended, ProtocolError.

        The time-out is for sending a megabyte and for silence: it starts again as an answer comes in, but for a
        trickle. Each byte is good for 0.1 ms more, so that a large answer gets through a slow line, and a byte now and
        then keeps nobody waiting.
        """
        parser, sock = self.parser, self.sock
        deadline = time.monotonic() + timeout * (1 + len(data) / 1e6)
        try:
            sock.settimeout(_left(deadline))
            sock.sendall(data)
            while parser.ready < number:
                sock.settimeout(_left(deadline))
                received = sock.recv(min(max(_CHUNK, parser.wants), 4 << 20))
                if not received:
                    raise _Ended("closed the connection")
                parser.feed(received)
                deadline = max(deadline, min(deadline + len(received) / _TRICKLE, time.monotonic() + timeout))
        except TimeoutError:
            raise
        except OSError as error:
            raise _Ended(error.strerror or str(error)) from error
        if parser.ready > number or parser.rest:
            raise ProtocolError("more answers than questions")
        return parser.take(number)


class Server:
    """`ask` may be called from any thread; one request at a time is under way."""

    def __init__(self, host: str, port: int, *, account: tuple[str, str] | None, timeout: float) -> None:
        """`account` is a user and a password; `timeout` (seconds) bounds connecting, and every request and megabyte."""
        self.host, self.port = host, port
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._account = account
        self._timeout = timeout
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._closed = False

    def connect(self, timeout: float | None = None) -> None:
        """Connect, if it is not connected. Raises `Unreachable`, `ProtocolError`."""
        with self._lock:
            if self._link is None:
                self._link = self._connected(self._timeout if timeout is None else timeout)

    def ask(self, commands: Sequence[bytes]) -> list[Answer]:
        """The answer of each command, in order; `SERVER_ERROR` is one. Blocks for at most the time-out a part.

        Many commands go in parts of 1,000, or 2 MiB. Raises `Unreachable` and `ProtocolError`; what was sent may or may
        not have been done then.
        """
        answers: list[Answer] = []
        with self._lock:
            for number, data in _parts(commands):
                answers += self._ask(data, number)
        return answers

    def close(self) -> None:
        """Drop the connection, also under a request in another thread, which then raises `ClientClosed`."""
        self._closed = True
        link = self._link
        if link is not None:
            with contextlib.suppress(OSError):
                link.sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._drop()

    def abandon(self) -> None:
        """Let go of what was inherited by a fork: nothing is sent, and no lock is taken, for its holder is not here."""
        if self._link is not None:
            self._link.sock.close()

    # ---- under the lock

    def _ask(self, data: bytes, number: int) -> list[Answer]:
        again = self._link is not None
        while True:
            try:
                if self._link is None:
                    self._link = self._connected(self._timeout)
                answers = self._link.exchange(data, number, self._timeout)
            except _Ended as ended:
                self._drop()
                if again and not self._closed:
                    again = False
                    continue
                raise self._unreachable(str(ended)) from ended
            except TimeoutError as error:
                self._drop()
                raise self._unreachable(f"no answer within {self._timeout:g} s") from error
            except ProtocolError as error:
                self._drop()
                raise ProtocolError(f"memcached at {self.name}: {error}; the connection was dropped") from error
            except BaseException:  # KeyboardInterrupt in the middle of an answer
                self._drop()
                raise
            for answer in answers:
                if answer.code == b"CLIENT_ERROR" or answer.code == b"ERROR":
                    self._drop()  # what followed the refused line may have been taken for commands
                    if b"unauthenticated" in answer.rest:
                        raise self._stranger()
                    raise ProtocolError(f"memcached at {self.name} refused a command: {_words(answer)}")
            return answers

    def _connected(self, timeout: float) -> _Link:
        if self._closed:
            raise ClientClosed(f"the connection to memcached at {self.name} was closed")
        deadline = time.monotonic() + timeout
        link = _Link(self._socket(deadline))
        try:
            self._greet(link, deadline)
        except TimeoutError as error:
            link.sock.close()
            text = f"it accepts connections and does not answer within {timeout:.2g} s; is it memcached?"
            raise self._unreachable(text) from error
        except _Ended as error:
            link.sock.close()
            raise self._unreachable(f"{error}, at once; is it memcached?") from error
        except ProtocolError as error:
            link.sock.close()
            raise ProtocolError(f"what answers at {self.name} is not memcached: {error}") from error
        except BaseException:
            link.sock.close()
            raise
        return link

    def _socket(self, deadline: float) -> socket.socket:
        """Connected to the first address of the host that accepts: `localhost` may be ::1, then 127.0.0.1."""
        try:
            places = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise self._unreachable(f"the host is not known ({error.strerror or error})") from error
        failure: OSError = OSError("no address")
        for family, kind, protocol, _, address in places:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(_left(deadline))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                return sock
            except OSError as error:
                failure = error
                sock.close()
            except BaseException:
                sock.close()
                raise
        text = "no connection in time" if isinstance(failure, TimeoutError) else failure.strerror or str(failure)
        raise self._unreachable(text[:1].lower() + text[1:]) from failure

    def _greet(self, link: _Link, deadline: float) -> None:
        (answer,) = link.exchange(b"version\r\n", 1, _left(deadline))
        if answer.code == b"CLIENT_ERROR" and b"unauthenticated" in answer.rest:
            if self._account is None:
                raise self._stranger()
            body = " ".join(self._account).encode()
            (answer,) = link.exchange(b"set auth 0 0 %d\r\n%b\r\n" % (len(body), body), 1, _left(deadline))
            if answer.code != b"STORED":
                raise self._stranger()
            (answer,) = link.exchange(b"version\r\n", 1, _left(deadline))
        if answer.code != b"VERSION":
            raise ProtocolError(f"it answers {_words(answer)!r} to 'version'")
        version = answer.rest.decode("ascii", "replace")
        numbers = version.split(".")
        if (
            numbers[0].isdigit()
            and numbers[1:2]
            and numbers[1].isdigit()
            and (int(numbers[0]), int(numbers[1])) < (1, 6)
        ):
            text = f"memcached at {self.name} is {version}; 1.6 or later is needed, for its meta commands"
            raise UsageError(text)

    def _stranger(self) -> AssistantError:
        if self._account is None:
            return self._unreachable("it wants a user and a password: memcached://user:password@host/namespace")
        return self._unreachable("it refused the user and password of the URL")

    def _unreachable(self, why: str) -> Unreachable | ClientClosed:
        if self._closed:
            return ClientClosed(f"the connection to memcached at {self.name} was closed")
        return Unreachable(f"memcached at {self.name}: {why}")

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.sock.close()


def refusal(server: Server, answer: Answer) -> ProviderError | UsageError:
    """The error for a `SERVER_ERROR`."""
    words = _words(answer)
    if "out of memory" in words.lower():
        return Overloaded(
            f"memcached at {server.name} is full ({words}): give it more memory (-m), or wait until readers make room"
        )
    if "too large" in words.lower():
        return UsageError(f"memcached at {server.name} takes no values of 1 MB ({words}): start it with -I 1m or more")
    return Unreachable(f"memcached at {server.name} failed: {words}")


def _words(answer: Answer) -> str:
    return (answer.code + b" " + answer.rest).decode("utf-8", "replace").strip()[:100]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _parts(commands: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    if len(commands) < 10 and sum(map(len, commands)) <= _BYTES:
        if commands:
            yield len(commands), b"".join(commands)
        return
    part: list[bytes] = []
    size = 0
    for command in commands:
        if part and (len(part) >= _COMMANDS or size + len(command) > _BYTES):
            yield len(part), b"".join(part)
            part, size = [], 0
        part.append(command)
        size += len(command)
    if part:
        yield len(part), b"".join(part)
