"""What becomes of tasks that are held: done, released, buried.

done      delete
release   release, of the same job: its number stays, and with it what the submitter knows
bury      a note is put into NAMESPACE;dead.QUEUE, then bury; `managing` finds it by the note
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from ...engine import Answer, Lease, Outcome
from ...protocols.beanstalkd import Request
from ...protocols.beanstalkd import commands as ask
from ..lines import Line, Lines
from . import told as telling
from .address import Place
from .delivery import SUBMIT, Delivery
from .names import whole
from .taking import Hold, Taking
from .wrapping import Note, write_note

log = logging.getLogger("revolve_assistant")

_REASON = 500  # characters of a reason that are kept
_DELETE = ask.delete(0)  # one for all whose answers nobody looks up
_NOTE_TTR = 60  # seconds that whoever lists the buried ones may hold a note


class Settling:
    """Part of the Queue, on its one thread."""

    def __init__(self, lines: Lines, delivery: Delivery, taking: Taking, place: Place) -> None:
        self._lines = lines
        self._delivery = delivery
        self._taking = taking
        self._place = place

    def settle(self, outcomes: Sequence[tuple[Lease, Outcome]], send: bool = True) -> list[Request]:
        """Ask for it; the requests, which must be waited for. Blocks where something is buried. What is not sent goes
        with what the lines are asked next."""
        requests: list[Request] = []
        done: dict[Line, list[int]] = {}
        buried: list[tuple[Hold, Lease, str]] = []
        owners: set[Line] = set()
        for lease, outcome in outcomes:
            hold: Hold = lease.token
            if hold.over or lease.name:
                continue
            kind = outcome.kind
            if kind == "bury":
                buried.append((hold, lease, outcome.reason))
                continue
            line = hold.line
            if kind == "done":
                numbers = done.get(line)
                if numbers is None:
                    numbers = done[line] = []
                numbers.append(hold.number)
                numbers += hold.parts
            else:
                priority = hold.priority if outcome.counted else self._taking.uncounted(hold)
                requests.append(line.state.ask(ask.release(hold.number, priority, whole(outcome.delay))))
                owners.add(line)
            hold.end()
        requests += delete_all(done)
        owners.update(done)
        if send:
            self._lines.send(owners)
        if buried:
            requests += self.bury(buried)
        return requests

    def answer(self, answers: Sequence[tuple[Lease, Answer]]) -> list[Request]:
        """What ends jobs of exposed functions: done, or buried. Nobody is there to hear the rest."""
        done: dict[Line, list[int]] = {}
        buried: list[tuple[Hold, Lease, str]] = []
        for lease, said in answers:
            hold: Hold = lease.token
            if hold.over:
                continue
            if said.kind == "complete":
                done.setdefault(hold.line, []).append(hold.number)
                hold.end()
            elif said.kind in ("fail", "exception"):
                buried.append((hold, lease, said.data.decode("utf-8", "backslashreplace")))
        requests = delete_all(done)
        self._lines.send(done)
        if buried:
            requests += self.bury(buried)
        return requests

    def bury(self, several: Iterable[tuple[Hold, Lease, str]]) -> list[Request]:
        """Put a note of each beside it, then bury it; the latter's requests."""
        requests = []
        owners: set[Line] = set()
        several = [each for each in several if not each[0].over]
        notes = self._note(several)
        for (hold, _, _), (other, note) in zip(several, notes, strict=True):
            if hold.over or not hold.line.up:
                if other is not None and note is not None and note.answer is not None:
                    _undo(other, note)
                continue
            request = ask.bury(hold.number, hold.priority)
            request.owner = _Buried(other, note, self._lines)
            hold.line.state.ask(request)
            requests.append(request)
            hold.end()
            owners.add(hold.line)
        self._lines.send(owners)
        return requests

    def _note(self, several: Sequence[tuple[Hold, Lease, str]]) -> list[tuple[Line | None, Request | None]]:
        """Put the notes, each on its task's server."""
        lines = self._lines
        lines.want(self._delivery.role)
        made: list[tuple[Line | None, Request | None]] = []
        for hold, lease, reason in several:
            line = self._submit_line(hold.line)
            if line is None:
                made.append((None, None))
                continue
            name = hold.task.name if hold.task is not None else ""
            why = reason[:_REASON].encode("utf-8", "backslashreplace").decode()
            note = Note(hold.number, lease.id, lease.queue or lease.name, hold.deliveries, why, time.time(), name)
            telling.use(line, self._place.names.dead(note.queue))
            request = ask.put_plain(write_note(note), 0, 0, _NOTE_TTR)
            line.state.ask(request)
            made.append((line, request))
        asked = {line for line, _ in made if line is not None}
        lines.send(asked)
        while any(line is not None and line.up and request is not None and request.answer is None
                  for line, request in made):  # fmt: skip
            lines.pump(time.monotonic() + 0.5)
        unlisted = sum(1 for _, note in made if note is None or note.answer is None or note.answer.word != b"INSERTED")
        if unlisted:
            log.warning(
                "%d tasks were buried at %s without a note: it takes no jobs now, so `revolve dead` does not list them",
                unlisted, self._place.text,
            )  # fmt: skip
        return made

    def _submit_line(self, line: Line) -> Line | None:
        """The line over which the same server takes jobs; waits for it, a moment."""
        deadline = time.monotonic() + self._lines.timeout
        while True:
            other = self._lines.line(SUBMIT, line.index)
            if other is not None and other.up:
                return other
            if not line.up or time.monotonic() >= deadline:
                return None
            self._lines.pump(min(deadline, time.monotonic() + 0.25))

    def finish(self, requests: Iterable[Request], lines: Iterable[Line]) -> None:
        """Until they are answered, or their connection is gone, and with it what was held."""
        lines = list(lines)
        open_ = [request for request in requests if request.answer is None]
        while open_ and any(line.up and line.state.open for line in lines):
            self._lines.pump(time.monotonic() + 0.5)
            open_ = [request for request in open_ if request.answer is None]


def delete_all(jobs: Mapping[Line, Sequence[int]]) -> list[Request]:
    """Ask lines to delete these; the last request of each, with whose answer all are answered."""
    last = []
    for line, numbers in jobs.items():
        data = b"".join([b"delete %d\r\n" % number for number in numbers])
        request = Request(b"delete", data, _DELETE.answers)
        line.state.ask_all(data, [*[_DELETE] * (len(numbers) - 1), request])
        last.append(request)
    return last


class _Buried:
    """What hears of a bury: the note of a task that was somebody else's by then goes."""

    __slots__ = ("line", "lines", "note")

    def __init__(self, line: Line | None, note: Request | None, lines: Lines) -> None:
        self.line = line
        self.note = note
        self.lines = lines

    def heard(self, line: Line, request: Request, answer: object) -> None:
        if request.answer is not None and request.answer.word != b"BURIED" and self.line is not None:
            _undo(self.line, self.note)
            self.lines.send([self.line])


def _undo(line: Line, note: Request | None) -> None:
    if line.up and note is not None and note.answer is not None and note.answer.word == b"INSERTED":
        line.state.ask(ask.delete(note.answer.number))
