"""Finding tasks again: by the unique, since a handle means nothing after a restart of gearmand."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ...engine import EngineState, Parcel
from ...errors import Overloaded, Unreachable
from ...protocols.gearman import GearmanAdmin, Kind
from ...protocols.gearman.client_state import Request, status_unique_request
from ..lines import Line, Lines
from ..preference import Preference
from .address import Place
from .delivery import SUBMIT, Delivery, background
from .names import DELAYED, READY, unique
from .wrapping import Wrapped, wrap

_REMEMBERED = 100_000  # submissions, of which `cancel` knows the function
_MOMENT = 0.5  # seconds for one to come back while it is asked
_GONE = 60.0  # seconds after which a server that does not answer counts as one that lost its tasks
_FORMS = (*DELAYED, *READY)


class _Own(NamedTuple):
    """A task submitted here."""

    queue: str
    priority: int


class Looking:
    """Answers `state` and `cancel` of a Queue."""

    def __init__(self, lines: Lines, delivery: Delivery, place: Place, preference: Preference) -> None:
        self._lines = lines
        self._delivery = delivery
        self._place = place
        self._preference = preference
        self._own: dict[str, _Own] = {}
        self._cancelled: dict[str, list[str]] = {}  # forms of their uniques whose jobs may lie there still
        self._missing: dict[int, float] = {}  # since when servers do not answer

    def submitted(self, tasks: Iterable[tuple[Parcel, Request]]) -> None:
        own = self._own
        for parcel, request in tasks:
            if request.handle:
                own[parcel.id] = _Own(parcel.queue, parcel.priority)
        while len(own) > _REMEMBERED:
            del own[next(iter(own))]

    def form(self, task_id: str, forms: tuple[str, ...]) -> str:
        """The form of unique to submit a task with: not one that was cancelled, whose job would swallow it.

        Such a job lies there until a worker comes by, who drops it. Raises `Overloaded`.
        """
        cancelled = self._cancelled.get(task_id) if self._cancelled else None
        if not cancelled:
            return forms[0]
        for form in forms:
            if form not in cancelled:
                return form
        raise Overloaded(f"task {task_id} was cancelled {len(forms)} times, and no worker has come by since")

    def refresh(self, parcels: Iterable[Parcel]) -> None:
        """Find out which cancelled jobs of these tasks are gone."""
        again = [parcel.id for parcel in parcels if parcel.id in self._cancelled] if self._cancelled else []
        for task in again:
            left = []
            for form in self._cancelled[task]:
                requests = []
                for line in self._up().values():
                    requests.append(status_unique_request(unique(task) + form))
                    self._delivery.ask(line, requests[-1:])
                if any(request.answer is None or request.answer.args[1:2] != (b"0",) for request in requests):
                    left.append(form)
            self._cancelled[task] = left
            if not left:
                del self._cancelled[task]

    # ---- state

    def state(self, ids: Sequence[str]) -> dict[str, EngineState]:
        found = self._states(ids)
        if any(state == "unknown" for state in found.values()) and self._away():
            # Not found is not gone while a server that may have it is away for a moment.
            until = time.monotonic() + _MOMENT
            while self._away() and time.monotonic() < until:
                self._lines.pump(until)
            found = self._states(ids)
            if any(state == "unknown" for state in found.values()):
                self._complain()
        return found

    def _states(self, ids: Sequence[str]) -> dict[str, EngineState]:
        found: dict[str, EngineState] = dict.fromkeys(ids, "unknown")
        lines = self._up()
        asked = []
        for task in ids:  # most are where they belong
            own = unique(task)
            line = lines.get(self._preference.order(own.encode())[0])
            if line is not None:
                asked.append((task, line, own))
        self._ask(asked, found)
        # What moves from one form to the other may be missed between two questions; who misses it twice is not there.
        for _ in range(2):
            left = [task for task, state in found.items() if state == "unknown"]
            if not left:
                return found
            self._ask(
                [(task, line, unique(task) + form) for task in left for line in lines.values() for form in _FORMS],
                found,
            )
        return found

    def _ask(self, questions: Sequence[tuple[str, Line, str]], found: dict[str, EngineState]) -> None:
        by_line: dict[Line, list[Request]] = {}
        asked = []
        for task, line, key in questions:
            request = status_unique_request(key)
            by_line.setdefault(line, []).append(request)
            asked.append((task, key, request))
        for line, requests in by_line.items():
            if line.up:
                self._delivery.ask(line, requests)
        for task, key, request in asked:
            answer = request.answer
            if answer is None or answer.kind is not Kind.STATUS_RES_UNIQUE or answer.args[1] != b"1":
                continue
            delayed = key.endswith(DELAYED)
            running = answer.args[2] == b"1" and not delayed  # a delayed one may be held for the rest of a second
            cancelled = self._cancelled.get(task, ())
            if not running and cancelled and key[len(unique(task)) :] in cancelled:
                continue  # it lies there until a worker comes by, who drops it
            if running or found[task] == "unknown":
                found[task] = "running" if running else "queued"

    def _up(self) -> dict[int, Line]:
        lines = self._lines
        lines.want(self._delivery.role)
        deadline = time.monotonic() + lines.timeout
        while (not lines.lines(SUBMIT) or lines.undecided(SUBMIT, hopeful=True)) and time.monotonic() < deadline:
            lines.pump(deadline)
        up = {line.index: line for line in lines.lines(SUBMIT)}
        if not up:
            raise lines.unreachable()
        return up

    def _away(self) -> list[int]:
        """The servers that do not answer now."""
        now = time.monotonic()
        up = {line.index for line in self._lines.lines(SUBMIT)}
        away = [index for index in range(len(self._lines.servers)) if index not in up]
        self._missing = {index: self._missing.get(index, now) for index in away}
        return away

    def _complain(self) -> None:
        now = time.monotonic()
        for index in self._away():
            if now - self._missing[index] < _GONE:
                raise Unreachable(f"cannot say what is lost: {self._lines.servers[index].error}")

    # ---- cancel

    def cancel(self, task_id: str) -> bool:
        own = self._own.get(task_id)
        if own is None:
            return False
        gone = self._cancelled.get(task_id, ())
        for line in self._up().values():
            key = unique(task_id)
            requests = [status_unique_request(key + form) for form in _FORMS]
            self._delivery.ask(line, requests)
            states = {
                form: request.answer.args[2] == b"1"
                for form, request in zip(_FORMS, requests, strict=True)
                if request.answer is not None
                and request.answer.kind is Kind.STATUS_RES_UNIQUE
                and request.answer.args[1] == b"1"
            }
            if any(states.values()):
                return False  # taken, or on its way from one function to the other
            for form in (form for form in states if form not in gone):
                return self._remove(line, task_id, own, form)
        return False

    def _remove(self, line: Line, task_id: str, own: _Own, form: str) -> bool:
        """Submit it once more: gearmand answers with the handle of the job that is there. What comes of that if it is
        gone just now is void, and whoever takes it drops it."""
        names = self._place.names
        key = unique(task_id) + form
        request = background(
            names.delayed if form in DELAYED else names.queue(own.queue, own.priority),
            key,
            wrap(Wrapped(task_id, own.queue, b"", void=True), self._place.base64),
            0 if form in DELAYED else own.priority,
        )
        status = status_unique_request(key)
        self._delivery.ask(line, [request])
        if not request.handle:
            return False
        with GearmanAdmin(line.server.address, timeout=self._place.timeout) as admin:
            removed = admin.cancel(request.handle)
        if not removed or not line.up:
            return False
        self._delivery.ask(line, [status])
        if status.answer is None or status.answer.args[2:3] == (b"1",):
            return False  # somebody took it in this moment
        self._own.pop(task_id, None)
        self._cancelled.setdefault(task_id, []).append(form)
        while len(self._cancelled) > _REMEMBERED:
            del self._cancelled[next(iter(self._cancelled))]
        return True
