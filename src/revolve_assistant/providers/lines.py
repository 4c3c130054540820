"""The connections of one thread to several servers. Nothing here blocks but `Lines.pump`, which waits for all of them.

                        ┌─ Line ─ "take"   ─ WorkerState ┐
    Lines ── poll ──────┼─ Line ─ "submit" ─ ClientState ┼── server 1
      ▲                 ├─ …                             ┘
    wake, from any      └─ Line … ────────────────────────── server 2
    thread

    a Line:  dialling ──▶ greeting ──▶ up ──▶ lost (and after a pause another one is dialled)

A server that fails is left alone for 0.05 s, then twice as long each time, up to 5 s, half of it by chance. A server
that was asked something and says nothing for `timeout` seconds is lost too: that finds those that hang, and
connections that a cable or a firewall cut without a word. A line in use that is silent is pinged.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from ..errors import AssistantError, ProtocolError, Unreachable
from ..protocols.stream import Address, Dial, Server, Stream, named, stranger

HEARTBEAT = 10.0  # seconds of silence before a ping
_SLICE = 1 << 20  # bytes sent at once
_READS = 16  # chunks read from one line before the others get their turn


class State(Protocol):
    """One side of one connection, without a socket. `ping` has the server answer; `waiting`: an answer is due."""

    @property
    def error(self) -> ProtocolError | None: ...
    @property
    def waiting(self) -> bool: ...
    def data_to_send(self) -> bytes: ...
    def receive(self, data: bytes, /) -> list[Any]: ...
    def ping(self, data: bytes = ..., /) -> None: ...
    def end(self) -> None: ...


class Role(NamedTuple):
    """What lines are for. `heard` gets what a state's `receive` gave; `lost` hears of the end of a line that was up."""

    name: str
    state: Callable[[], State]
    up: Callable[[Line], None]
    heard: Callable[[Line, list[Any]], None]
    lost: Callable[[Line], None]


class Line:
    """One connection. `owner` is its role's own."""

    def __init__(self, server: Server, index: int, role: Role, timeout: float, kind: str) -> None:
        """Starts to dial. Raises `Unreachable`."""
        self.kind = kind
        self.server = server
        self.index = index
        self.role = role
        self.timeout = timeout
        self.state: Any = role.state()
        self.owner: Any = None
        self.error: Exception | None = None
        self.stage: Literal["dialling", "greeting", "up", "lost"] = "dialling"
        self.up = False  # whether that is the stage
        self.polled = 0  # what it is polled for
        self._out = bytearray()
        self._started = self._heard = self._waiting = time.monotonic()
        self._quiet = True  # nothing is due from the server
        self._dial: Dial | None = Dial(server.address)
        self._stream: Stream | None = None

    @property
    def backlog(self) -> int:
        """Bytes that wait to be sent."""
        return len(self._out)

    def fileno(self) -> int:
        one = self._stream or self._dial
        return -1 if one is None else one.fileno()

    def mask(self) -> int:
        if self.stage == "dialling":
            return select.POLLOUT
        return select.POLLIN | select.POLLOUT if self._out else select.POLLIN

    def due(self) -> float:
        """When it must be looked at again (monotonic seconds), whatever comes."""
        if self.stage in ("dialling", "greeting"):
            return self._started + self.timeout
        return self._waiting + self.timeout if self.state.waiting or self._out else self._heard + HEARTBEAT

    def look(self, now: float) -> None:
        """Do what is due. Raises `Unreachable`."""
        if now < self.due():
            return
        name = named(self.server.address)
        if self.stage == "dialling":
            raise Unreachable(f"{name} did not accept a connection within {self.timeout:.3g} s")
        if self.stage == "greeting":
            raise Unreachable(f"{name} accepts connections, but does not answer {self.kind}'s greeting")
        if self.state.waiting or self._out:
            raise Unreachable(f"{name} has not answered for {self.timeout:.3g} s")
        self.ping(b"ping")

    def promising(self) -> bool:
        """Whether it was woken, and the job that it was woken for is on its way."""
        return self.up and getattr(self.state, "drowsy", False)

    def serve(self, event: int) -> None:
        """Do what poll says can be done. Raises `Unreachable`, `ProtocolError`."""
        if self._dial is not None:
            stream = self._dial.stream()
            if stream is None:
                return
            self._dial, self._stream = None, stream
            self.stage = "greeting"
            self.ping(b"hello")
            return
        if event & select.POLLOUT:
            self.flush()
        if event & ~select.POLLOUT:
            self._read()

    def ping(self, data: bytes) -> None:
        """Have the server answer; `state.waiting` until it did. Raises `Unreachable`."""
        self.state.ping(data)
        self.flush()

    def flush(self) -> None:
        """Send what goes now. Raises `Unreachable`."""
        stream = self._stream
        if stream is None:
            return
        data = self.state.data_to_send()
        out = self._out
        if data and self._quiet:
            self._quiet = False
            self._waiting = time.monotonic()
        if not out:
            if not data:
                return
            sent = stream.send(data)
            if sent < len(data):
                out += memoryview(data)[sent:]
        else:
            out += data
        while out:
            with memoryview(out) as whole, whole[:_SLICE] as some:
                sent = stream.send(some)
            if not sent:
                return
            del out[:sent]
            self._waiting = time.monotonic()  # it takes what is sent
        self._quiet = not self.state.waiting  # not everything is answered

    def _read(self) -> None:
        stream, state = self._stream, self.state
        if stream is None:
            return
        for _ in range(_READS):
            data = stream.receive()
            if data is None:
                break
            self._heard = self._waiting = time.monotonic()
            found = state.receive(data)
            self._quiet = not state.waiting and not self._out
            if self.stage == "greeting" and not state.waiting:
                self.stage, self.up = "up", True
                self.server.worked()
                self.role.up(self)
            if found:
                self.role.heard(self, found)
            if state.error is not None:
                raise state.error
            if len(data) < 4096:
                break
        self.flush()

    def close(self) -> None:
        """Let go of it. The jobs taken on it go back to the server's queue."""
        self.stage, self.up = "lost", False
        for one in (self._dial, self._stream):
            if one is not None:
                one.close()
        with contextlib.suppress(ProtocolError):
            self.state.end()


class Lines:
    """The lines to several servers. One thread uses it; `wake` may be called from any."""

    def __init__(self, servers: Sequence[Address], timeout: float, kind: str = "Gearman") -> None:
        """`timeout`: seconds to connect, and to answer; `kind`: of server, for errors. Nothing is dialled yet."""
        self.kind = kind
        self.servers = [Server(address) for address in servers]
        self.timeout = timeout
        self._roles: list[Role] = []
        self._lines: dict[tuple[str, int], Line] = {}
        self._polled: dict[int, Line] = {}  # by descriptor
        self._poll = select.poll()
        self._up: dict[str, list[Line]] = {}  # those that are up, by their roles; what changed is looked up anew
        self._due = 0.0  # when a line must be looked at, or a server dialled again, at the earliest
        self._rung = False  # something is in the ear, or will be at once
        self._ear, self._bell = socket.socketpair()
        for end in (self._ear, self._bell):
            end.setblocking(False)
        self._poll.register(self._ear, select.POLLIN)
        self.woken = False

    def want(self, role: Role) -> None:
        """Dial lines of this role from now on. Once is enough."""
        if role not in self._roles:
            self._roles.append(role)
            self._up.clear()
            self.tend()

    def line(self, role: str, index: int) -> Line | None:
        return self._lines.get((role, index))

    def lines(self, role: str) -> list[Line]:
        """Those that are up, in the order of the servers; not to be changed."""
        up = self._up.get(role)
        if up is None:
            found = (self._lines.get((role, index)) for index in range(len(self.servers)))
            up = self._up[role] = [line for line in found if line is not None and line.up]
        return up

    def undecided(self, role: str, *, hopeful: bool = False) -> bool:
        """Whether a server may still be about to answer; `hopeful`: that has not failed before counts alone."""
        for index, server in enumerate(self.servers):
            line = self._lines.get((role, index))
            if line is not None and not line.up and not (hopeful and server.error):
                return True
        return False

    def wake(self) -> None:
        """End a `pump` that waits, or the next one; `woken` says so then."""
        if not self._rung:
            self._rung = True
            with contextlib.suppress(OSError):
                self._bell.send(b"\0")

    def hush(self) -> bool:
        """Whether it was woken; forgets about that."""
        if self._rung:
            self._listen()
        woken, self.woken = self.woken, False
        return woken

    def _listen(self) -> None:
        self.woken = True
        self._rung = False  # before the ear is emptied: a ring after this is heard by the next poll
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(4096)

    # ---- the loop

    def pump(self, until: float) -> None:
        """Wait until something happens, at most until then (monotonic seconds; past: look once). Raises nothing."""
        more = True
        while more:
            now = time.monotonic()
            if now >= self._due:
                self.tend()
            more = False
            events = self._poll.poll(max(0.0, (min(until, self._due) - now) * 1000))
            for descriptor, event in events:
                line = self._polled.get(descriptor)
                if line is not None:
                    up = line.up
                    self.attempt(line, line.serve, event)
                    if line.up is not up:
                        self._up.clear()
                    self._watch(line)
                    more = len(events) == 1 and line.promising()
                elif descriptor == self._ear.fileno():
                    self._listen()

    def tend(self) -> None:
        """Dial what is wanted, drop what does not answer."""
        now = time.monotonic()
        for line in list(self._lines.values()):
            self.attempt(line, line.look, now)
            self._watch(line)
        for role in self._roles:
            for index, server in enumerate(self.servers):
                if (role.name, index) not in self._lines and server.not_before <= now:
                    try:
                        line = Line(server, index, role, self.timeout, self.kind)
                    except Unreachable as error:
                        server.failed(error)
                    else:
                        self._lines[role.name, index] = line
                        self._watch(line)
        # What is asked from now on is due in `timeout` at the earliest.
        self._due = min(now + self.timeout, self._redial(), *(line.due() for line in self._lines.values()))

    def attempt(self, line: Line, call: Callable[..., None], *args: object) -> None:
        """Do something with a line. What fails is the end of that line, and of nothing else."""
        try:
            call(*args)
        except ProtocolError as error:
            self.drop(line, stranger(line.server.address, error, self.kind))
        except Unreachable as error:
            self.drop(line, error)
        except BaseException:
            self.drop(line, Unreachable(f"interrupted while talking to {named(line.server.address)}"))
            raise

    def drop(self, line: Line, error: AssistantError) -> None:
        """The end of a line."""
        if self._lines.get((line.role.name, line.index)) is not line:
            return
        del self._lines[line.role.name, line.index]
        self._up.clear()
        self._due = 0.0
        self._unwatch(line)
        line.error = error
        was_up = line.up
        line.close()
        line.server.failed(error)
        if was_up:
            line.role.lost(line)

    def send(self, lines: Iterable[Line]) -> None:
        """Send what these have to say."""
        for line in lines:
            self.attempt(line, line.flush)
            self._watch(line)

    def hopeless(self) -> bool:
        """Whether every server speaks another protocol: waiting does not make the right one of them."""
        return all(isinstance(server.error, ProtocolError) for server in self.servers)

    def unreachable(self) -> Exception:
        """Why there is no server: an error that names them all."""
        errors = [server.error for server in self.servers]
        if self.hopeless():
            return ProtocolError("; ".join(str(error) for error in errors))
        return Unreachable(
            "; ".join(str(server.error or f"{named(server.address)} has not answered yet") for server in self.servers)
        )

    def close(self) -> None:
        """Let go of every connection."""
        for line in self._lines.values():
            line.close()
        self._lines.clear()
        self._polled.clear()
        self._ear.close()
        self._bell.close()

    def _redial(self) -> float:
        """When a server that failed is dialled again."""
        missing = (
            server.not_before
            for role in self._roles
            for index, server in enumerate(self.servers)
            if (role.name, index) not in self._lines
        )
        return min(missing, default=float("inf"))

    def _watch(self, line: Line) -> None:
        mask = line.mask()
        if (mask == line.polled and line.up) or line.stage == "lost":
            return
        descriptor = line.fileno()
        if self._polled.get(descriptor) is not line:
            self._unwatch(line)
            self._poll.register(descriptor, mask)
            self._polled[descriptor] = line
        elif mask != line.polled:
            self._poll.modify(descriptor, mask)
        line.polled = mask

    def _unwatch(self, line: Line) -> None:
        for descriptor, polled in list(self._polled.items()):
            if polled is line:
                del self._polled[descriptor]
                self._poll.unregister(descriptor)
