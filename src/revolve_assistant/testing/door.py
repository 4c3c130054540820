"""A door between a client and a real server, which a test can shut, cut, stall, slow down and garble.

    client ──▶ Door.port ═══ Rules to_server ═══▶ server
           ◀══════════════ Rules to_client ══════

One thread carries every connection with non-blocking sockets and a selector; a test changes the rules through it, so
that each call has taken effect when it returns. Loopback only, on both sides.
"""

from __future__ import annotations

import collections
import contextlib
import ipaddress
import queue
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Literal, TypeVar

from ..errors import UsageError

Direction = Literal["to_server", "to_client"]
T = TypeVar("T")

_CHUNK = 64 << 10  # bytes read at once
_FULL = 1 << 20  # bytes held by a pipe before it stops reading
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


class Rules:
    """What happens to bytes that go one way."""

    def __init__(self) -> None:
        self.carried = 0  # bytes read from the sender and neither swallowed nor cut off
        self.heal()

    def heal(self) -> None:
        self.swallow = False
        self.delay = 0.0  # seconds
        self.rate = 0.0  # bytes a second; 0: no throttle
        self.slice = 0  # bytes a segment; 0: whole
        self.pause = 0.0  # seconds between segments
        self.cut_at: int | None = None  # counted as `carried`
        self.garble_at: int | None = None


class _Pipe:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, target: socket.socket, rules: Rules) -> None:
        self.source, self.target, self.rules = source, target, rules
        self.held: collections.deque[tuple[float, memoryview]] = collections.deque()  # (due, bytes)
        self.size = 0
        self.next = 0.0  # no byte leaves before
        self.ended = False  # the sender closed its side
        self.done = False  # and the receiver was told
        self.cutting = False
        self.blocked = False  # the receiver takes no more for now

    def read(self) -> None:
        data = bytearray(self.source.recv(_CHUNK))
        rules = self.rules
        if not data:
            self.ended = True
        elif not rules.swallow:
            before, rules.carried = rules.carried, rules.carried + len(data)
            if rules.garble_at is not None and before <= rules.garble_at < rules.carried:
                data[rules.garble_at - before] ^= 0xFF
                rules.garble_at = None
            if rules.cut_at is not None and rules.cut_at <= rules.carried:
                del data[rules.cut_at - before :]
                rules.carried, rules.cut_at = rules.cut_at, None
                self.cutting = True
            if data:
                self.held.append((time.monotonic() + rules.delay, memoryview(data)))
                self.size += len(data)

    def write(self, now: float) -> None:
        rules = self.rules
        while self.held and not self.blocked and max(self.held[0][0], self.next) <= now:
            due, data = self.held.popleft()
            length = len(data)
            if rules.slice:
                length = rules.slice
            elif rules.rate:
                length = max(1, int(rules.rate / 50))
            try:
                sent = self.target.send(data[:length])
            except BlockingIOError:
                sent, self.blocked = 0, True
            self.size -= sent
            if sent < len(data):
                self.held.appendleft((due, data[sent:]))
            if rules.rate:
                self.next = now + sent / rules.rate
            if rules.slice:
                self.next = max(self.next, now + rules.pause)
                now = time.monotonic()

    @property
    def due(self) -> float | None:
        """When there is something to write; None: nothing, or the receiver is full."""
        return max(self.held[0][0], self.next) if self.held and not self.blocked else None


class Door:
    """A TCP proxy to a server on this machine: `with Door(server_port) as door: connect("127.0.0.1", door.port)`.

    Every method may be called from any thread and returns once it holds. Methods with a `direction` act on
    connections open now and later, both ways if it is None. `heal` takes all of that back.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """`host` and `port` are the server's. Nothing is connected yet. Raises `UsageError` if it is not local."""
        if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
            raise UsageError(f"a Door leads to servers on this machine only, not to {host}")
        self._server = (host, port)
        self._selector = selectors.DefaultSelector()
        self._bell, self._listening_bell = socket.socketpair()
        self._listening_bell.setblocking(False)
        self._selector.register(self._listening_bell, selectors.EVENT_READ)
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._rules: dict[Direction, Rules] = {"to_server": Rules(), "to_client": Rules()}
        self._links: list[tuple[_Pipe, _Pipe]] = []
        self._changed = threading.Condition()
        self._accepted = 0
        self._running = True
        self._listener = self._bound(0)
        self.host, self.port = "127.0.0.1", int(self._listener.getsockname()[1])
        self._listen()
        self._thread = threading.Thread(target=self._carry, daemon=True, name=f"door {self.port}")
        self._thread.start()

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- what a test does

    def shut(self) -> None:
        """Refuse new connections; open ones stay. The port remains ours."""
        self._do(self._shut)

    def open(self) -> None:
        """Accept connections (again)."""
        self._do(self._listen)

    def cut(self) -> int:
        """Reset every open connection, on both sides; how many."""
        return self._do(lambda: sum(self._reset(link) for link in list(self._links)))

    def cut_after(self, count: int, direction: Direction) -> None:
        """Let `count` more bytes pass this way (over all connections), then reset the connection they went over."""
        self._set(direction, lambda rules: setattr(rules, "cut_at", rules.carried + count))

    def swallow(self, direction: Direction | None = None) -> None:
        """Take bytes and pass on nothing, not even an end: a half-open connection."""
        self._set(direction, lambda rules: setattr(rules, "swallow", True))

    def delay(self, seconds: float, direction: Direction | None = None) -> None:
        """Pass on everything so many seconds later."""
        self._set(direction, lambda rules: setattr(rules, "delay", seconds))

    def throttle(self, bytes_per_second: float, direction: Direction | None = None) -> None:
        """Pass on so many bytes a second on each connection."""
        self._set(direction, lambda rules: setattr(rules, "rate", bytes_per_second))

    def slice(self, size: int = 1, direction: Direction | None = None, *, pause: float = 0.0002) -> None:
        """Pass on segments of `size` bytes, `pause` seconds apart, so that the receiver reads them one by one."""

        def change(rules: Rules) -> None:
            rules.slice, rules.pause = size, pause

        self._set(direction, change)

    def corrupt(self, index: int, direction: Direction) -> None:
        """Flip every bit of one byte: the one that `index` more bytes precede this way, over all connections."""
        self._set(direction, lambda rules: setattr(rules, "garble_at", rules.carried + index))

    def heal(self) -> None:
        """End every rule and accept connections. What was swallowed stays lost."""

        def heal() -> None:
            for rules in self._rules.values():
                rules.heal()
            self._listen()

        self._do(heal)

    @property
    def accepted(self) -> int:
        """Connections accepted so far."""
        return self._accepted

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._links)

    def carried(self, direction: Direction) -> int:
        """Bytes taken in this way so far, without the swallowed ones."""
        return self._rules[direction].carried

    def wait_for(self, condition: Callable[[Door], object], timeout: float = 10.0) -> bool:
        """Block until `condition(door)` is true, looking again whenever anything happened; False after `timeout`."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: condition(self), timeout))

    def close(self) -> None:
        """Reset what is open, free the port, end the thread. Idempotent."""
        if self._running:
            with contextlib.suppress(RuntimeError):
                self._do(lambda: setattr(self, "_running", False))
        self._thread.join()

    # ---- the thread

    def _do(self, call: Callable[[], T]) -> T:
        """Run it in the door's thread."""
        if not self._running:
            raise UsageError("the door is closed for good")
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)

        self._calls.put(run)
        with contextlib.suppress(OSError):
            self._bell.send(b"!")
        return done.result(10)

    def _set(self, direction: Direction | None, change: Callable[[Rules], object]) -> None:
        chosen = [self._rules[direction]] if direction else list(self._rules.values())
        self._do(lambda: [change(rules) for rules in chosen])

    def _bound(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(("127.0.0.1", port))
        return listener

    def _listen(self) -> None:
        self._listener.listen(128)
        with contextlib.suppress(KeyError):
            self._selector.unregister(self._listener)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _shut(self) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(self._listener)
        self._listener.close()
        self._listener = self._bound(self.port)  # bound and not listening: refuses, and nobody else gets the port

    def _carry(self) -> None:
        try:
            while self._running:
                now = time.monotonic()
                timeout = None
                for pipe in self._pipes():
                    if pipe.due is not None:
                        timeout = min(max(0.0, pipe.due - now), 3600.0 if timeout is None else timeout)
                for key, events in self._selector.select(timeout):
                    if key.fileobj is self._listening_bell:
                        self._listening_bell.recv(4096)
                    elif key.fileobj is self._listener:
                        self._accept()
                    elif key.data in self._links:
                        self._serve(key.data, key.fileobj, events)
                while not self._calls.empty():
                    self._calls.get()()
                for link in list(self._links):
                    self._flush(link)
                with self._changed:
                    self._changed.notify_all()
        finally:
            self._running = False
            for link in list(self._links):
                self._reset(link)
            while not self._calls.empty():
                self._calls.get()()
            self._selector.close()
            for one in (self._listener, self._bell, self._listening_bell):
                one.close()

    def _pipes(self) -> Iterator[_Pipe]:
        for link in self._links:
            yield from link

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        self._accepted += 1
        try:
            server = socket.create_connection(self._server, timeout=5)
        except OSError:
            _close(client, reset=True)
            return
        for one in (client, server):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        to_server = _Pipe(client, server, self._rules["to_server"])
        to_client = _Pipe(server, client, self._rules["to_client"])
        self._links.append((to_server, to_client))

    def _serve(self, link: tuple[_Pipe, _Pipe], ready: object, events: int) -> None:
        for pipe in link:
            if events & selectors.EVENT_WRITE and pipe.target is ready:
                pipe.blocked = False
            if events & selectors.EVENT_READ and pipe.source is ready and not pipe.ended:
                try:
                    pipe.read()
                except BlockingIOError:
                    pass
                except OSError:
                    self._reset(link)
                    return

    def _flush(self, link: tuple[_Pipe, _Pipe]) -> None:
        """Send what is due, then watch for what may come next."""
        try:
            for pipe in link:
                pipe.write(time.monotonic())
                if pipe.cutting and not pipe.held:
                    self._reset(link)
                    return
                if pipe.ended and not pipe.held and not pipe.done and not pipe.rules.swallow:
                    pipe.done = True
                    pipe.target.shutdown(socket.SHUT_WR)
        except OSError:
            self._reset(link)
            return
        if all(pipe.done for pipe in link):
            self._drop(link, reset=False)
            return
        for pipe, back in (link, link[::-1]):
            wanted = 0
            if not pipe.ended and not pipe.cutting and pipe.size < _FULL:
                wanted |= selectors.EVENT_READ
            if back.blocked:
                wanted |= selectors.EVENT_WRITE
            self._watch(pipe.source, wanted, link)

    def _watch(self, one: socket.socket, wanted: int, link: tuple[_Pipe, _Pipe]) -> None:
        known = self._selector.get_map().get(one)
        if known is None:
            if wanted:
                self._selector.register(one, wanted, link)
        elif not wanted:
            self._selector.unregister(one)
        elif known.events != wanted:
            self._selector.modify(one, wanted, link)

    def _reset(self, link: tuple[_Pipe, _Pipe]) -> bool:
        return self._drop(link, reset=True)

    def _drop(self, link: tuple[_Pipe, _Pipe], *, reset: bool) -> bool:
        if link not in self._links:
            return False
        self._links.remove(link)
        for pipe in link:
            with contextlib.suppress(KeyError):
                self._selector.unregister(pipe.source)
            _close(pipe.source, reset=reset)
        return True


def _close(one: socket.socket, *, reset: bool) -> None:
    with contextlib.suppress(OSError):
        if reset:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    one.close()
