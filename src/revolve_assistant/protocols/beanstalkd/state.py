"""One connection to beanstalkd: what was asked, what is answered. No socket.

    put(…), reserve(…), touch(…) ──▶ ask ──▶ data_to_send()        receive(bytes) ──▶ [(Request, Answer), …]

Answers come in the order of the requests, so any number of them may be under way. A reserve that waits at the server is
the exception: until it is answered the server reads nothing else of this connection. `reserving` says that one is under
way; whoever wants something has the server answer it first, by a job in a tube that only this connection watches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ...errors import ProtocolError
from .commands import BODIES, COMMON, Answer, Request, list_tube_used, stats

MAX_BODY = 64 << 20
"""Bytes of the longest answer that is read; a longer one is refused before anything is allocated for it."""
_MAX_LINE = 512  # bytes of an answer's first line; a tube's name is the longest thing in one
_MAX_DIGITS = 20
_PLAIN = {word: Answer(word) for word in (b"DELETED", b"NOT_FOUND", b"TIMED_OUT", b"TOUCHED", b"RELEASED", b"BURIED")}


class ConnectionState:
    """Not thread-safe; a new connection needs a new one. `greeted`: the server has answered its first ping."""

    def __init__(self, *, max_body: int = MAX_BODY) -> None:
        self.max_body = max_body
        self.error: ProtocolError | None = None
        self.greeted: Request | None = None
        self._out: list[bytes] = []
        self._open: deque[Request] = deque()
        self._buffer = b""
        self._parts: list[bytes] = []  # of a long body, joined once it is whole
        self._missing = 0  # bytes of it, its end of line included
        self._head: tuple[bytes, int] = (b"", -1)
        self._patient = 0.0  # seconds that the last request waits at the server
        self._doubted = False  # a ping is due while it waits

    @property
    def open(self) -> int:
        """How many answers are due."""
        return len(self._open)

    @property
    def reserving(self) -> bool:
        """Whether a reserve is under way that waits at the server."""
        return self._patient > 0

    @property
    def waiting(self) -> bool:
        """Whether an answer is due at once: not to a reserve that waits, nor to what was asked behind it."""
        if not self._open:
            return False
        return self._open[0].patience <= 0 or self._doubted

    @property
    def unsent(self) -> bool:
        """Whether there is something to be sent."""
        return bool(self._out)

    @property
    def unanswered(self) -> list[Request]:
        """Requests whose answer has not come, oldest first."""
        return list(self._open)

    def ask(self, request: Request) -> Request:
        """Put a request in the line; one asked before (elsewhere) becomes as new."""
        request.answer = None
        self._out.append(request.data)
        self._open.append(request)
        if request.patience > 0:
            self._patient = request.patience
        return request

    def ask_all(self, data: bytes, requests: Iterable[Request]) -> None:
        """The same for several at once, of which `data` are all bytes. None of them may wait at the server. The same
        request may stand for several whose answers nobody looks up there; all answers come to `receive` in any case."""
        self._out.append(data)
        self._open.extend(requests)

    def ping(self, data: bytes = b"") -> None:
        """Have the server answer; at first with what it says of itself, see `greeted`. A reserve that waits is given up
        on if nothing comes from now on, rather than something being asked behind it."""
        if self.greeted is None:
            self.greeted = self.ask(stats())
        elif self._patient > 0:
            self._doubted = True
        else:
            self.ask(list_tube_used())

    def data_to_send(self) -> bytes:
        """What must go to the server now; empty: nothing."""
        out = self._out
        if not out:
            return b""
        data = b"".join(out) if len(out) > 1 else out[0]
        out.clear()
        return data

    def receive(self, data: bytes) -> list[tuple[Request, Answer]]:
        """Take bytes from the server: each answer with its request.

        Raises `ProtocolError`; if sound answers came before what is wrong, they are given first (see `error`).
        """
        if self.error is not None:
            raise self.error
        found: list[tuple[Request, Answer]] = []
        self._doubted = False
        try:
            self._read(data, found)
        except ProtocolError as error:
            self.error = error
            self._buffer, self._parts = b"", []
            if not found:
                raise
        return found

    def end(self) -> None:
        """The connection ended. Raises `ProtocolError` if it did so inside an answer."""
        if self._buffer or self._missing:
            raise ProtocolError("the connection ended inside an answer")

    # ---- within

    def _read(self, data: bytes, found: list[tuple[Request, Answer]]) -> None:
        if self._missing:
            if len(data) < self._missing:
                self._parts.append(data)
                self._missing -= len(data)
                return
            at = self._missing
            self._parts.append(data[:at])
            body, self._parts, self._missing = b"".join(self._parts), [], 0
            if body[-2:] != b"\r\n":
                raise _endless(len(body) - 2)
            self._answer(Answer(*self._head, body[:-2]), found)
        else:
            at = 0
            if self._buffer:
                data = self._buffer + data
                self._buffer = b""
        size = len(data)
        while at < size:
            end = data.find(b"\r\n", at, at + _MAX_LINE)
            if end < 0:
                if size - at >= _MAX_LINE:
                    raise ProtocolError(f"no answer of beanstalkd: {data[at : at + 80]!r}")
                self._buffer = data[at:]
                self._early(self._buffer)
                return
            line = data[at:end]
            at = end + 2
            answer = _PLAIN.get(line)
            if answer is None:
                word, _, rest = line.partition(b" ")
                if word in BODIES:
                    at = self._begin(word, rest, data, at, found)
                    continue
                number = int(rest) if rest.isdigit() and len(rest) <= _MAX_DIGITS else -1
                answer = Answer(word, number, b"", rest)
            self._answer(answer, found)

    def _begin(self, word: bytes, rest: bytes, data: bytes, at: int, found: list[tuple[Request, Answer]]) -> int:
        """An answer that bytes follow; where in the data to go on."""
        first, _, size = rest.rpartition(b" ")
        if not size.isdigit() or len(rest) > 2 * _MAX_DIGITS or (not first.isdigit() if word != b"OK" else first):
            raise ProtocolError(f"no answer of beanstalkd: {word + b' ' + rest!r:.200}")
        length = int(size)
        if length > self.max_body:
            raise ProtocolError(f"an answer of {length:,} bytes is longer than {self.max_body:,}")
        number = int(first) if first else -1
        if not self._open or word not in self._open[0].answers:
            raise self._stranger(word + b" " + rest)
        end = at + length
        if end + 2 > len(data):
            self._head = (word, number)
            self._parts = [data[at:]]
            self._missing = end + 2 - len(data)
            return len(data)
        if data[end : end + 2] != b"\r\n":
            raise _endless(length)
        self._answer(Answer(word, number, data[at:end]), found)
        return end + 2

    def _early(self, line: bytes) -> None:
        """What stands there and has no end yet: notice soon that it never will be an answer."""
        word = line.partition(b" ")[0]
        if not all(65 <= each <= 90 or each == 95 for each in word.removesuffix(b"\r")):
            raise self._stranger(line)

    def _answer(self, answer: Answer, found: list[tuple[Request, Answer]]) -> None:
        word = answer.word
        if (
            not self._open
            or (word not in self._open[0].answers and word not in COMMON)
            or (word == b"INSERTED" and answer.number < 0)
        ):
            raise self._stranger(word + b" " + answer.text)
        request = self._open.popleft()
        if request.patience > 0:
            self._patient = 0.0
        request.answer = answer
        found.append((request, answer))

    def _stranger(self, line: bytes) -> ProtocolError:
        asked = self._open[0].verb.decode() if self._open else "nothing"
        return ProtocolError(f"{line.strip()[:120]!r} is no answer to {asked}")


def _endless(length: int) -> ProtocolError:
    return ProtocolError(f"a body of {length:,} bytes has no end of line behind it")
