"""What can be asked of beanstalkd: each function here makes one `Request`, checked. No socket.

Priorities count down: 0 is the most urgent. Delays and times to run (`ttr`) are whole seconds; fractions are rounded
up. Every function raises `UsageError` for what the server could not hold.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .limits import MAX_JOB, check_body, check_job, check_priority, check_seconds, check_tube

COMMON = frozenset({b"OUT_OF_MEMORY", b"INTERNAL_ERROR", b"BAD_FORMAT", b"UNKNOWN_COMMAND"})
"""What any command may be answered with."""
BODIES = frozenset({b"RESERVED", b"FOUND", b"OK"})
"""Answers that bytes follow."""

_GIVEN = frozenset({b"INSERTED", b"BURIED", b"EXPECTED_CRLF", b"JOB_TOO_BIG", b"DRAINING"})
_RESERVED = frozenset({b"RESERVED", b"TIMED_OUT", b"DEADLINE_SOON"})
_FOUND = frozenset({b"FOUND", b"NOT_FOUND"})
_OK = frozenset({b"OK", b"NOT_FOUND"})


class Answer(NamedTuple):
    """What was answered: `word` is the first one (`INSERTED`, `NOT_FOUND` …), `number` the one that follows, a job's
    as a rule (-1: there is none), `body` the bytes after the line, `text` what else stands in it."""

    word: bytes
    number: int = -1
    body: bytes = b""
    text: bytes = b""

    @property
    def refused(self) -> bool:
        """Whether it says that the server cannot, or does not understand."""
        return self.word in COMMON


class Request:
    """One command. `data` is what goes to the server, `answers` the words that may come back, `answer` None until then.

    `patience` are the seconds that a reserve may wait at the server (0.0 for everything else, which is answered at
    once; inf: for ever). `owner` is the caller's.
    """

    __slots__ = ("verb", "data", "answers", "patience", "answer", "owner")

    def __init__(
        self, verb: bytes, data: bytes, answers: frozenset[bytes], patience: float = 0.0, owner: Any = None
    ) -> None:
        self.verb = verb
        self.data = data
        self.answers = answers
        self.patience = patience
        self.answer: Answer | None = None
        self.owner = owner

    def __repr__(self) -> str:
        line = self.data.partition(b"\r\n")[0][:80]
        word = b"open" if self.answer is None else self.answer.word
        return f"<Request {line.decode('ascii', 'replace')!r} {word.decode('ascii', 'replace')}>"


def put(data: bytes, priority: int = 1 << 16, delay: float = 0, ttr: float = 60, *, most: int = MAX_JOB) -> Request:
    """A job for the tube in use, of up to `most` bytes: INSERTED and its number. Whoever watches the tube may reserve
    it, at once or after `delay`, and hold it for `ttr` seconds without a touch."""
    body = check_body(data, most)
    head = b"put %d %d %d %d\r\n" % (
        check_priority(priority), check_seconds(delay, "a delay"), check_seconds(ttr, "a time to run", 1), len(body)
    )  # fmt: skip
    return Request(b"put", b"%b%b\r\n" % (head, body), _GIVEN)


def put_plain(body: bytes, priority: int, delay: int, ttr: int, owner: Any = None) -> Request:
    """The same of values that were made here and need no checking."""
    data = b"put %d %d %d %d\r\n%b\r\n" % (priority, delay, ttr, len(body), body)
    return Request(b"put", data, _GIVEN, 0.0, owner)


def use(tube: str | bytes) -> Request:
    """Have what is put from now on go to this tube: USING."""
    return Request(b"use", b"use %b\r\n" % check_tube(tube), frozenset({b"USING"}))


def watch(tube: str | bytes) -> Request:
    """Reserve from this tube too: WATCHING and how many there are."""
    return Request(b"watch", b"watch %b\r\n" % check_tube(tube), frozenset({b"WATCHING"}))


def ignore(tube: str | bytes) -> Request:
    """Reserve from this tube no more: WATCHING, or NOT_IGNORED of the last one."""
    return Request(b"ignore", b"ignore %b\r\n" % check_tube(tube), frozenset({b"WATCHING", b"NOT_IGNORED"}))


def reserve(timeout: float | None = 0) -> Request:
    """A job of the tubes that are watched, waited for up to `timeout` whole seconds (None: for ever): RESERVED with its
    number and body, TIMED_OUT, or DEADLINE_SOON: a job that this connection holds has less than a second left.

    While it waits the server reads nothing else of this connection.
    """
    if timeout is None:
        return Request(b"reserve", b"reserve\r\n", _RESERVED, float("inf"))
    seconds = check_seconds(timeout, "a time-out")
    return Request(b"reserve", b"reserve-with-timeout %d\r\n" % seconds, _RESERVED, float(seconds))


def reserve_job(job: int) -> Request:
    """This job, be it ready, delayed or buried: RESERVED or NOT_FOUND. Needs beanstalkd 1.12."""
    return Request(b"reserve-job", b"reserve-job %d\r\n" % check_job(job), frozenset({b"RESERVED", b"NOT_FOUND"}))


def stats_of(job: int, owner: Any) -> Request:
    """`stats_job` of a number that came from the server."""
    return Request(b"stats-job", b"stats-job %d\r\n" % job, _OK, 0.0, owner)


def delete(job: int) -> Request:
    """Remove a job that this connection holds, or that nobody does: DELETED or NOT_FOUND."""
    return Request(b"delete", b"delete %d\r\n" % check_job(job), frozenset({b"DELETED", b"NOT_FOUND"}))


def release(job: int, priority: int = 1 << 16, delay: float = 0) -> Request:
    """Give a job back: RELEASED, NOT_FOUND, or BURIED where memory ran out."""
    data = b"release %d %d %d\r\n" % (check_job(job), check_priority(priority), check_seconds(delay, "a delay"))
    return Request(b"release", data, frozenset({b"RELEASED", b"BURIED", b"NOT_FOUND"}))


def bury(job: int, priority: int = 1 << 16) -> Request:
    """Put a job that this connection holds aside until somebody kicks it: BURIED or NOT_FOUND."""
    data = b"bury %d %d\r\n" % (check_job(job), check_priority(priority))
    return Request(b"bury", data, frozenset({b"BURIED", b"NOT_FOUND"}))


def touch(job: int) -> Request:
    """Have the time to run of a job that this connection holds begin anew: TOUCHED or NOT_FOUND."""
    return Request(b"touch", b"touch %d\r\n" % check_job(job), frozenset({b"TOUCHED", b"NOT_FOUND"}))


def peek(job: int) -> Request:
    """A job's bytes, whoever has it: FOUND or NOT_FOUND."""
    return Request(b"peek", b"peek %d\r\n" % check_job(job), _FOUND)


def peek_ready() -> Request:
    """The next ready job of the tube in use."""
    return Request(b"peek-ready", b"peek-ready\r\n", _FOUND)


def peek_delayed() -> Request:
    """The delayed job of the tube in use that is due first."""
    return Request(b"peek-delayed", b"peek-delayed\r\n", _FOUND)


def peek_buried() -> Request:
    """The job of the tube in use that was buried first."""
    return Request(b"peek-buried", b"peek-buried\r\n", _FOUND)


def kick(most: int) -> Request:
    """Make up to so many buried jobs of the tube in use ready, or if none is buried, delayed ones: KICKED, how many."""
    return Request(b"kick", b"kick %d\r\n" % check_priority(most), frozenset({b"KICKED"}))


def kick_job(job: int) -> Request:
    """Make a buried or delayed job ready: KICKED or NOT_FOUND."""
    return Request(b"kick-job", b"kick-job %d\r\n" % check_job(job), frozenset({b"KICKED", b"NOT_FOUND"}))


def stats() -> Request:
    """What the server says of itself: OK, to be read with `fields`."""
    return Request(b"stats", b"stats\r\n", _OK)


def stats_job(job: int) -> Request:
    """What is known of a job: OK or NOT_FOUND."""
    return Request(b"stats-job", b"stats-job %d\r\n" % check_job(job), _OK)


def stats_tube(tube: str | bytes) -> Request:
    """What a tube holds: OK or NOT_FOUND."""
    return Request(b"stats-tube", b"stats-tube %b\r\n" % check_tube(tube), _OK)


def list_tubes() -> Request:
    """The tubes there are: OK, to be read with `items`."""
    return Request(b"list-tubes", b"list-tubes\r\n", _OK)


def list_tube_used() -> Request:
    """The tube in use: USING. The cheapest thing to ask."""
    return Request(b"list-tube-used", b"list-tube-used\r\n", frozenset({b"USING"}))


def pause_tube(tube: str | bytes, seconds: float) -> Request:
    """Have nobody reserve from a tube for so long: PAUSED or NOT_FOUND."""
    data = b"pause-tube %b %d\r\n" % (check_tube(tube), check_seconds(seconds, "a pause"))
    return Request(b"pause-tube", data, frozenset({b"PAUSED", b"NOT_FOUND"}))


def fields(body: bytes) -> dict[str, str]:
    """What a `stats…` answer holds, as text. Lines that are no `name: value` are passed over."""
    found: dict[str, str] = {}
    for line in body.decode("utf-8", "replace").split("\n"):
        name, colon, value = line.partition(": ")
        if colon:
            found[name] = value.strip().strip('"')  # quoted since 1.13
    return found


def items(body: bytes) -> list[str]:
    """What a `list-…` answer holds."""
    lines = body.decode("utf-8", "replace").split("\n")
    return [line[2:].strip().strip('"') for line in lines if line.startswith("- ")]
