"""Functions of our workers that other programs call: jobs taken, and what is said of them.

    take   ─ grab ─▶ a Lease with the function's name; connections of their own, so that neither these nor our own
                     tasks are always first
    answer ─▶ WORK_STATUS, WORK_DATA, WORK_WARNING, WORK_COMPLETE … on the connection that grabbed the job

An exception is said as WORK_WARNING and WORK_FAIL, which every client understands. With `exceptions=yes` in the URL it
is WORK_EXCEPTION: gearmand 1.1.20 passes that on to clients that asked for exceptions, and to others as a WORK_FAIL
with a byte too many, over which Perl's client dies and the C tool waits for ever. The worker cannot know who asked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence

from ...engine import Answer, Lease
from ...errors import UsageError
from ...protocols.gearman.worker_state import Assignment, WorkerState
from ..lines import Line, Lines
from .address import MAX_BODY, Place
from .names import Names
from .taking import Taking

_EXPOSE = "expose"
_BACKLOG = 1 << 20  # bytes that wait for a server that does not read, before `answer` waits too


def checked(names: Names, functions: Iterable[str]) -> dict[bytes, str]:
    """The functions as gearmand calls them. Raises `UsageError`."""
    return {names.foreign(function): function for function in functions}


class Exposing:
    """Part of the Queue; on its one thread."""

    def __init__(self, lines: Lines, place: Place, functions: dict[bytes, str]) -> None:
        self._lines = lines
        self._exceptions = place.exceptions
        self._functions = functions
        self.taking = Taking(lines, _EXPOSE, MAX_BODY)
        self.taking.functions(tuple(functions))

    def collect(self, leases: list[Lease], limit: int) -> None:
        """Make leases of what has arrived; what nobody asked for stays."""
        arrived = self.taking.arrived
        count = max(0, min(len(arrived), limit - len(leases)))
        for job in arrived[:count]:
            body, job.workload = job.workload, b""
            # An id of our own: uniques are the callers' affair, who may leave them out or use them again.
            id = os.urandom(16).hex()
            leases.append(Lease(id, body, "", 1, (job, 0), self._functions.get(job.function, "?")))
        del arrived[:count]

    def answer(self, answers: Sequence[tuple[Lease, Answer]]) -> set[Line]:
        """Send them; the lines on which a job ended. Waits while a server takes nothing."""
        lines = self._lines
        owners: set[Line] = set()
        ended: set[Line] = set()
        size = 0  # bytes since they were last sent
        for lease, answer in answers:
            job: Assignment = lease.token[0]
            if job.ended:
                continue
            line: Line = job.owner
            try:
                self._say(line.state, job, answer)
            except UsageError as error:  # larger than a packet may be
                self._say(line.state, job, Answer("exception", f"{answer.kind}: {error}".encode()))
            owners.add(line)
            if job.ended:
                ended.add(line)
            size += len(answer.data) + 100
            if size > _BACKLOG:
                size = 0
                lines.send(owners)
                while any(line.up and line.backlog > _BACKLOG for line in owners):
                    lines.pump(time.monotonic() + 0.5)
        lines.send(owners)
        return ended

    def _say(self, state: WorkerState, job: Assignment, answer: Answer) -> None:
        kind = answer.kind
        if kind == "status":
            state.status(job, answer.done, answer.total)
        elif kind == "data":
            state.data(job, answer.data)
        elif kind == "warning":
            state.warning(job, answer.data)
        elif kind == "complete":
            state.complete(job, answer.data)
        elif kind == "exception" and self._exceptions:
            state.exception(job, answer.data)
        else:
            if answer.data:
                state.warning(job, answer.data + b"\n")  # the C tool prints it as it is
            state.fail(job)
