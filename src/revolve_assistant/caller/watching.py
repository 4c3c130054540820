"""Tasks that are heard through their logs: those of other processes (`attach`), and those of our own that are in truth
another task (`unique`) or whose inbox lost something.

    worker ══▶ inbox of who submitted it
        └════▶ log "t.<task id>" ──▶ Watch ──▶ Inbox of one task ──▶ reports, as for a task of our own

All logs are read in one read with the inbox, so that a thousand of them cost no further connection or thread. What is
told of a task is put together from its log by the same rules as from an inbox: runs, numbers, gaps, ends.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..engine import Parcel, Sink
from ..errors import ProviderError, TaskLost, Unsupported, Untrusted
from ..pool.reports import REPORT_CANCELLED, REPORT_LOST
from ..wire import envelope
from ..wire import frames as wire
from ..wire.remote import headline
from ..wire.seal import Purpose
from .inbox import Inbox, RemoteJob
from .mailbox import Mailbox, TaskLog

if TYPE_CHECKING:
    from ..engine import Buried
    from .remote import Remote

log = logging.getLogger("revolve_assistant")

GRACE = 1.0  # seconds that a task may take to get to where others see it, once its id is known
_LOOK = 0.1  # seconds between two looks for it
_LOOK_LATER = 0.5  # the same for one that may take longer
_ID = re.compile(r"[A-Za-z0-9._-]{1,60}\Z")


class Watch:
    """A job and the log that it is heard through."""

    __slots__ = ("box", "inbox", "job", "refused")

    def __init__(self, job: RemoteJob, box: TaskLog, begun: Callable[[RemoteJob], None]) -> None:
        self.job = job
        self.box = box
        self.refused: Untrusted | None = None
        self.inbox = Inbox({job.parcel.id: job}, begun)


class Watches:
    """Part of `Remote`. Logs come and go from any thread: whoever goes through `boxes` takes a list of them first."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self.boxes: dict[Mailbox, Watch] = {}
        self.jobs: dict[str, RemoteJob] = {}  # those that are no longer, or never were, among the client's own
        self.missing: list[Watch] = []  # whose log is not there

    def attach(self, parcel: Parcel, sink: Sink, within: float = 0.0) -> bool:
        """Hear a task of somebody else from its start on; False: no task can be called that. Raises `Unsupported`.

        `within`: seconds that it may take until it is there.
        """
        remote = self._remote
        if not remote.messenger.traits.replays:
            raise Unsupported(
                f"{remote.main.name} keeps no history: attach to a task where it was submitted, or give both sides a "
                "messenger that does (redis, sqlite, filesystem, memcached)"
            )
        if not _ID.match(parcel.id):
            return False
        job = parcel._ = RemoteJob(parcel, sink)
        job.attached = job.acknowledged = True
        job.heard = monotonic()
        job.within = max(GRACE, within)
        self.jobs[job.key] = job
        self.open(job)
        remote.start()
        remote.ring()
        remote.reader_ring()
        return True

    def detach(self, parcel: Parcel) -> None:
        """Nobody is interested any more. From any thread."""
        job = parcel._
        if job is not None and not job.ended:
            job.ended = True
            self.forget(job)

    def open(self, job: RemoteJob) -> None:
        """Read the log of a job, beside or in place of the inbox."""
        remote = self._remote
        refused = partial(self._refused, job) if job.attached else remote.distrust
        box = TaskLog(remote.messenger, job.parcel.id, remote.keys, remote.namespace, refused)
        watch = job.log = Watch(job, box, remote.begun)
        self.boxes[box] = watch

    def _refused(self, job: RemoteJob, error: Untrusted) -> None:
        """What stands in the log of somebody's task is not signed with a key of ours."""
        if job.log is not None:
            job.log.refused = error

    def answered(self, frames: list[Any], now: float) -> None:
        """What came to the client's inbox: perhaps that somebody has a task that is watched."""
        for id, _run, first, records in frames:
            job = self.jobs.get(id) if first == 0 else None
            if job is not None and records and records[0][0] == wire.ALIVE:
                job.heard = now
                job.asked = 0.0

    def drop(self, job: RemoteJob) -> None:
        """The job has ended, or is heard elsewhere."""
        watch = job.log
        if watch is not None:
            job.log = None
            self.boxes.pop(watch.box, None)

    def forget(self, job: RemoteJob) -> None:
        """The job has ended."""
        if self.jobs.get(job.key) is job:
            watches = [each for each in list(self.boxes.values()) if each.job is not job and each.job.key == job.key]
            if watches:  # it is watched more than once
                self.jobs[job.key] = watches[-1].job
            else:
                self.jobs.pop(job.key, None)
        self.drop(job)

    def follow(self, job: RemoteJob, other: str) -> None:
        """This job is in truth another task: hear that one's log."""
        self.drop(job)
        job.follows = ""
        job.parcel.id = other
        job.attached = job.acknowledged = True
        job.heard = monotonic()
        self.jobs[job.key] = job
        self.open(job)
        self._remote.reader_ring()

    def look(self, box: Mailbox) -> None:
        """Something was read from the log, or it was found to be gone: on the reader's thread."""
        watch = self.boxes.get(box)
        if watch is None:
            return
        job = watch.job
        if job.ended:
            self.forget(job)
        elif job.follows:
            self.follow(job, job.follows)
        elif watch.refused is not None and job.run is None and not job.started:  # nothing in it is for us
            self._remote.end(job, REPORT_LOST, self._strange(job, watch.refused))
            self.forget(job)
        elif watch.box.gone:
            self.drop(job)
            job.log = watch
            self.missing.append(watch)
            self._remote.ring()

    def _strange(self, job: RemoteJob, error: Untrusted) -> Untrusted:
        if getattr(error, "reason", "") != "unknown key":
            return Untrusted(f"what task {job.parcel.id} said was refused: {error}")
        theirs, ours = getattr(error, "fingerprint", "") or "?", ", ".join(self._remote.keys.fingerprints)
        return Untrusted(
            f"task {job.parcel.id} is signed with the key {theirs}, this client has {ours}: give both the same secret "
            "(REVOLVE_SECRET or REVOLVE_SECRET_FILE)"
        )

    def settle_missing(self) -> float:
        """Say what becomes of tasks whose log is not there; asks the queue. When to come again, monotonic seconds.

        On the sender's thread.
        """
        remote = self._remote
        again = float("inf")
        for watch in list(self.missing):
            job = watch.job
            if not job.ended and job.attached:
                id = job.parcel.id
                now = monotonic()
                if not watch.box.heard and not job.started and now < job.heard + max(GRACE, job.within):
                    look = watch.box.missed + (_LOOK if now < job.heard + GRACE else _LOOK_LATER)
                    if now < look:
                        again = min(again, look)
                    else:  # perhaps it is on its way
                        self.missing.remove(watch)
                        self.open(job)
                        remote.reader_ring()
                    continue
                if watch.box.heard or job.started:
                    error: Exception = TaskLost(f"the history of task {id} was lost by {remote.main.name}")
                    if job.reported:
                        error = TaskLost(f"task {id}: the process that reported it is gone, and said no end")
                elif remote.known_to_queue(id):
                    error = Unsupported(f"task {id} is in {remote.place}, but keeps no history (history=False)")
                else:
                    where = f"{remote.place}, nor its history to {remote.main.name}"
                    error = LookupError(
                        f"no task {id!r} is known to {where}: it may be of another namespace, or kept no longer"
                    )
                remote.end(job, REPORT_LOST, error)
            self.missing.remove(watch)
        return again

    def withdraw(self, job: RemoteJob) -> bool:
        """Take an untaken task of somebody else out of the queue, and tell all who wait for it. False: it is not there.

        On the sender's thread.
        """
        remote = self._remote
        id = job.parcel.id
        if not remote.queue.traits.manages:
            return False
        with remote.managing:
            found = remote.queue.exhume(id)
        if found is None:
            return False
        if not self.tell(found, (wire.CANCELLED, "unstarted", [])):
            log.warning(
                "task %s was signed with another secret: who waits for it is not told, and may send it again", id
            )
        remote.end(job, REPORT_CANCELLED, "unstarted")
        return True

    def tell(self, task: Buried, end: tuple[Any, ...]) -> bool:
        """Have all who wait for a task that was taken out of the queue told how it ended. False: they would not believe
        it, since the task was not signed with a key of ours."""
        remote = self._remote
        try:
            inbox, sealed = envelope.unwrap(task.body)
            # However old it is: it is not run, and who waits is to be told.
            opened = remote.keys.open(Purpose.TASK, f"{remote.namespace}/{task.queue}", sealed, now=0.0)
        except (Untrusted, ProviderError):
            return False
        channels = [wire.log_of(task.id), inbox]
        try:
            inside = envelope.decode(opened)
            channels = [wire.log_of(task.id), inside.inbox] if inside.history else [inside.inbox]
        except ProviderError:
            pass  # of a later release
        for channel in filter(None, channels):  # nobody's inbox: it was submitted by the clock
            self._post(channel, task.id, end, True)
        if task.deliveries:
            self.told(task.id)
        return True

    def told(self, task_id: str) -> None:
        """Tell whoever looks at all tasks that one that had begun was taken out of the queue: no worker will."""
        from ..worker import monitor

        remote = self._remote
        if remote.messenger.traits.fanout:
            data = monitor.telling(task_id, "cancelled")
            audience = f"{remote.namespace}/{monitor.CHANNEL}"
            remote.post(monitor.CHANNEL, remote.keys.seal(Purpose.MONITOR, audience, data))

    def note(self, task_id: str, record: tuple[Any, ...], numbered: bool = True) -> None:
        """Have a record written to a task's log, as all of a run of its own, or as one that belongs to no run."""
        self._post(wire.log_of(task_id), task_id, record, numbered)

    def _post(self, channel: str, task_id: str, record: tuple[Any, ...], numbered: bool) -> None:
        self._remote.post(*self._sealed(channel, task_id, record, numbered))

    def sealed(self, task_id: str, record: tuple[Any, ...]) -> tuple[str, bytes]:
        """The channel and the message that `note` has written."""
        return self._sealed(wire.log_of(task_id), task_id, record, True)

    def _sealed(self, channel: str, task_id: str, record: tuple[Any, ...], numbered: bool) -> tuple[str, bytes]:
        remote = self._remote
        frame = (task_id, os.urandom(8), int(numbered), [record])
        data = wire.encode("", list(remote.keys.fingerprints), [frame])
        return channel, remote.keys.seal(Purpose.EVENT, f"{remote.namespace}/{channel}", data)


def superseded(found: list[tuple[str, list[Any]]]) -> None:
    """Change what was read from a log: an end after which the same code was run again is the end of an attempt only.

    Code that somebody else runs (`reporting`) may be run again under the same id whatever its end was: a Celery task
    that is retried, a cron job the next night.
    """
    again = False
    for _, frames in reversed(found):
        for frame in reversed(frames):
            records = frame[3]
            if again and records and records[-1][0] in wire.ENDS:
                last = records.pop()
                if frame[2]:
                    failure = last[1] if last[0] == wire.FAILED else None
                    reason = headline(failure) if failure is not None else "it had ended, and was started again"
                    records.append([wire.RETRYING, reason, 0.0])
            if records and records[0][0] == wire.STARTED and len(records[0]) > 5 and records[0][5]:
                again = True
