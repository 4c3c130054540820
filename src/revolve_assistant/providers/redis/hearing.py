"""How a taker listens: its channel, what it has been given so far, and what wakes it.

    server ══ message: leases ══▶ connection ─┐
                                              ├─ poll ─▶ listen
    wake, from any thread ──▶ socket pair ────┘

The connection is the same that commands go over: in RESP3 messages come in between answers.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from hiredis import ReplyError

from ...engine import Lease
from ...errors import ProviderError
from .address import Place
from .connection import Connection
from .scripts import script

log = logging.getLogger("revolve_assistant")

LINGER = 0.002  # seconds
RETURN = 5.0  # seconds, and the time-out, in which a taker has come back to a server that was started anew
_MARK = b"revolve"


class Hearing:
    """Part of a Queue. `wake` may be called from any thread."""

    def __init__(self, place: Place, base: bytes, lease: int, fetch: Callable[[bytes], bytes]) -> None:
        """`fetch` gets the body of a task, on another connection."""
        self.taker = os.urandom(6).hex()
        self.seen = 0  # number of the last leases that came
        self.run = b""  # of the server that we are connected to
        self.listens = False  # somebody takes here
        self.about: tuple[str, bytes] = ("", b"")
        self.known = False  # the server knows us
        self.woken = False
        self._place = place
        self._base = base
        self._channel = base + b":ear:" + self.taker.encode()
        self._lease = lease
        self._fetch = fetch
        self._greeted = 0  # which of the line's connections knows us
        self._bell: tuple[socket.socket, socket.socket] | None = None

    # ---- to be known

    def greet(self, line: Connection) -> bool:
        """Have the server know us, and tell us what comes: once for each connection. True: just now."""
        if not self.listens or self.knows(line):
            return False
        line.ready()
        line.probe()
        hello = (script("hello"), 1, self._base, self.taker, self.seen)
        info, memory = line.exchange([("INFO", "server"), ("INFO", "memory")])
        self.run = run_of(info)
        policy = _said(memory, b"maxmemory_policy")
        if policy not in (b"", b"noeviction") and _said(memory, b"maxmemory") not in (b"", b"0"):
            log.warning(
                "redis at %s throws keys away when its memory is full, tasks too (maxmemory-policy %s): "
                "set it to noeviction", line.where, policy.decode(),
            )  # fmt: skip
        line.send([("SUBSCRIBE", self._channel), ("ECHO", _MARK)])  # only an error answers the first one
        failure = None
        while (answer := line.take(time.monotonic() + self._place.timeout)) != _MARK:
            failure = failure or answer
        if isinstance(failure, ReplyError):
            error = line.failure(failure)
            if "NOPERM" in str(failure):
                error = ProviderError(f"{error}; a worker also needs the channels '{{{self._place.namespace}}}:*'")
            raise error
        away = round((RETURN + self._place.timeout) * 1000)
        (answer,) = line.exchange([(*hello, self.run, self._lease, *self.about, away)])
        if isinstance(answer, ReplyError):
            raise line.failure(answer)
        self._greeted = line.made
        self.known = True
        return True

    def knows(self, line: Connection) -> bool:
        """Whether that connection has been greeted."""
        return self._greeted == line.made

    def forgotten(self) -> None:
        """The server does not know us any more."""
        self._greeted = 0

    # ---- to hear

    def wake(self) -> None:
        self.woken = True
        bell = self._bell
        if bell is not None:
            try:
                bell[1].send(b"!")
            except OSError:  # full, or closed
                pass

    def rest(self) -> None:
        """A take ends: it has been woken."""
        self.woken = False

    def listen(self, line: Connection, seconds: float) -> list[Lease]:
        """Leases that come within so many seconds; none when it is woken, or should look again.

        Once woken it listens for a moment longer: if a task comes just then, as it does when one follows another, then
        the server need not be told that nobody waits, and again that somebody does.
        """
        deadline = time.monotonic() + seconds
        ending = False
        made = line.made
        bell = self._bell
        if bell is None:
            bell = self._bell = socket.socketpair()
            for each in bell:
                each.setblocking(False)
        poll = select.poll()
        poll.register(bell[0], select.POLLIN)
        poll.register(line.fileno(), select.POLLIN)
        while True:
            try:
                line.gather()
            except ProviderError:
                return []  # it looks again, on a new connection
            found = self._heard(line)
            if found is not None:
                return found
            left = deadline - time.monotonic()
            if self.woken and not ending:
                ending = True
                left = min(left, LINGER)
                deadline = time.monotonic() + left
            if left <= 0 or not line.open or line.made != made:
                return []
            for number, _ in poll.poll(left * 1000):
                if number == bell[0].fileno():
                    try:
                        bell[0].recv(4096)
                    except OSError:
                        pass

    def _heard(self, line: Connection) -> list[Lease] | None:
        while line.pushed:
            push = line.pushed.popleft()
            if push[0] != b"message" or push[1] != self._channel:
                continue
            if not push[2]:
                return []
            leases = self.leases(_parts(push[2]))
            if leases:
                return leases
        return None

    def leases(self, answer: list[Any]) -> list[Lease]:
        """What a script or a message gives, unless it was seen before."""
        number = int(answer[0])
        if number <= self.seen:
            return []
        token = f"{self.taker}:{number}"
        fetch = self._fetch
        leases = [
            Lease(
                answer[at].decode(),
                body if (body := answer[at + 3]) is not None else fetch(answer[at]),
                answer[at + 1].decode(),
                int(answer[at + 2]),
                token,
            )
            for at in range(2, len(answer), 4)
        ]
        self.seen = number  # not before: what cannot be fetched now is given again
        return leases

    def close(self) -> None:
        self.known = False
        self._greeted = 0
        bell, self._bell = self._bell, None
        if bell is not None:
            for each in bell:
                each.close()


def _parts(message: bytes) -> list[Any]:
    """The parts of a message: a line of its number and their sizes, and then they follow."""
    line, _, rest = message.partition(b"\n")  # a size of -1: a body to be fetched
    number, *sizes = line.split()
    parts: list[Any] = [number, 0]
    at = 0
    for size in map(int, sizes):
        if size < 0:
            parts.append(None)
        else:
            parts.append(rest[at : at + size])
            at += size
    return parts


def run_of(info: Any) -> bytes:
    """Which run of which server it is; nothing: nobody tells us, and so nobody is taken to be dead."""
    return _said(info, b"run_id")


def _said(info: Any, name: bytes) -> bytes:
    """What INFO says of something; nothing: it is not there, or nobody may ask."""
    if isinstance(info, ReplyError):
        return b""
    text = info if isinstance(info, bytes) else str(info).encode()
    for line in text.splitlines():
        if line.startswith(name + b":"):
            return line.partition(b":")[2].strip()
    return b""
