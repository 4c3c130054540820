"""A worker's side of one connection: its functions, how it grabs, which jobs it holds. No socket.

    grab ──▶ JOB_ASSIGN ──▶ hold, and grab again while there is room (`limit` jobs on the connection)
      ▲ └──▶ NO_JOB ──▶ PRE_SLEEP, asleep ──▶ NOOP ─┬──▶ one grab and PRE_SLEEP in one, if it stands by
      └─────────────────────────────────────────────┘

gearmand sends one NOOP for each PRE_SLEEP, however many jobs come, and a NOOP may be stale: it always means "grab until
there is nothing". To a PRE_SLEEP while there are jobs it answers with a NOOP at once. Grabs are pipelined: one at
first, twice as many after each round that found as many jobs. A job belongs to the connection that grabbed it. When
that ends, gearmand gives the job to another worker; whoever still reports on it here is told so (`Assignment.ended`).
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any, NamedTuple

from ...errors import ProtocolError, UsageError
from .limits import check_client_id, check_function, check_number, check_workload
from .packets import MAX_BODY, Decoder, Kind, Packet, encode

_PING = b"ping"
_COMPLETE = struct.Struct(">4sII").pack
_GRAB = encode(Packet(Kind.GRAB_JOB_UNIQ))
_GRAB_ONE = _GRAB + encode(Packet(Kind.PRE_SLEEP))
_ASSIGNS = frozenset({Kind.JOB_ASSIGN, Kind.JOB_ASSIGN_UNIQ, Kind.JOB_ASSIGN_ALL})


class Assignment:
    """A job that this worker holds until it has `ended`. `owner` is the caller's."""

    __slots__ = ("handle", "function", "unique", "reducer", "workload", "ended", "owner")

    def __init__(self, packet: Packet) -> None:
        self.handle, self.function = packet.args[:2]
        self.workload = packet.args[-1]
        self.unique = packet.args[2] if len(packet.args) > 3 else b""
        self.reducer = packet.args[3] if len(packet.args) > 4 else b""
        self.ended = False
        self.owner: Any = None

    def __repr__(self) -> str:
        return f"<Assignment {self.handle!r} {self.function!r}>"


class Refusal(NamedTuple):
    """An ERROR of the server: as a rule JOB_NOT_FOUND, a report on a job that is no longer ours."""

    code: str
    text: str


class WorkerState:
    """The worker of one connection. Not thread-safe; a new connection needs a new one."""

    def __init__(self, *, limit: int = 1, max_body: int = MAX_BODY) -> None:
        """It holds up to `limit` jobs at a time; 0 grabs nothing by itself. `limit` may be changed."""
        self.limit = limit
        self.max_body = max_body
        self.asleep = False
        self.functions: set[bytes] = set()
        self.held: set[Assignment] = set()
        self._decoder = Decoder("client", max_body=max_body)
        self._out: list[bytes] = []
        self._grabs = 0  # sent and not answered
        self._found = False  # the present round of grabs found a job
        self._empty = False  # … and came to an end of them
        self._stride = 1
        self._most = 1  # jobs that the last grabs were for
        self._by_hand = False  # `grab` sent them
        self._standing = False  # the next NOOP is answered with a grab
        self._drowsy = False  # … which was, and with a PRE_SLEEP behind it
        self._echoes: deque[bytes] = deque()

    @property
    def error(self) -> ProtocolError | None:
        """Why the stream is over; `receive` raises it at its next call."""
        return self._decoder.error

    @property
    def pinged(self) -> bool:
        """Whether an answer to `ping` is due."""
        return bool(self._echoes)

    @property
    def grabs(self) -> int:
        """Grabs whose answers are due."""
        return self._grabs

    @property
    def drowsy(self) -> bool:
        """Whether the answer to a grab is due that was sent because it stood by; see `stand_by`."""
        return self._drowsy

    @property
    def waiting(self) -> bool:
        """Whether an answer is due, to a grab or a ping."""
        return bool(self._grabs or self._echoes)

    # ---- what it can do

    def can_do(self, function: str | bytes) -> None:
        """Take jobs of this function. Said twice it counts once: gearmand would count it twice."""
        name = check_function(function)
        if name not in self.functions:
            self.functions.add(name)
            self._send(Kind.CAN_DO, name)
            self.nudge()  # jobs of this function may wait

    def cant_do(self, function: str | bytes) -> None:
        """Take no more jobs of this function. One not known is passed over."""
        name = check_function(function)
        if name in self.functions:
            self.functions.remove(name)
            self._send(Kind.CANT_DO, name)

    def reset(self) -> None:
        """Take no more jobs at all, until the next `can_do`."""
        self.functions.clear()
        self._send(Kind.RESET_ABILITIES)

    def client_id(self, name: str | bytes) -> None:
        """What the server's list of workers calls this one."""
        self._send(Kind.SET_CLIENT_ID, check_client_id(name))

    # ---- taking jobs

    def _grab(self) -> None:
        """Ask for jobs, if there is room and nothing says that there are none."""
        if self.limit > len(self.held):
            self._by_hand = False
            self._ask(self.limit - len(self.held))

    def grab(self, most: int) -> None:
        """Ask for up to `most` jobs, whatever the limit (which is 0 for whoever calls this): nothing while asleep, or
        while answers to grabs are due. When there are no more it sleeps."""
        self._by_hand = True
        self._ask(most)

    def _ask(self, most: int) -> None:
        if most > 0 and not self.asleep and self.functions and not self._grabs:
            self._found = self._empty = False
            self._grabs = min(most, self._stride)
            self._most = most
            self._out.append(_GRAB * self._grabs)

    def stand_by(self, ready: bool) -> None:
        """Whether to take one job, by hand, as soon as the server wakes us. Once; then it sleeps again, or is woken
        again because there is more."""
        self._standing = ready

    def nudge(self) -> None:
        """Ask once more though asleep. Every 10 s or so: gearmand before 2.0 wakes nobody for a job due by time."""
        self.asleep = self._drowsy = False

    def ping(self, data: bytes = _PING) -> None:
        """Have the server send the bytes back, to see whether it is there (`pinged`)."""
        self._echoes.append(data)
        self._send(Kind.ECHO_REQ, data)

    def data_to_send(self) -> bytes:
        """What must go to the server now, grabs included; empty: nothing."""
        self._grab()
        data = b"".join(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes) -> list[Assignment | Refusal]:
        """Take bytes from the server: the jobs that it assigned, and its refusals; then see `data_to_send`.

        Raises `ProtocolError`; if sound packets came before what is wrong, they are given first (see `error`).
        """
        found: list[Assignment | Refusal] = []
        try:
            for packet in self._decoder.feed(data):
                self._take(packet, found)  # type: ignore[arg-type]  # lines are for servers
        except ProtocolError as error:
            self._decoder.error = error
            if not found:
                raise
        return found

    def end(self) -> None:
        """The connection ended, and every job held with it. Raises `ProtocolError` if it did so inside a packet."""
        for job in self.held:
            job.ended = True
        self.held.clear()
        self._decoder.end()

    # ---- reporting on a job. Raises `UsageError` if it has ended, or ended with its connection

    def status(self, job: Assignment, numerator: int, denominator: int) -> None:
        """How far it is. Both from 0 to 2³²−1."""
        self._report(
            Kind.WORK_STATUS, job, check_number(numerator, "numerator"), check_number(denominator, "denominator")
        )

    def data(self, job: Assignment, data: bytes) -> None:
        """A part of the result, at once."""
        self._report(Kind.WORK_DATA, job, self._checked(data))

    def warning(self, job: Assignment, data: bytes) -> None:
        """A warning."""
        self._report(Kind.WORK_WARNING, job, self._checked(data))

    def complete(self, job: Assignment, result: bytes = b"") -> None:
        """Its result, and its end."""
        if result or job not in self.held:
            self._report(Kind.WORK_COMPLETE, job, self._checked(result))
        else:  # of background jobs there are thousands
            self._out.append(_COMPLETE(b"\0REQ", 13, len(job.handle) + 1) + job.handle + b"\0")
            self.held.remove(job)
            job.ended = True
            return
        self._end(job)

    def fail(self, job: Assignment) -> None:
        """It failed, and ends."""
        self._report(Kind.WORK_FAIL, job)
        self._end(job)

    def exception(self, job: Assignment, data: bytes) -> None:
        """It failed with this, and ends. Clients without the option `exceptions` see a failure without the bytes."""
        self._report(Kind.WORK_EXCEPTION, job, self._checked(data))
        self._end(job)

    # ---- within

    def _take(self, packet: Packet, found: list[Assignment | Refusal]) -> None:
        kind = packet.kind
        if kind in _ASSIGNS:
            self._answered(kind)
            self._found = True
            job = Assignment(packet)
            self.held.add(job)
            found.append(job)
        elif kind is Kind.NO_JOB:
            self._answered(kind)
            self._empty = True
        elif kind is Kind.NOOP:
            # Asleep it wakes us. Awake it is stale, or the answer to a grab is under way: never grab twice for it.
            if self._standing and self.asleep and self.functions and not self._grabs:
                self._standing = self._found = self._empty = False
                self._by_hand = self._drowsy = True
                self._grabs = self._stride = 1
                self._out.append(_GRAB_ONE)
            self.asleep = False
        elif kind is Kind.ECHO_RES:
            if not self._echoes or self._echoes.popleft() != packet.args[0]:
                raise ProtocolError(f"an echo of what was not sent: {packet.args[0][:60]!r}")
        elif kind is Kind.ERROR:
            found.append(Refusal(*(arg.decode("utf-8", "backslashreplace") for arg in packet.args)))
        else:
            raise ProtocolError(f"{kind.name} is nothing that a worker receives: {packet.args!r:.200}")
        if self._grabs:
            return
        if self._drowsy:
            self._drowsy = self._empty = False
            self.asleep = True
        if self._empty:
            self._empty = False
            self._stride = 1
            if len(self.held) < self.limit or self._by_hand:
                self.asleep = True
                self._send(Kind.PRE_SLEEP)
        elif self._found:
            self._found = False
            self._stride = min(self._stride * 2, max(self.limit, self._most, 1))

    def _answered(self, kind: Kind) -> None:
        if not self._grabs:
            raise ProtocolError(f"{kind.name} answers no grab")
        self._grabs -= 1

    def _checked(self, data: bytes) -> bytes:
        return check_workload(data, self.max_body - 80)

    def _report(self, kind: Kind, job: Assignment, *args: bytes) -> None:
        if job not in self.held:
            raise UsageError(f"job {job.handle.decode(errors='replace')} has ended; nothing more can be said of it")
        self._send(kind, job.handle, *args)

    def _end(self, job: Assignment) -> None:
        job.ended = True
        self.held.discard(job)

    def _send(self, kind: Kind, *args: bytes) -> None:
        self._out.append(encode(Packet(kind, args)))
