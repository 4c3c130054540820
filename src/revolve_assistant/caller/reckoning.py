"""What a caller finds out about tasks of which nothing is heard: still there, to be sent again, or lost.

    unheard for a while, or a server was away
        └▶ Queue.state: queued, running ─▶ fine
                        unknown ─▶ read the inbox to its end ─▶ heard of it: fine
                                       ├▶ it has a log of its own ─▶ that is read to its end as well
                                       ├▶ it never started ─▶ sent again (the same id), at most 3 times
                                       └▶ its worker is asked ─▶ has it: fine;  silence ─▶ lost

A gearmand that was restarted, a cache that was emptied, a worker that took its connection along: each ends here, so no
wait is for ever. All on the sender's thread.
"""

from __future__ import annotations

import logging
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from ..engine import Queue
from ..errors import TaskLost, Untrusted
from ..pool.reports import REPORT_LOST, REPORT_RAISED
from ..wire import control
from ..wire.about import read

if TYPE_CHECKING:
    from .inbox import RemoteJob
    from .remote import Remote

log = logging.getLogger("revolve_assistant")

QUIET = 10.0  # seconds without an event after which a task is asked about
ANSWER = 5.0  # seconds that a worker has to say that it has a task
ANSWER_INSIDE = 30.0  # the same where the work's own process answers, which may hold the interpreter for long
AGAIN = 1.0  # seconds between two looks while something is suspicious
LONELY = 5.0  # seconds without any worker after which that is said
ORPHAN = 60.0  # seconds that somebody else's task may be nowhere but in its empty log
DISTRUST = 2.0  # seconds that tasks wait for a worker with the right key once one with another key answered
LOOK_AT = 500  # tasks asked about at once
RESEND = 3


class Reckoning:
    """Part of `Remote`."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._next = 0.0  # when to look again, monotonic seconds
        self._drained = 0.0  # since when the inbox is known to be read to its end
        self._doubts: dict[RemoteJob, float] = {}  # since when the queue does not know it
        self._suspects: deque[RemoteJob] = deque()  # tasks to be asked about though they were heard of just now
        self._distrusted: tuple[float, str] | None = None
        self._lonely = False
        self._began = 0.0

    def _everyone(self) -> list[RemoteJob]:
        return [*list(self._remote.jobs.values()), *list(self._remote.watches.jobs.values())]

    # --- told by the threads

    def suspect(self) -> None:
        """A server was away, so anything may have been lost: ask about every task soon."""
        if not self._suspects:
            self._suspects.extend(self._everyone())
        self._next = min(self._next, monotonic() + AGAIN)

    def read(self, now: float, count: int) -> None:
        """The inbox was read, and held this much."""
        if not count:
            self._drained = now

    def keys_of(self, fingerprints: list[str]) -> None:
        """A worker that holds one of our keys is there."""
        self._distrusted = None

    def distrust(self, text: str) -> None:
        """A worker that holds none of our keys has answered."""
        if self._distrusted is None:
            self._distrusted = (monotonic() + DISTRUST, text)
            self.suspect()
            self._remote.ring()

    # --- on the sender's thread

    def look(self, now: float) -> float:
        """Look after what is due; returns when to come again (monotonic seconds)."""
        remote = self._remote
        if not remote.jobs and not remote.watches.jobs:
            self._began = 0.0
            return now + QUIET
        self._began = self._began or now
        due = now + QUIET
        if remote.jobs and not remote.worker_seen and not self._lonely:
            if now - self._began >= LONELY:
                self._say_lonely()
                self._lonely = True
            else:
                due = min(due, self._began + LONELY)
        if self._distrusted is not None:
            when, text = self._distrusted
            if now >= when:
                self._distrusted = None
                for job in list(remote.jobs.values()):
                    if not job.started and job.acknowledged:
                        remote.end(job, REPORT_RAISED, Untrusted(text))
                for job in list(remote.watches.jobs.values()):
                    if not job.started and job.log is not None and job.log.box.refused:
                        remote.end(job, REPORT_RAISED, Untrusted(text))
            else:
                due = min(due, when)
        if now >= self._next:
            self._next = now + (AGAIN if self._ask(now) else QUIET)
        return min(due, self._next)

    def _say_lonely(self) -> None:
        """Nothing was heard of any worker: they are busy, or there is none, or none for these queues."""
        remote = self._remote
        if not isinstance(remote.queue, Queue):
            return  # it starts what runs tasks by itself, and takes its time
        queues = {job.parcel.queue for job in list(remote.jobs.values())}
        if remote.queue.traits.manages:
            served = [read(key, about).queues for key, about in remote.queue.workers().items()]
            queues -= {name for names in served for name in names or queues}
            if not queues:
                return
        flags = "" if queues == {"default"} else f" -q {','.join(sorted(queues))}"
        which = f" of queue {', '.join(sorted(queues))}" if flags else ""
        log.warning(
            "no worker%s has been heard of for %g s: start one with  revolve worker %s%s",
            which, LONELY, remote.place, flags,
        )  # fmt: skip

    def _ask(self, now: float) -> bool:
        """Ask the queue about tasks of which nothing was heard. True: some are in doubt."""
        remote = self._remote
        doubts = self._doubts
        about = self._unheard(now)
        if not about:
            return False
        states = remote.queue.state([job.parcel.id for job in about])
        asked = monotonic()
        for job in about:
            if states.get(job.parcel.id, "unknown") != "unknown":
                doubts.pop(job, None)
                job.asked = 0.0
                job.heard = max(job.heard, now - QUIET / 2)  # not the same ones at every look
                continue
            since = doubts.setdefault(job, asked)
            if asked - since < AGAIN or self._drained < since:
                remote.messenger.wake()  # so that the inbox is read to its end
                continue
            if job.heard > since or job.ended:
                doubts.pop(job, None)
                continue
            if job.history and job.log is None:  # what its inbox lost may be there
                remote.watches.open(job)
                remote.reader_ring()
                continue
            if job.log is not None and not job.log.box.gone and job.log.box.drained < since:
                remote.messenger.wake()
                continue
            self._decide(job, asked)
        for job in [job for job in doubts if job.ended]:
            del doubts[job]
        return bool(doubts or self._suspects)

    def _unheard(self, now: float) -> list[RemoteJob]:
        """The tasks to ask about now: in doubt, suspected, or quiet for long."""
        chosen = dict.fromkeys(list(self._doubts)[:LOOK_AT])
        while self._suspects and len(chosen) < LOOK_AT:
            chosen[self._suspects.popleft()] = None
        if len(chosen) < LOOK_AT:
            for job in self._everyone():
                if now - job.heard >= QUIET and len(chosen) < LOOK_AT:
                    chosen[job] = None
        return [job for job in chosen if job.acknowledged and not job.ended]

    def _decide(self, job: RemoteJob, now: float) -> None:
        """Neither the queue nor the inbox knows of it."""
        remote = self._remote
        if job.started and not job.over and (job.control or not job.attached):
            if not job.asked:
                job.asked = now
                remote.say(job, control.ALIVE)
                return
            if now - job.asked < (ANSWER_INSIDE if job.reported else ANSWER):
                return
            if job.spare is not None:
                remote.end(job, *job.spare[1:])
            else:
                text = f"task {job.parcel.id}: neither {remote.place} nor its worker has it any more"
                if job.reported:
                    text = f"task {job.parcel.id}: the process that reported it is gone, and said no end"
                remote.end(job, REPORT_LOST, TaskLost(text))
        elif job.attached:
            self._wait_on(job, now)
            return
        elif job.resent < RESEND and not job.stopping:
            job.resent += 1
            job.acknowledged = False
            log.warning("task %s is not in %s any more: sent again", job.parcel.id, remote.place)
            remote.outbox.jobs.append(job)
        else:
            remote.end(job, REPORT_LOST, TaskLost(f"task {job.parcel.id} is not in {remote.place} any more"))
        self._doubts.pop(job, None)

    def _wait_on(self, job: RemoteJob, now: float) -> None:
        """Somebody else's task that no queue knows, and that never said that a worker has it.

        Whoever submitted it sends it again if it was lost, and a program outside of any queue may be silent as long as
        it likes: its log says when it is over.
        """
        finds = self._remote.queue.traits.finds  # else it may well wait there
        silent = finds and not job.started and now - job.heard > max(ORPHAN, job.within)
        if job.log is None or (silent and not job.log.box.heard):
            text = f"task {job.parcel.id} is not in {self._remote.place} any more"
            self._remote.end(job, REPORT_LOST, TaskLost(text))
        self._doubts.pop(job, None)
