"""One connection of a client, shared by threads.

    thread 1 ─ submit ─┐                       ┌─▶ sends under the lock
    thread 2 ─ result ─┼─▶ lock · ClientState ─┤
    thread 3 ─ status ─┘                       └─▶ one of those that wait leads: it sleeps in poll without the lock,
                                                   reads under it, tells the others; whoever is served hands on

A thread that waits for long pings the server now and then, so that a connection nobody answers on is found dead.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

from ...errors import ProtocolError, Unreachable
from .client_state import ClientState, Request
from .packets import Kind, Packet
from .stream import Address, Stream, named, stranger

Heard = Callable[[Request, Packet], None]
Lost = Callable[[Request, Exception], None]


class Link:
    """An open connection and its ClientState. Once `error` is set it is dead, and every call raises it."""

    def __init__(
        self,
        address: Address,
        *,
        timeout: float,
        heartbeat: float,
        max_body: int,
        exceptions: bool,
        heard: Heard,
        lost: Lost,
    ) -> None:
        """Connect and greet, within `timeout` seconds. Raises `Unreachable`, `ProtocolError`."""
        self.address = address
        self.error: Exception | None = None
        self.pid = os.getpid()
        self._heartbeat = heartbeat
        self._patience = timeout
        self._heard, self._lost = heard, lost
        self._changed = threading.Condition()
        self._leading = False
        self._last = time.monotonic()  # when we heard from the server
        self._pinged: float | None = None
        deadline = time.monotonic() + timeout
        self._stream = Stream.connect(address, timeout)
        self._state = ClientState(max_body=max_body)
        try:
            hello = self.ask(
                lambda state: [state.option("exceptions") if exceptions else state.echo(b"hello")], deadline
            )
            if not self.wait(lambda: hello[0].answer is not None, deadline):
                raise Unreachable(f"{named(address)} accepts connections, but does not answer Gearman's greeting")
            answer = hello[0].answer
            if answer is not None and answer.kind is Kind.ERROR:
                raise ProtocolError(f"{named(address)} refused the greeting: {answer.args!r:.200}")
        except BaseException as error:
            self.fail(error if isinstance(error, Exception) else Unreachable("interrupted"))
            raise

    def ask(self, fill: Callable[[ClientState], Sequence[Request]], deadline: float) -> Sequence[Request]:
        """Have `fill` put requests to the state, and send them. Raises what `error` says, or `UsageError`."""
        with self._changed:
            self._alive()
            requests = fill(self._state)
            self._send(deadline)
            return requests

    def wait(self, done: Callable[[], bool], deadline: float | None) -> bool:
        """Read until `done()`; False: the deadline (monotonic seconds) passed. Raises what `error` says."""
        with self._changed:
            while not done():
                self._alive()
                now = time.monotonic()
                if deadline is not None and now >= deadline:
                    return False
                if self._leading:
                    self._changed.wait(None if deadline is None else deadline - now)
                    continue
                self._leading = True
                try:
                    self._lead(now, deadline)
                finally:
                    self._leading = False
                    self._changed.notify_all()
            return True

    def sound(self) -> bool:
        """Whether the connection is open, as far as can be told without waiting."""
        with self._changed:
            if self.error is None and not self._leading:
                self._read()
            return self.error is None

    def fail(self, error: Exception) -> None:
        """Close it. All that waits for an answer or an end gets the error."""
        with self._changed:
            if self.error is not None:
                return
            self.error = error
            self._stream.close()
            for request in {id(each): each for each in (*self._state.unanswered, *self._state.running)}.values():
                self._lost(request, error)
            self._changed.notify_all()

    def abandon(self) -> None:
        """Close our copy after a fork, without a word: the parent goes on using the connection."""
        self.error = Unreachable(f"the connection to {named(self.address)} belongs to the process that forked")
        self._stream.close()

    def _alive(self) -> None:
        if self.error is not None:
            raise type(self.error)(*self.error.args) from self.error

    def _lead(self, now: float, deadline: float | None) -> None:
        """Sleep until there is something to read, and read it. Called with the lock, which it drops to sleep."""
        if self._pinged is None and now - self._last >= self._heartbeat:
            self._pinged = now
            self._state.echo(b"ping")
            self._send(now + self._patience)
        due = (self._last + self._heartbeat) if self._pinged is None else (self._pinged + self._patience)
        self._changed.release()
        try:
            self._stream.wait(min(due, deadline if deadline is not None else due) - now)
        finally:
            self._changed.acquire()
        self._read()
        if self.error is None and self._pinged is not None and time.monotonic() >= self._pinged + self._patience:
            self.fail(Unreachable(f"{named(self.address)} has not answered for {self._patience:.3g} s"))

    def _send(self, deadline: float) -> None:
        """Send what the state has, reading meanwhile: the server must not be kept from writing."""
        data = memoryview(self._state.data_to_send())
        try:
            while data:
                sent = self._stream.send(data)
                data = data[sent:]
                if data and not sent:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        raise Unreachable(f"{named(self.address)} takes no more data; {len(data)} bytes are left")
                    self._stream.wait(remaining, write=True)
                    self._read()
                    self._alive()
        except BaseException as error:  # half a packet may be out
            self.fail(error if isinstance(error, Exception) else Unreachable("interrupted while sending"))
            raise

    def _read(self) -> None:
        """Take what is there, now."""
        if self.error is not None:
            return
        try:
            data = self._stream.receive()
        except Unreachable as error:
            self.fail(error)
            return
        if data is None:
            return
        self._last = time.monotonic()
        self._pinged = None
        try:
            for request, packet in self._state.receive(data):
                self._heard(request, packet)
            if self._state.error is not None:
                raise self._state.error
        except ProtocolError as error:
            self.fail(stranger(self.address, error))
