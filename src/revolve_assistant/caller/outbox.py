"""What a client sends: tasks to the queue, words to workers. On the sender's thread, but for what is put in.

submit ─▶ jobs ─▶ sealed ─▶ its log is made ─▶ Queue.submit ─▶ acknowledged
                                                   └▶ another task holds its key ─▶ it is that task from now on
send, cancel, ask ─▶ words, cancels
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from ..engine import Parcel
from ..errors import NotCarriable, Overloaded, Unsupported, UsageError
from ..pool.reports import REPORT_CANCELLED, REPORT_RAISED
from ..wire import control, envelope
from ..wire import frames as wire
from ..wire.seal import Purpose
from .inbox import RemoteJob

if TYPE_CHECKING:
    from .remote import Remote

BATCH = 500  # tasks handed to the queue at once
EXPIRY = 7 * 86400.0  # seconds after which nobody runs a task any more
LOG_CAP = 8 << 20  # bytes of a task's log
ALIAS = 86400.0  # seconds that it is remembered which task another one is in truth
PAUSE = 0.05  # seconds before a full queue is tried again
RETRY_CANCEL = 0.5  # seconds between attempts to take a task back that its worker is just giving back
RETRY_UNIQUE = (0.05, 1.0)  # seconds between attempts while the queue was not told yet that the holder has ended
REMEMBERED = 1000  # tasks that held a key


class Outbox:
    """Part of `Remote`."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self.jobs: deque[RemoteJob] = deque()
        self.words: deque[tuple[str, bytes]] = deque()  # (channel, sealed message)
        self.cancels: deque[RemoteJob] = deque()
        self.again: dict[str, str] = {}  # tasks that repeat buried ones, until their logs say so
        self._missed: list[RemoteJob] = []  # to be taken back between two attempts, and not there just then
        self._missed_next = 0.0
        self._held_off: list[RemoteJob] = []  # to be submitted again: their key is not free yet
        self._held_off_next = 0.0
        self._held_off_pause = RETRY_UNIQUE[0]
        self._freed: OrderedDict[str, None] = OrderedDict()  # tasks that held a key and have ended

    def __bool__(self) -> bool:
        return bool(self.jobs or self.words or self.cancels)

    @property
    def next(self) -> float:
        """When something is to be tried again, monotonic seconds."""
        return min(
            self._missed_next if self._missed else float("inf"), self._held_off_next if self._held_off else float("inf")
        )

    def freed(self, task_id: str) -> None:
        """A task that held a key has ended, which its worker may not have told the queue yet."""
        self._freed[task_id] = None
        if len(self._freed) > REMEMBERED:
            self._freed.popitem(last=False)

    def send(self) -> None:
        """Send what there is: control messages first, they are few and somebody waits."""
        remote = self._remote
        if self._missed and monotonic() >= self._missed_next:
            missed, self._missed = self._missed, []
            self.cancels.extend(missed)
        if self._held_off and monotonic() >= self._held_off_next:
            held_off, self._held_off = self._held_off, []
            self.jobs.extend(held_off)
        while self.cancels:
            self._take_back(self.cancels[0])
            self.cancels.popleft()
        while self.words:
            words = [self.words[at] for at in range(min(len(self.words), BATCH))]
            remote.messenger.write(words)
            for _ in words:
                self.words.popleft()
        while self.jobs:
            batch = [self.jobs[at] for at in range(min(len(self.jobs), BATCH))]
            parcels = [job.parcel for job in batch if self._pack(job)]
            try:
                self._hand_over(parcels)
            except Overloaded as error:
                remote.lost_touch(error)
                remote.pause(PAUSE)
                return
            for _ in batch:
                self.jobs.popleft()
            remote.in_touch()
            remote.acknowledge([job for job in batch if job not in self._held_off] if self._held_off else batch)
            if self.words or self.cancels:
                return
            remote.reader_look()

    def _hand_over(self, parcels: list[Parcel]) -> None:
        remote = self._remote
        logs = [wire.log_of(parcel.id) for parcel in parcels if parcel._.history]
        if self.again:
            self._say_again(parcels)
        try:
            if logs or remote.queue.needs_messenger:
                seconds = EXPIRY + max([parcel.delay for parcel in parcels])
                others = remote.queue.submit_and_keep(
                    parcels, _Nobody, remote.messenger, logs, seconds=seconds, cap=LOG_CAP
                )
            else:
                others = remote.queue.submit(parcels, _Nobody)
            if others:
                self._give_way(parcels, others)
        except UsageError as error:  # one of them is what the queue does not take
            if len(parcels) == 1:
                remote.end(parcels[0]._, REPORT_RAISED, error)
                return
            for parcel in parcels:
                self._hand_over([parcel])

    def _say_again(self, parcels: list[Parcel]) -> None:
        """Before a worker can have them, so that its run is the later one."""
        remote = self._remote
        for parcel in parcels:
            old = self.again.get(parcel.id)
            if old is not None:
                log = wire.log_of(parcel.id)
                remote.messenger.keep([log], seconds=EXPIRY + parcel.delay, cap=LOG_CAP)
                remote.messenger.write([remote.watches.sealed(parcel.id, (wire.WAITING, f"task {old} is run again"))])
                del self.again[parcel.id]

    def _give_way(self, parcels: list[Parcel], others: Mapping[str, str]) -> None:
        """Some were not taken, since other tasks hold their keys: these are the same tasks as those."""
        remote = self._remote
        for parcel in parcels:
            other = others.get(parcel.id)
            if other is None:
                continue
            job: RemoteJob = parcel._
            if other in self._freed:  # its worker has stored its end, and tells the queue just now
                self._held_off.append(job)
                self._held_off_next = monotonic() + self._held_off_pause
                self._held_off_pause = min(RETRY_UNIQUE[1], self._held_off_pause * 2)
                continue
            self._held_off_pause = RETRY_UNIQUE[0]
            if not remote.messenger.traits.replays:
                holds = f"task {other} holds unique={parcel.unique!r}"
                error = Unsupported(f"{holds}, and {remote.main.name} has no history to hear it by")
                remote.end(job, REPORT_RAISED, error)
                continue
            if job.history:  # for whoever knows it by its own id
                remote.watches.note(job.key, (wire.FOLLOWS, other), numbered=False)
                remote.messenger.keep([wire.log_of(job.key)], seconds=ALIAS, cap=LOG_CAP)
            remote.jobs.pop(job.key, None)
            remote.watches.follow(job, other)

    def _pack(self, job: RemoteJob) -> bool:
        """Make the task's envelope, once. False: it goes nowhere."""
        parcel = job.parcel
        if job.ended or (job.stopping and not job.acknowledged):
            if not job.ended:
                self._remote.end(job, REPORT_CANCELLED, "unstarted")
            return False
        if parcel.body:
            return True
        try:
            parcel.body = self._envelope(parcel)
        except Exception as error:
            self._remote.end(job, REPORT_RAISED, NotCarriable(f"task {parcel.id} cannot be sent: {error}"))
            return False
        parcel.name = parcel.work.function.name
        if parcel.options is not None:
            parcel.unique = parcel.options.unique
        parcel.work = None
        return True

    def _envelope(self, parcel: Parcel) -> bytes:
        remote = self._remote
        work = parcel.work
        function = work.function
        inside = envelope.Envelope(
            envelope.VERSION,
            parcel.id,
            remote.inbox_name,
            function.name,
            function.kind,
            function.body,
            work.payload,
            time(),
            envelope.terms_of(parcel.options),
            [bytes(buffer.raw()) for buffer in work.buffers or ()],
            list(remote.inbox.reads),
            parcel._.history,
            parcel.headers or {},
        )
        sealed = remote.keys.seal(
            Purpose.TASK,
            f"{remote.namespace}/{parcel.queue}",
            envelope.encode(inside),
            expires=time() + EXPIRY + parcel.delay,
        )
        return envelope.wrap(remote.inbox_name, sealed)

    def _take_back(self, job: RemoteJob) -> None:
        remote = self._remote
        if job.ended:
            return
        if job.started:
            remote.say(job, control.CANCEL)
        elif job.attached:
            if not remote.watches.withdraw(job):  # it is being taken just now, or its log was not read yet
                self._missed.append(job)
                self._missed_next = monotonic() + RETRY_CANCEL
        elif not job.acknowledged:
            pass  # `_pack` meets it
        elif remote.queue.cancel(job.parcel.id):
            if job.history:
                remote.watches.note(job.key, (wire.CANCELLED, "unstarted", []))
            if job.run is not None:  # it had begun before: who looks knows it
                remote.watches.told(job.key)
            remote.end(job, REPORT_CANCELLED, "unstarted")
        elif job.over:  # on its way back to the queue: nobody tells us when it is there
            self._missed.append(job)
            self._missed_next = monotonic() + RETRY_CANCEL


class _Nobody:
    """The sink of what goes to a queue: it reports nothing."""

    @staticmethod
    def deliver(reports: Sequence[Any]) -> None:
        pass
