"""The text protocol for administrators, on the same port: commands, and what their answers say. No socket.

    state = AdminState(); asked = state.ask(status())
    send(state.data_to_send()); state.receive(bytes) ──▶ [asked], with asked.value or asked.error

There is no `shutdown`: gearmand dropped it in 2016; send it a signal.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from ...errors import ProtocolError, ProviderError, UsageError
from .limits import check_function, check_handle
from .packets import MAX_BODY

T = TypeVar("T")

MAX_LINE = 1 << 20
_ERROR = re.compile(rb"ERR ([A-Z_]*(?= |$))? ?(.*)", re.S)


class Refused(ProviderError):
    """The server refused. `code` is its word for it, `text` the sentence, `accepted` what it took of a batch."""

    code: str = ""
    text: str = ""
    accepted: tuple[object, ...] = ()

    @classmethod
    def of(cls, code: str, text: str, where: str = "the server") -> Refused:
        error = cls(f"{where} refused: {' '.join(filter(None, (code, text)))}")
        error.code, error.text = code, text
        return error


class FunctionStatus(NamedTuple):
    """Jobs of a function: all, those of them that run, and the workers that can do it."""

    total: int
    running: int
    workers: int


class PriorityStatus(NamedTuple):
    """Jobs of a function that wait, by priority, and the workers that can do it."""

    high: int
    normal: int
    low: int
    workers: int


class WorkerInfo(NamedTuple):
    """A connection: its descriptor in the server, its address, its client id (`-`: none), its functions."""

    fd: int
    address: str
    client_id: str
    functions: tuple[str, ...]


class JobInfo(NamedTuple):
    """A job: its handle, how often it was retried, whether it is ignored, whether it lies in the stored queue."""

    handle: str
    retries: int
    ignored: bool
    stored: bool


class Command(NamedTuple, Generic[T]):
    """A line to send, whether its answer is a list that ends with a dot, and how to read its lines."""

    line: bytes
    many: bool
    parse: Callable[[list[bytes]], T]


def status() -> Command[dict[str, FunctionStatus]]:
    return Command(b"status", True, lambda lines: {n: FunctionStatus(*v) for n, v in _table(lines, 3)})


def prioritystatus() -> Command[dict[str, PriorityStatus]]:
    return Command(b"prioritystatus", True, lambda lines: {n: PriorityStatus(*v) for n, v in _table(lines, 4)})


def workers() -> Command[list[WorkerInfo]]:
    return Command(b"workers", True, lambda lines: [_worker(line) for line in lines])


def show_jobs() -> Command[list[JobInfo]]:
    return Command(
        b"show jobs", True, lambda lines: [JobInfo(n, v[0], bool(v[1]), bool(v[2])) for n, v in _table(lines, 3)]
    )


def show_unique_jobs() -> Command[list[str]]:
    return Command(b"show unique jobs", True, lambda lines: [_text(line) for line in lines])


def cancel_job(handle: str | bytes) -> Command[bool]:
    """True: its clients got WORK_FAIL, and it will not start; if it runs, it goes on. False: no such job."""
    return Command(b"cancel job " + check_handle(handle), False, _ok)


def maxqueue(function: str | bytes, *limits: int) -> Command[bool]:
    """The most jobs of a function that may wait: none (no limit), one number, or high, normal and low.

    gearmand says OK for a function that it does not know too, and does nothing.
    """
    if len(limits) not in (0, 1, 3) or not all(isinstance(limit, int) for limit in limits):
        raise UsageError(f"maxqueue takes no limit, one, or three (high, normal, low), not {limits!r}")
    line = b" ".join([b"maxqueue", check_function(function), *(b"%d" % limit for limit in limits)])
    return Command(line, False, _ok)


def create_function(function: str | bytes) -> Command[bool]:
    return Command(b"create function " + check_function(function), False, _ok)


def drop_function(function: str | bytes) -> Command[bool]:
    """Refused while it has workers or jobs."""
    return Command(b"drop function " + check_function(function), False, _ok)


def getpid() -> Command[int]:
    return Command(b"getpid", False, lambda lines: _int(_value(lines)))


def version() -> Command[str]:
    return Command(b"version", False, lambda lines: _text(_value(lines)))


def verbose() -> Command[str]:
    """How much the server logs: ERROR, INFO, DEBUG …"""
    return Command(b"verbose", False, lambda lines: _text(_value(lines)))


class Asked(Generic[T]):
    """A command under way. Once `done` it has a `value` or an `error`."""

    def __init__(self, command: Command[T]) -> None:
        self.command = command
        self.done = False
        self.error: Refused | None = None
        self.value: T | None = None
        self._lines: list[bytes] = []


class AdminState:
    """One connection of an administrator. Not thread-safe. Commands may be pipelined."""

    def __init__(self, *, max_bytes: int = MAX_BODY) -> None:
        """An answer of more than `max_bytes` bytes is a `ProtocolError`."""
        self.max_bytes = max_bytes
        self._out: list[bytes] = []
        self._open: deque[Asked[object]] = deque()
        self._held = bytearray()
        self._size = 0  # bytes of the present answer so far
        self.error: ProtocolError | None = None

    def ask(self, command: Command[T]) -> Asked[T]:
        asked = Asked(command)
        self._out.append(command.line + b"\r\n")  # after LF alone, 1.1.20 takes "create function abc" for "ab"
        self._open.append(asked)  # type: ignore[arg-type]
        return asked

    def data_to_send(self) -> bytes:
        data = b"".join(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes) -> list[Asked[object]]:
        """Take bytes from the server; the commands that are answered now.

        Raises `ProtocolError`, then always; after answers in the same bytes only with the next call (see `error`).
        """
        if self.error is not None:
            raise self.error
        done: list[Asked[object]] = []
        try:
            self._held += data
            if b"\n" in data:
                *lines, rest = bytes(self._held).split(b"\n")
                self._held[:] = rest
                for line in lines:
                    self._line(line.removesuffix(b"\r"), done)
            if len(self._held) > MAX_LINE:
                raise ProtocolError(f"a line longer than {MAX_LINE} bytes: {bytes(self._held[:60])!r}…")
        except ProtocolError as error:
            self.error = error
            if not done:
                raise
        return done

    def _line(self, line: bytes, done: list[Asked[object]]) -> None:
        if not self._open:
            raise ProtocolError(f"an answer to nothing that was asked: {line[:60]!r}")
        asked = self._open[0]
        lines, many = asked._lines, asked.command.many
        self._size += len(line)
        if self._size > self.max_bytes:
            raise ProtocolError(f"the answer to {asked.command.line.decode()!r} is longer than {self.max_bytes} bytes")
        if not lines and (found := _ERROR.match(line)):
            code, text = _text(found[1] or b""), _text(found[2]).replace("+", " ")
            if asked.command.parse is _ok and code == "UNKNOWN_JOB":
                asked.value = False
            else:
                asked.error = Refused.of(code, text)
        elif many and line != b".":
            lines.append(line)
            return
        else:
            asked.value = asked.command.parse(lines if many else [line])
        self._size = 0
        asked._lines = []
        asked.done = True
        self._open.popleft()
        done.append(asked)


def _table(lines: list[bytes], columns: int) -> list[tuple[str, list[int]]]:
    rows = []
    for line in lines:
        name, *cells = line.rsplit(b"\t", columns)
        if len(cells) != columns:
            raise ProtocolError(f"a name and {columns} numbers were due, this came: {line[:100]!r}")
        rows.append((_text(name), [_int(cell) for cell in cells]))
    return rows


def _worker(line: bytes) -> WorkerInfo:
    cells = line.split(b" ", 3)
    if len(cells) != 4 or not cells[3].startswith(b":"):
        raise ProtocolError(f"`fd address id : functions` was due, this came: {line[:100]!r}")
    names = tuple(_text(name) for name in cells[3][1:].split())
    return WorkerInfo(_int(cells[0]), _text(cells[1]), _text(cells[2]), names)


def _ok(lines: list[bytes]) -> bool:
    if not lines[0].startswith(b"OK"):
        raise ProtocolError(f"OK was due, this came: {lines[0][:100]!r}")
    return True


def _value(lines: list[bytes]) -> bytes:
    _ok(lines)
    return lines[0][2:].strip()


def _int(text: bytes) -> int:
    if not re.fullmatch(rb"-?[0-9]{1,20}", text):
        raise ProtocolError(f"a number was due, this came: {text[:60]!r}")
    return int(text)


def _text(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
