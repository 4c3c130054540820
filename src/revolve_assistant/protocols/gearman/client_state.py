"""A client's side of one connection: what was asked, what is answered, which jobs report here. No socket.

    submission(…), status_request(…), … ──▶ ask ──▶ data_to_send()        receive(bytes) ──▶ [(Request, Packet), …]

gearmand answers the requests of one connection in order, and an ERROR does not say which one it answers: so the
requests wait in a line. The reports of jobs (WORK_*) come in between and go by their handle. Two submissions with
one unique are one job: gearmand then sends each report once for each of them, one after the other; each gets its own.
The first terminal report is the end of a job; gearmand may send another (after `cancel job`), which is dropped.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from ...errors import ProtocolError
from .limits import check_function, check_handle, check_number, check_unique, check_workload
from .packets import MAX_BODY, Decoder, Kind, Packet, encode, number

TERMINAL = frozenset({Kind.WORK_COMPLETE, Kind.WORK_FAIL, Kind.WORK_EXCEPTION})
REPORTS = TERMINAL | {Kind.WORK_DATA, Kind.WORK_WARNING, Kind.WORK_STATUS}

_FOREGROUND = (Kind.SUBMIT_JOB_LOW, Kind.SUBMIT_JOB, Kind.SUBMIT_JOB_HIGH)
_BACKGROUND = (Kind.SUBMIT_JOB_LOW_BG, Kind.SUBMIT_JOB_BG, Kind.SUBMIT_JOB_HIGH_BG)


class Request:
    """One thing asked of a server. `answer` is None until it came; an ERROR is an answer too.

    Of a submission, `handle` is set by its JOB_CREATED; `reports` says whether WORK_* come here (foreground), and
    `ended` whether the last one did. `owner` is the caller's.
    """

    __slots__ = ("packet", "answers", "answer", "handle", "reports", "ended", "owner")

    def __init__(self, packet: Packet, answers: Kind, *, reports: bool = False, owner: Any = None) -> None:
        self.packet = packet
        self.answers = answers
        self.answer: Packet | None = None
        self.handle = b""
        self.reports = reports
        self.ended = False
        self.owner = owner

    def __repr__(self) -> str:
        return f"<Request {self.packet.kind.name} {self.handle!r} {'answered' if self.answer else 'open'}>"


def submission(
    function: str | bytes,
    workload: bytes,
    *,
    unique: str | bytes = b"",
    background: bool = False,
    priority: int = 0,
    at: int | None = None,
    max_body: int = MAX_BODY,
    owner: Any = None,
) -> Request:
    """A job to submit. `priority`: below 0 low, above 0 high. `at` (Unix seconds): not before; in the background then.

    Background jobs need a unique of their own where the server stores its queue; none is made up here.
    """
    name, key = check_function(function), check_unique(unique)
    data = check_workload(workload, max_body - len(name) - len(key) - 80)
    if at is not None:
        packet = Packet(Kind.SUBMIT_JOB_EPOCH, (name, key, check_number(at, "the time to start at"), data))
        background = True
    else:
        which = 1 if priority == 0 else 2 if priority > 0 else 0
        packet = Packet((_BACKGROUND if background else _FOREGROUND)[which], (name, key, data))
    return Request(packet, Kind.JOB_CREATED, reports=not background, owner=owner)


def status_request(handle: str | bytes) -> Request:
    """What the server knows of a job: STATUS_RES."""
    return Request(Packet(Kind.GET_STATUS, (check_handle(handle),)), Kind.STATUS_RES)


def status_unique_request(unique: str | bytes) -> Request:
    """The same, by its unique: STATUS_RES_UNIQUE."""
    return Request(Packet(Kind.GET_STATUS_UNIQUE, (check_unique(unique),)), Kind.STATUS_RES_UNIQUE)


def echo_request(data: bytes, max_body: int = MAX_BODY) -> Request:
    """Have the server send the same bytes back: ECHO_RES."""
    return Request(Packet(Kind.ECHO_REQ, (check_workload(data, max_body),)), Kind.ECHO_RES)


def option_request(name: str) -> Request:
    """Set an option of the connection: OPTION_RES. The only one there is: `exceptions`."""
    return Request(Packet(Kind.OPTION_REQ, (name.encode(),)), Kind.OPTION_RES)


class ClientState:
    """The client of one connection. Not thread-safe; a new connection needs a new one."""

    def __init__(self, *, max_body: int = MAX_BODY) -> None:
        self.max_body = max_body
        self._decoder = Decoder("client", max_body=max_body)
        self._out: list[bytes] = []
        self._open: deque[Request] = deque()
        self._jobs: dict[bytes, list[Request]] = {}
        self._turn: dict[bytes, int] = {}  # whose copy of a report comes next, where several have one handle

    @property
    def error(self) -> ProtocolError | None:
        """Why the stream is over; `receive` raises it at its next call."""
        return self._decoder.error

    @property
    def unanswered(self) -> list[Request]:
        """Requests whose answer has not come, oldest first."""
        return list(self._open)

    @property
    def waiting(self) -> bool:
        """Whether an answer is due."""
        return bool(self._open)

    @property
    def open(self) -> int:
        """How many answers are due."""
        return len(self._open)

    @property
    def running(self) -> list[Request]:
        """Foreground submissions that have a handle and no end."""
        return [request for requests in self._jobs.values() for request in requests]

    def ask(self, request: Request) -> Request:
        """Put a request in the line, after those that wait there; one asked before (elsewhere) becomes as new."""
        request.answer, request.handle, request.ended = None, b"", False
        self._out.append(encode(request.packet))
        self._open.append(request)
        return request

    def ping(self, data: bytes = b"ping") -> None:
        """Have the server answer; `waiting` until it did."""
        self.ask(echo_request(data))

    def data_to_send(self) -> bytes:
        """What must go to the server now; empty: nothing."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes) -> list[tuple[Request, Packet]]:
        """Take bytes from the server: each packet that concerns a request, with that request.

        Raises `ProtocolError`; if sound packets came before what is wrong, they are given first (see `error`).
        """
        found: list[tuple[Request, Packet]] = []
        try:
            for packet in self._decoder.feed(data):
                kind = packet.kind  # type: ignore[union-attr]  # lines are for servers
                if kind in REPORTS:
                    self._report(packet, found)  # type: ignore[arg-type]
                else:
                    self._answer(packet, found)  # type: ignore[arg-type]
        except ProtocolError as error:
            self._decoder.error = error
            if not found:
                raise
        return found

    def end(self) -> None:
        """The connection ended. Raises `ProtocolError` if it did so inside a packet."""
        self._decoder.end()

    def _answer(self, packet: Packet, found: list[tuple[Request, Packet]]) -> None:
        kind = packet.kind
        if not self._open:
            raise ProtocolError(f"{kind.name} answers nothing that was asked: {packet.args!r:.200}")
        request = self._open[0]
        if kind is not request.answers and kind is not Kind.ERROR:
            raise ProtocolError(f"{kind.name} came where {request.answers.name} was due: {packet.args!r:.200}")
        if kind is Kind.STATUS_RES or kind is Kind.STATUS_RES_UNIQUE:
            for arg in packet.args[1:]:
                number(arg, "a status")
        elif kind is Kind.JOB_CREATED:
            handle = request.handle = packet.args[0]
            if not 0 < len(handle) < 64:
                raise ProtocolError(f"a job handle of {len(handle)} bytes: {handle[:80]!r}")
            if request.reports:
                self._jobs.setdefault(handle, []).append(request)
        self._open.popleft()
        request.answer = packet
        found.append((request, packet))

    def _report(self, packet: Packet, found: list[tuple[Request, Packet]]) -> None:
        handle = packet.args[0]
        requests = self._jobs.get(handle)
        if requests is None:
            return  # ended already
        if packet.kind in TERMINAL:
            request = requests.pop(0)
            request.ended = True
            if not requests:
                del self._jobs[handle]
            self._turn.pop(handle, None)
        else:
            if packet.kind is Kind.WORK_STATUS:
                number(packet.args[1], "a numerator")
                number(packet.args[2], "a denominator")
            if len(requests) == 1:
                request = requests[0]
            else:
                turn = self._turn.get(handle, 0) % len(requests)
                request = requests[turn]
                self._turn[handle] = (turn + 1) % len(requests)
        found.append((request, packet))
