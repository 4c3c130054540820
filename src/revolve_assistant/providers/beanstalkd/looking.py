"""Finding the tasks again that were submitted here.

beanstalkd knows jobs by their numbers alone, which it tells to the submitter and to who reserves them. So `state` and
`cancel` are for tasks of this object; nobody else can look for one. A number says nothing once the server was started
anew, since without a log it counts from 1 again: then the job itself is looked at, whether it is of that task.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from ...engine import EngineState
from ...errors import Unreachable
from ...protocols.beanstalkd import Request, fields
from ...protocols.beanstalkd import commands as ask
from ...protocols.stream import Address
from ..lines import Line, Lines
from .delivery import SUBMIT, Delivery
from .loads import TaskLoad
from .wrapping import read_task

_REMEMBERED = 1_000_000  # tasks
_MOMENT = 0.5  # seconds for a server to come back while it is asked
_GONE = 60.0  # seconds after which a server that does not answer counts as one that lost its tasks
_STATES: dict[str, EngineState] = {"ready": "queued", "delayed": "queued", "reserved": "running"}


class Looking:
    """Answers `state` and `cancel` of a Queue. What is known of a task is one whole number: its job's, and in the lower
    bits which start of which server that was."""

    def __init__(self, lines: Lines, delivery: Delivery) -> None:
        self._lines = lines
        self._delivery = delivery
        self._own: dict[str, int] = {}
        self._starts: list[tuple[int, str]] = []  # server, instance
        self._start_of: dict[tuple[int, str], int] = {}
        self._missing: dict[int, float] = {}  # since when servers do not answer

    def submitted(self, loads: Iterable[TaskLoad]) -> None:
        own = self._own
        before: Line | None = None
        start = 0
        for load in loads:
            line = load.line
            if load.number >= 0 and line is not None:
                if line is not before:
                    before, start = line, self._start(line.index, line.owner.instance)
                own[load.id] = load.number << 16 | start
        while len(own) > _REMEMBERED:
            del own[next(iter(own))]

    def _start(self, server: int, instance: str) -> int:
        key = (server, instance)
        start = self._start_of.get(key)
        if start is None:
            start = self._start_of[key] = len(self._starts) & 0xFFFF
            self._starts.append(key)
        return start

    def where(self, task_id: str) -> tuple[Address, int] | None:
        """Server and number of a task's job. From any thread."""
        known = self._own.get(task_id)
        return None if known is None else (self._lines.servers[self._starts[known & 0xFFFF][0]].address, known >> 16)

    def known(self, task_id: str) -> bool:
        return task_id in self._own

    def state(self, ids: Sequence[str]) -> dict[str, EngineState]:
        """Raises `Unreachable` where a server that has one of them has failed within the last minute."""
        found: dict[str, EngineState] = dict.fromkeys(ids, "unknown")
        mine = [task for task in found if task in self._own]
        if not mine:
            return found
        lines = self._up()
        away = self._away({self._server(task) for task in mine})
        if away:
            until = time.monotonic() + _MOMENT
            while self._away(away) and time.monotonic() < until:
                self._lines.pump(until)
            lines = self._up()
            self._complain(away)
        for task, said in self._ask(mine, lines).items():
            found[task] = _STATES.get(said.get("state", ""), "unknown")
            if not said:
                self._own.pop(task, None)
        return found

    def cancel(self, task_id: str) -> bool:
        """Remove a task that was submitted here and that nobody has taken."""
        if task_id not in self._own:
            return False
        lines = self._up()
        said = self._ask([task_id], lines).get(task_id, {})
        if said.get("state") not in ("ready", "delayed"):
            return False
        return self._remove(task_id, lines)

    def bury_again(self, ids: Iterable[str]) -> list[str]:
        """Which of these are still held, of those that are submitted once more; the buried ones are removed."""
        ids = [task for task in ids if task in self._own]
        if not ids:
            return []
        lines = self._up()
        still = []
        for task, said in self._ask(ids, lines).items():
            if said.get("state") in _STATES:
                still.append(task)
            elif said.get("state") == "buried":
                self._remove(task, lines)
        return still

    # ---- within

    def _server(self, task: str) -> int:
        return self._starts[self._own[task] & 0xFFFF][0]

    def _remove(self, task: str, lines: dict[int, Line]) -> bool:
        line = lines.get(self._server(task))
        if line is None:
            return False
        number = self._own[task] >> 16
        peek = ask.peek(number)
        delete = ask.delete(number)
        self._delivery.ask(line, [peek, delete])
        if delete.answer is None or delete.answer.word != b"DELETED":
            return False  # somebody took it in this moment
        inside = read_task(peek.answer.body) if peek.answer is not None else None
        if inside is not None and inside.parts:
            self._delivery.ask(line, [ask.delete(part) for part in inside.parts])
        del self._own[task]
        return True

    def _ask(self, ids: Sequence[str], lines: dict[int, Line]) -> dict[str, dict[str, str]]:
        """What the servers say of the tasks' jobs; nothing of those that they do not know. Servers that do not answer
        are left out, with their tasks."""
        asked: dict[Line, list[tuple[str, Request, Request | None]]] = {}
        for task in ids:
            number, start = self._own[task] >> 16, self._own[task] & 0xFFFF
            server, instance = self._starts[start]
            line = lines.get(server)
            if line is None:
                continue
            same = line.owner.instance == instance
            asked.setdefault(line, []).append((task, ask.stats_job(number), None if same else ask.peek(number)))
        found: dict[str, dict[str, str]] = {}
        for line, several in asked.items():
            self._delivery.ask(line, [each for _, *both in several for each in both if each is not None])
            for task, stats, peek in several:
                if stats.answer is None or (peek is not None and peek.answer is None):
                    raise Unreachable(f"cannot say what is lost: {line.error}")
                found[task] = fields(stats.answer.body) if stats.answer.word == b"OK" else {}
                if peek is not None and peek.answer is not None:
                    inside = read_task(peek.answer.body)
                    if inside is None or inside.id != task:
                        found[task] = {}  # another task has its number now
                    else:
                        self._own[task] = self._own[task] >> 16 << 16 | self._start(line.index, line.owner.instance)
        return found

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

    def _away(self, servers: set[int]) -> set[int]:
        """Which of them do not answer now."""
        now = time.monotonic()
        up = {line.index for line in self._lines.lines(SUBMIT)}
        away = {index for index in range(len(self._lines.servers)) if index not in up}
        self._missing = {index: self._missing.get(index, now) for index in away}
        return servers & away

    def _complain(self, servers: set[int]) -> None:
        now = time.monotonic()
        for index in self._away(servers):
            if now - self._missing[index] < _GONE:
                raise Unreachable(f"cannot say what is lost: {self._lines.servers[index].error}")
