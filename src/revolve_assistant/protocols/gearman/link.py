"""One connection of a client, shared by threads.

    thread 1 ─ submit ─┐                       ┌─▶ sends under the lock what goes at once
    thread 2 ─ result ─┼─▶ lock · ClientState ─┤
    thread 3 ─ status ─┘                       └─▶ one of those that wait sleeps in poll without the lock, reads (and
                                                   sends the rest) under it, tells the others; whoever is served
                                                   hands on. The lock is never held for longer than one system call.

A thread that waits for long pings the server now and then, so that a connection nobody answers on is found dead.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable

from ...errors import ProtocolError, Unreachable
from ..stream import Address, Stream, named, stranger
from .client_state import ClientState, Request, echo_request, option_request
from .packets import Kind, Packet

Heard = Callable[[Request, Packet], None]
Lost = Callable[[Request, Exception], None]

_SLICE = 1 << 20  # bytes sent at once


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
        self._polling = 0  # threads
        self._out = bytearray()
        self.last_heard = time.monotonic()
        self._pinged: float | None = None
        deadline = time.monotonic() + timeout
        self._stream = Stream.connect(address, timeout)
        self._state = ClientState(max_body=max_body)
        try:
            hello = option_request("exceptions") if exceptions else echo_request(b"hello")
            self.ask([hello])
            if not self.wait(lambda: hello.answer is not None, deadline):
                raise Unreachable(f"{named(address)} accepts connections, but does not answer Gearman's greeting")
            if hello.answer is not None and hello.answer.kind is Kind.ERROR:
                raise ProtocolError(f"{named(address)} refused the greeting: {hello.answer.args!r:.200}")
        except BaseException as error:
            self.fail(error if isinstance(error, Exception) else Unreachable("interrupted"))
            raise

    def ask(self, requests: Iterable[Request]) -> None:
        """Send the requests, with as few system calls as go; what does not go at once goes while somebody waits.

        Raises what `error` says. Does not block.
        """
        with self._changed:
            self._alive()
            for request in requests:
                self._state.ask(request)
            self._flush()
            self._alive()

    def wait(self, done: Callable[[], bool], deadline: float | None) -> bool:
        """Read until `done()`; False: the deadline (monotonic seconds) passed. Raises what `error` says."""
        with self._changed:
            while not done():
                self._alive()
                now = time.monotonic()
                if deadline is not None and now >= deadline:
                    return False
                if self._polling and not self._out:
                    self._changed.wait(None if deadline is None else deadline - now)
                    continue
                self._polling += 1
                try:
                    self._poll(now, deadline)
                finally:
                    self._polling -= 1
                    if self.error is not None and not self._polling:
                        self._stream.close()
                    self._changed.notify_all()
            return True

    def sound(self) -> bool:
        """Whether the connection is open, as far as can be told without waiting."""
        with self._changed:
            if self.error is None and not self._polling:
                self._read()
            return self.error is None

    def fail(self, error: Exception) -> None:
        """Close it. All that waits for an answer or an end gets the error."""
        with self._changed:
            if self.error is not None:
                return
            self.error = error
            self._stream.shutdown()  # wakes whoever polls it, and then closes it
            if not self._polling:
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

    def _poll(self, now: float, deadline: float | None) -> None:
        """Sleep until there is something to read or room to write. Called with the lock, and drops it to sleep."""
        if self._pinged is None and now - self.last_heard >= self._heartbeat:
            self._pinged = now
            self._state.ask(echo_request(b"ping"))
            self._flush()
            if self.error is not None:
                return
        due = (self.last_heard + self._heartbeat) if self._pinged is None else (self._pinged + self._patience)
        write = bool(self._out)
        self._changed.release()
        try:
            self._stream.wait(min(due, deadline if deadline is not None else due) - now, write=write)
        finally:
            self._changed.acquire()
        if write:
            self._flush()
        self._read()
        if self.error is None and self._pinged is not None and time.monotonic() >= self._pinged + self._patience:
            self.fail(Unreachable(f"{named(self.address)} has not answered for {self._patience:.3g} s"))

    def _flush(self) -> None:
        """Send what goes now. The lock is never held for longer than that."""
        out = self._out
        try:
            data = self._state.data_to_send()
            if not out and data:
                out += memoryview(data)[self._stream.send(data) :]
            else:
                out += data
            while out:
                with memoryview(out) as all_of_it, all_of_it[:_SLICE] as some:
                    sent = self._stream.send(some)
                if not sent:
                    return
                del out[:sent]
                if self._pinged is not None:  # it takes what we send, and the ping stands behind that
                    self._pinged = time.monotonic()
        except Unreachable as error:
            self.fail(error)
        except BaseException:  # who knows what is out
            self.fail(Unreachable(f"interrupted while sending to {named(self.address)}"))
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
        self.last_heard = time.monotonic()
        self._pinged = None
        try:
            for request, packet in self._state.receive(data):
                self._heard(request, packet)
            if self._state.error is not None:
                raise self._state.error
        except ProtocolError as error:
            self.fail(stranger(self.address, error))
