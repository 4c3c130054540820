"""`client.group(tasks)`: one task for many."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from ..engine import Parcel
from ..errors import TaskCancelled, UsageError
from ..event import Progress
from ..pool.reports import PROGRESS
from .ending import _ending
from .options import PLAIN
from .task import Task, _cancelled

if TYPE_CHECKING:
    from .client import Client


class Group(Task[list[Any]]):
    """Ends when all its members have; its result is the ordered list of theirs.

    Its progress counts the members that ended and the fractions of those that run. Failures come together as one
    `ExceptionGroup`; a cancelled member counts as a failure unless the group itself was cancelled.
    """

    def __init__(self, client: Client, members: list[Task[Any]]) -> None:
        for member in members:
            if not isinstance(member, Task):
                raise UsageError(f"group() takes tasks, got {member!r:.100}")
        super().__init__(client, Parcel(client._new_id()), PLAIN)
        self.members = tuple(members)
        self._name = f"group of {len(members)}"
        self._open = len(members)
        self._sum = 0.0  # of the members' fractions
        self._fractions: dict[str, float] = {}
        self._due = 0.0  # monotonic seconds of the next progress
        self._told = -1.0  # the fraction that was told last
        client._tasks[self.id] = self
        self._take_start("group", time())
        if not members:
            self._over()
        for member in members:
            member.add_listener("progress", self._hears(member))
            member.add_done_callback(self._member_ended)

    def _hears(self, member: Task[Any]) -> Callable[..., None]:
        def hear(progress: Any = None, *_: Any) -> None:
            if isinstance(progress, Progress) and progress.fraction is not None:
                self._moved(member, progress.fraction)

        return hear

    @property
    def name(self) -> str:
        return self._name

    def running(self) -> bool:
        return self._end is None

    def cancel(self) -> bool:
        """Cancel every member that has not ended."""
        if self._end is not None:
            return False
        self._stopping = True
        for member in self.members:
            member.cancel()
        return True

    def send(self, name: str, *args: Any) -> bool:
        """Send to every member; True if any of them took it."""
        taken = [member.send(name, *args) for member in self.members]
        return any(taken)

    @property
    def progress(self) -> Progress | None:
        """As it is now, also between two events."""
        with _ending:
            return Progress(*self._so_far(), None) if self._told >= 0.0 else None

    def _so_far(self) -> tuple[float, int, int]:
        total = len(self.members)
        return min(1.0, self._sum / total), total - self._open, total

    def _moved(self, member: Task[Any], fraction: float) -> None:
        """A member got on: add what it gained to the sum. It is told at most 20 times a second, but each hundredth at
        once, since nobody may move again for long; and the end."""
        with _ending:
            self._sum += fraction - self._fractions.get(member._id, 0.0)
            self._fractions[member._id] = fraction
            whole, done, total = self._so_far()
            now = monotonic()
            if now < self._due and done < total and abs(whole - self._told) < 0.01:
                return
            self._due, self._told = now + 0.05, whole
            record = [PROGRESS, 0, "progress", time(), whole, done, total, None]
        self._take_events([record], 64)

    def _member_ended(self, member: Task[Any]) -> None:
        with _ending:
            self._open -= 1
            last = self._open == 0
        self._moved(member, 1.0)
        if last:
            self._over()

    def _over(self) -> None:
        errors: list[BaseException] = []
        results: list[Any] = []
        for member in self.members:
            error = member._error()
            if error is None:
                try:
                    results.append(member._value())
                    continue
                except Exception as problem:
                    error = problem
            errors.append(error)
        if not errors:
            self._result = results
            self._settle("succeeded")
        elif self._stopping and all(isinstance(error, TaskCancelled) for error in errors):
            self._settle("cancelled", "group", _cancelled(self, "group"))
        else:
            text = f"{len(errors)} of {len(self.members)} tasks failed"
            self._settle("failed", "", BaseExceptionGroup(text, errors))
