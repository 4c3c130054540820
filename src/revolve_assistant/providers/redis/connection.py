"""One connection to a Redis server: made when needed, and dropped when anything is in doubt.

    exchange ──▶ [ all commands in one go ] ══▶ server
             ◀── one answer each, in order ◀══        pushes in between ──▶ `pushed`

A connection is never used again after a time-out, an unexpected end or an answer that cannot be read: what arrives
later would be taken for the answer to something else. One that ended while it lay idle (the server was restarted) is
noticed before anything is sent, and replaced in silence. After a fork the child connects afresh.

The protocol is parsed and packed by `hiredis`, which is C and small; what redis-py adds to it (pools, retries, classes
for a thousand commands) is not needed here, and costs 120 ms of every start: docs/decisions/0011.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hiredis import ProtocolError as Garbage
from hiredis import PushNotification, Reader, ReplyError, pack_command

from ...errors import ProtocolError, ProviderError, Unreachable, UsageError
from . import answers
from .address import Place, Tls

_CHUNK = 64 << 10  # bytes read at once, at first
_MOST = 1 << 20  # bytes read at once, once much comes
_TRICKLE = 10_000  # bytes a second that count as moving
_HELD = 8 << 20  # bytes that the system may hold of what was sent
_IDLE = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"  # the second is macOS' name for it
# After 2 s of silence, each second, twice.
_PROBES = ((getattr(socket, _IDLE), 2), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2))
OLDEST = (6, 2)

Word = bytes | str | int | float
Command = tuple[Any, ...]  # of `Word`s


class Script:
    """A Lua script, known by its hash; as a command it is `(script, number of keys, *keys, *arguments)`."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source.encode()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()


class Server(NamedTuple):
    """What a server says of itself when it is met."""

    kind: str  # redis, valkey …
    version: tuple[int, ...]
    mode: str  # standalone, sentinel, cluster
    role: str  # master, replica
    client: int  # our number there
    pushes: bool  # it answers in RESP3


class Connection:
    """To the server of a `Place`. Used by one thread at a time; `close` may be called from any.

    `pushed` gets what comes unasked (invalidations, messages of subscriptions).
    """

    def __init__(self, place: Place, *, replica: bool = False) -> None:
        """Nothing is connected yet. `replica`: one that takes no writes will do."""
        self.place = place
        self.pushed: deque[list[Any]] = deque()
        self.server: Server | None = None
        self.made = 0  # how often it was connected
        self.barred = False  # nobody is to connect it any more
        self.closed: Callable[[], None] = lambda: None  # is called once it was let go
        self.where = place.socket or _named(*place.hosts[0])
        self._replica = replica
        self._socket: socket.socket | None = None
        self._pid = 0
        self._parser: Any = None
        self._known: set[bytes] = set()  # scripts that the server has
        self._chunk = _CHUNK
        self._met = False  # it has answered in its protocol
        self._until = 0.0  # monotonic seconds up to which answers that come in have put the time-out off

    # ---- to connect

    @property
    def open(self) -> bool:
        """Whether it is connected, as far as is known, in this process."""
        return self._socket is not None and self._pid == os.getpid()

    def connect(self) -> None:
        """Connect, unless it is. Blocks up to the time-out. Raises `Unreachable`, `ProviderError`, `ProtocolError`."""
        if self._socket is not None:
            if self._pid == os.getpid():
                return
            self.abandon()
        place = self.place
        deadline = time.monotonic() + place.timeout
        if place.service:
            from .sentinel import primary

            host, port = primary(place, deadline)
            self._meet(host, port, deadline)
        elif place.socket:
            self._meet("", 0, deadline)
        else:
            self._meet(*place.hosts[0], deadline)

    def close(self) -> None:
        """Let go of it. A thread that waits for it gets an error; a second call does nothing."""
        sock, self._socket = self._socket, None
        if sock is not None:
            if self._pid == os.getpid():
                with contextlib.suppress(OSError):  # ends a wait in another thread
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                sock.close()
            self.closed()

    def bar(self) -> None:
        """Close it, and let nobody connect it as long as it is `barred`, who is just at it included."""
        self.barred = True
        self.close()

    def abandon(self) -> None:
        """In a forked child: close the descriptor, and say nothing to the server, which the parent goes on using."""
        sock, self._socket = self._socket, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()
        self.pushed.clear()

    def fileno(self) -> int:
        """To wait on with `select`. Raises `Unreachable` when it is not connected."""
        if self._socket is None:
            raise Unreachable(f"redis at {self.where}: not connected")
        return self._socket.fileno()

    def probe(self) -> None:
        """Have it end 4 s after the server's machine vanished, also while nothing is asked: the system asks for us."""
        sock = self._socket
        if sock is not None and sock.family != socket.AF_UNIX:
            for option, value in _PROBES:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)

    # ---- to ask

    def call(self, *command: Any, wait: float = 0.0) -> Any:
        """The answer to one command. `wait`: seconds that the server may rightly take (a blocking command).

        Blocks up to the time-out and `wait`. Raises `Unreachable`, `Overloaded`, `ProviderError`, `ProtocolError`.
        """
        (answer,) = self.exchange([command], wait=wait)
        if isinstance(answer, ReplyError):
            raise self.failure(answer)
        return answer

    def exchange(self, commands: Sequence[Command], *, wait: float = 0.0) -> list[Any]:
        """The answers to all commands, sent in one go; error answers are among them, as `ReplyError` (see `failure`).

        The first word of a command may be a `Script`. Blocks up to the time-out and `wait`, a little more for much
        data; the time-out starts again as an answer comes in. Raises `Unreachable`, `ProtocolError`; then any number of
        the commands may have been carried out.
        """
        self.ready()
        found = self._exchange(commands, wait)
        missing = [at for at, each in enumerate(found) if isinstance(each, ReplyError) and _noscript(each)]
        if missing:  # somebody flushed the scripts
            self._known.clear()
            for at, answer in zip(missing, self._exchange([commands[at] for at in missing], wait), strict=True):
                found[at] = answer
        return found

    def failure(self, answer: ReplyError) -> ProviderError:
        """What to raise for an error answer. A server that is on its way out, or no primary any more, is let go."""
        error = answers.error(str(answer), self.where)
        if isinstance(error, Unreachable):
            self.close()
        return error

    def ready(self) -> None:
        """Connected, and not to one that has hung up meanwhile. Raises as `connect`."""
        if self._socket is not None and self._pid == os.getpid() and self._ended():
            self.close()
        self.connect()

    # ---- in parts, for who waits for more than answers

    def send(self, commands: Sequence[Command], *, wait: float = 0.0) -> float:
        """Send; the answers are `take`n later, in order. Raises `Unreachable`.

        Returns the seconds that what was handed to the network may take to get there, on a slow line.
        """
        data = b"".join([self._pack(command) for command in commands])
        sock = self._socket
        if sock is None:
            raise Unreachable(f"redis at {self.where}: not connected")
        self._until = 0.0
        try:
            sock.settimeout(self.place.timeout * (1 + len(data) / 1e6) + wait)
            sock.sendall(data)
        except OSError as error:
            raise self._lost(error) from error
        return self.place.timeout * min(len(data), _HELD) / 1e6

    def take(self, deadline: float) -> Any:
        """The next answer; pushes on the way go to `pushed`. Raises as `exchange`; after a time-out it is dropped."""
        while True:
            answer = self._next()
            if answer is not False:
                return answer
            self._until = deadline = max(deadline, self._until)
            size = self.feed(deadline)
            self._until = max(deadline, min(deadline + size / _TRICKLE, time.monotonic() + self.place.timeout))

    def gather(self) -> None:
        """Put the pushes that have come into `pushed`, without waiting. Only between answers. Raises as `exchange`."""
        sock = self._socket
        if sock is not None and self._next() is not False:  # behind the last answer some may have come already
            raise self._drop(ProtocolError(f"redis at {self.where} answered what nobody asked"))
        while sock is not None and (_pending(sock) or select.select([sock], [], [], 0)[0]):
            self.feed(time.monotonic() + self.place.timeout)
            if self._next() is not False:
                raise self._drop(ProtocolError(f"redis at {self.where} answered what nobody asked"))

    # ---- inside

    def _exchange(self, commands: Sequence[Command], wait: float) -> list[Any]:
        wait += self.send(commands)
        deadline = time.monotonic() + self.place.timeout + wait
        return [self.take(deadline) for _ in commands]

    def _pack(self, command: Command) -> bytes:
        script = command[0]
        if type(script) is Script:
            if script.sha in self._known:
                command = (b"EVALSHA", script.sha, *command[1:])
            else:
                self._known.add(script.sha)
                command = (b"EVAL", script.source, *command[1:])
        packed: bytes = pack_command(command)
        return packed

    def _next(self) -> Any:
        """An answer that has come, or False. (RESP3's `#f` is never asked for.)"""
        while True:
            try:
                answer = self._parser.gets(False)
            except Garbage as error:
                raise self._drop(ProtocolError(f"redis at {self.where}: {error}")) from error
            if type(answer) is not PushNotification:
                return answer
            self.pushed.append(answer)

    def feed(self, deadline: float) -> int:
        """Read what is there, waiting for some until `deadline`; the number of bytes. Raises `Unreachable`."""
        sock = self._socket
        if sock is None:
            raise Unreachable(f"redis at {self.where}: the connection was closed")
        try:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("it does not answer")
            sock.settimeout(left)
            data = sock.recv(self._chunk)
        except (OSError, ValueError) as error:
            raise self._lost(error) from error
        if not data:
            raise self._lost(ConnectionResetError("it closed the connection"))
        size = len(data)
        if size == self._chunk:
            self._chunk = min(_MOST, self._chunk * 2)
        if not self._met:
            if data[:1] not in b"%*-+$:_>|":
                raise self._drop(answers.stranger(data, self.where))
            self._met = True
        self._parser.feed(data)
        return size

    def _ended(self) -> bool:
        """Whether the other side has hung up while nothing was asked."""
        sock = self._socket
        try:
            if sock is None or _pending(sock) or not select.select([sock], [], [], 0)[0]:
                return False
            self.gather()
        except (ProviderError, OSError, ValueError):  # or another thread has closed it just now
            return True
        return self._socket is None

    def _meet(self, host: str, port: int, deadline: float) -> None:
        place = self.place
        self.where = _named(host, port) if host else place.socket
        try:
            self._socket = _connected(place, host, port, deadline)
        except OSError as error:
            raise unreachable(error, self.where) from error
        self._pid = os.getpid()
        if self.barred:
            self.close()
            raise Unreachable(f"redis at {self.where}: the connection was closed")
        self._parser = Reader(notEnoughData=False)
        self._chunk, self._met = _CHUNK, False
        self._known.clear()
        self.pushed.clear()
        self.made += 1
        try:
            self.server = self._greet(deadline)
        except BaseException:
            self.close()
            raise

    def _greet(self, deadline: float) -> Server:
        """Say who we are and choose the database; one round trip. What the server says of itself decides."""
        place = self.place
        hello: list[Any] = [b"HELLO", b"3"]
        if place.password is not None:
            hello += [b"AUTH", place.user or "default", place.password]
        hello += [b"SETNAME", b"revolve-assistant"]
        commands: list[Command] = [tuple(hello)]
        if place.db:
            commands.append((b"SELECT", place.db))
        self.send(commands)
        answer, *more = [self.take(deadline) for _ in commands]
        for each in (answer, *more):
            if isinstance(each, ReplyError):
                raise answers.error(str(each), self.where)
        server = read_hello(answer)
        if server.version < OLDEST:
            text = ".".join(map(str, server.version))
            raise ProviderError(f"redis at {self.where} is {text}; 6.2 or later is needed (or any Valkey): upgrade it")
        if server.mode == "sentinel":
            raise ProviderError(f"{self.where} is a sentinel: write redis+sentinel://{self.where}/SERVICE/{place.db}")
        if server.mode == "cluster":
            raise ProviderError(f"redis at {self.where} {answers.CLUSTERED}")
        if server.role != "master" and not self._replica:
            raise answers.error("READONLY", self.where)
        return server

    def _lost(self, error: Exception) -> Unreachable:
        self.close()
        return unreachable(error, self.where)

    def _drop(self, error: ProtocolError) -> ProtocolError:
        self.close()
        return error


def read_hello(answer: Any) -> Server:
    """The answer to HELLO, as a map or a list of pairs."""
    pairs = answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=False))
    said = {name: value.decode() if isinstance(value, bytes) else value for name, value in pairs.items()}
    version = tuple(int(part) for part in str(said.get(b"version", "0")).split(".")[:3] if part.isdigit())
    return Server(
        str(said.get(b"server", "redis")),
        version,
        str(said.get(b"mode", "standalone")),
        str(said.get(b"role", "master")),
        int(said.get(b"id", 0)),
        said.get(b"proto") == 3,
    )


def unreachable(error: Exception, where: str) -> Unreachable:
    """What to raise for a failure of the network."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"its certificate is refused ({error.verify_message}); name who signed it with ssl_ca_certs=…"
    elif isinstance(error, ssl.SSLError):
        text = f"TLS fails ({error.reason or error}): is it a port without TLS? then write redis://"
    elif isinstance(error, TimeoutError):
        text = "no answer in time"
    elif isinstance(error, ConnectionRefusedError):
        text = "nothing listens there: start it (redis-server), or correct host and port"
    elif isinstance(error, ConnectionResetError):
        text = "it closed the connection"
    elif isinstance(error, FileNotFoundError):
        text = "there is no such socket: correct the path, or start the server"
    else:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return Unreachable(f"redis at {where}: {text}")


def _connected(place: Place, host: str, port: int, deadline: float) -> socket.socket:
    timeout = max(0.05, deadline - time.monotonic())
    if place.socket:
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            plain.settimeout(timeout)
            plain.connect(place.socket)
        except BaseException:
            plain.close()
            raise
        return plain
    plain = socket.create_connection((host, port), timeout=timeout)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if place.tls is None:
            return plain
        plain.settimeout(max(0.05, deadline - time.monotonic()))
        return _context(place.tls).wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def _context(tls: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca_certs)
        if tls.certfile:
            context.load_cert_chain(tls.certfile, tls.keyfile)
    except (FileNotFoundError, ssl.SSLError) as error:
        if isinstance(error, FileNotFoundError):
            shown = ", ".join(name for name in (tls.ca_certs, tls.certfile, tls.keyfile) if name)
            raise UsageError(f"rediss: one of {shown} is not there") from error
        raise UsageError(f"rediss: what ssl_ca_certs or ssl_certfile name is no certificate ({error})") from error
    context.check_hostname = tls.check_hostname
    return context


def _named(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _pending(sock: socket.socket) -> int:
    return sock.pending() if isinstance(sock, ssl.SSLSocket) else 0


def _noscript(answer: ReplyError) -> bool:
    return str(answer).startswith("NOSCRIPT")
