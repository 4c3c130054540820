"""A parcel while it is held by a local engine, and the lanes in which parcels wait."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from ..engine import Parcel

if TYPE_CHECKING:
    from ..engine import Sink
    from .process import ChildProcess
    from .pump import Timer

WAITING, SENT, ENDED = 0, 1, 2
NOTHING = Parcel("")  # what a job holds that ended while it waited: its place in a lane keeps no arguments alive
SPARSE = 64  # dropped jobs from which on lanes are cleared of them, once they are the majority


class Job:
    """A parcel's way through an engine. Changed under the engine's lock."""

    __slots__ = (
        "child",
        "heard",
        "last_event",
        "messages",
        "parcel",
        "reason",
        "rung",
        "seq",
        "silence",
        "sink",
        "stalled",
        "started",
        "state",
        "timer",
        "verdict",
    )

    def __init__(self, parcel: Parcel, sink: Sink) -> None:
        self.parcel = parcel
        self.sink = sink
        self.state = WAITING
        self.seq = 0
        self.child: ChildProcess | None = None
        self.started = 0.0  # monotonic seconds; 0: not announced
        self.heard = 0.0  # when its last event came, monotonic seconds
        self.last_event: str | None = None
        self.reason = ""  # why it is being stopped: "cancel", "timeout", "stall", "memory", "close"
        self.rung = ""  # the last rung of the ladder that was tried
        self.timer: Timer | None = None  # the ladder's next rung
        self.stalled: Timer | None = None  # the time-out
        self.silence: Timer | None = None  # the stall
        self.messages: list[tuple[str, Any]] | None = None  # sent to it before it was given to a child
        self.verdict: BaseException | None = None  # what it failed of, decided here (time-out, memory)

    @property
    def name(self) -> str:
        work = self.parcel.work
        return work.function.name if work is not None else self.parcel.id


class Lanes:
    """Jobs that wait, higher priorities first, each priority in order. Not thread-safe."""

    __slots__ = ("_dropped", "_lanes", "_order", "count")

    def __init__(self) -> None:
        self._lanes: dict[int, deque[Job]] = {0: deque()}
        self._order: list[int] = [0]  # priorities, highest first
        self.count = 0
        self._dropped = 0  # that are in a lane still

    def _lane(self, priority: int) -> deque[Job]:
        lane = self._lanes.get(priority)
        if lane is None:
            lane = self._lanes[priority] = deque()
            self._order = sorted(self._lanes, reverse=True)
        return lane

    def push(self, job: Job) -> None:
        priority = job.parcel.priority
        (self._lanes[0] if priority == 0 else self._lane(priority)).append(job)
        self.count += 1

    def push_back(self, jobs: list[Job]) -> None:
        """Put jobs that were taken already in front again, in their order."""
        for job in reversed(jobs):
            self._lane(job.parcel.priority).appendleft(job)
        self.count += len(jobs)

    def peek(self) -> Job | None:
        for priority in self._order:
            lane = self._lanes[priority]
            while lane:
                if lane[0].state != ENDED:
                    return lane[0]
                lane.popleft()
                self._dropped -= 1
        return None

    def pop(self) -> Job | None:
        job = self.peek()
        if job is not None:
            self._lanes[job.parcel.priority].popleft()
            self.count -= 1
        return job

    def drop(self, job: Job) -> None:
        """The job ended while it waited; its place is skipped later, or cleared when few places are not such."""
        job.state = ENDED
        self.count -= 1
        self._dropped += 1
        if self._dropped > SPARSE and self._dropped > self.count:
            for priority, lane in self._lanes.items():
                self._lanes[priority] = deque(job for job in lane if job.state != ENDED)
            self._dropped = 0

    def clear(self) -> list[Job]:
        jobs = [job for priority in self._order for job in self._lanes[priority] if job.state != ENDED]
        for lane in self._lanes.values():
            lane.clear()
        self.count = self._dropped = 0
        return jobs
