"""Tasks that run somewhere else: the engine that a Client has when its URL names a Queue.

    submit ──▶ outbox ══▶ Queue.submit ┄┄▶ worker                     "revolve-sender": everything that goes out
    send, cancel, ask ══▶ Messenger.write ┄┄▶ its control channel
    sink ◀── Inbox.take ◀══ Messenger.read ◀┄┄ one inbox for all tasks   "revolve-reader": everything that comes in
                                           ◀┄┄ logs of tasks that are watched (`watching`)

`submit` does no I/O. What cannot be sent now waits, up to `max_pending`, and is sent when the server is back. The
sender also minds what nobody else can: that the inbox is kept, that some worker is there, that no task was lost with
a server (`reckoning`).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from ..engine import EngineState, Parcel, Sink
from ..errors import Overloaded, ProviderError, Unreachable, Unsupported, Untrusted
from ..pool.threads import OurThread
from ..wire import control
from ..wire import frames as wire
from ..wire.seal import Purpose
from .foreign import Call, Calls, Foreign
from .inbox import Inbox, RemoteJob
from .mailbox import READ, TIDY, Mailbox, read_together
from .outbox import Outbox
from .reckoning import Reckoning
from .watching import Watches, superseded

if TYPE_CHECKING:
    from ..providers.carriers import Carriers
    from .desk import Desk
    from .monitoring import Monitored

log = logging.getLogger("revolve_assistant")

MAX_PENDING = 100_000
PAUSES = (0.05, 5.0)  # seconds between attempts to reach a server: first, most
LINGER = 1.0  # seconds after the last task during which the inbox is still read
HISTORY = 86400.0  # seconds that a task's log is kept after its end, unless it is said
_ANSWERS = {wire.STACK: control.STACK, wire.ARGUMENTS: control.ARGUMENTS}
FLUSH = 5.0  # seconds that `close` waits for what was submitted


class _Turn:
    """What stands in for a local engine's pump: which threads must not wait for a task."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    @property
    def inside(self) -> bool:
        here = threading.current_thread()
        return here is self._remote.sender or here is self._remote.reader

    def lead(self, ended: Any, timeout: float | None, register: Any) -> bool:
        return False


class Remote:
    """The far side of a queue, as a Client sees it. Thread-safe. Threads start at the first `submit`."""

    children = True  # there is nothing to start ahead
    remote = True
    lets_go = True  # leaving the client's block leaves unfinished tasks to their workers

    def __init__(self, carriers: Carriers, *, max_pending: int = MAX_PENDING, driven: bool = False) -> None:
        self.queue, self.messenger, self.keys, self.namespace, self.place, self.natural = carriers
        self.messenger.join(self.queue)  # both are the sender's
        self.driven = driven  # nobody reads but the client's own thread
        self._starting = threading.Lock()
        self.managing = threading.Lock()  # what the trait `manages` gives is called by one thread at a time
        self.traits = self.queue.traits
        self.max_pending = max_pending
        self.inbox_name = f"i.{os.urandom(16).hex()}"
        self.jobs: dict[str, RemoteJob] = {}
        self.pump = _Turn(self)
        self.inbox = Inbox(self.jobs, self.begun)
        self.watches = Watches(self)
        self.sources: dict[Mailbox, str] = {}  # further mailboxes, and the messengers' addresses
        self.monitors: list[Monitored] = []  # of those who want to hear of all tasks
        self.reckoning = Reckoning(self)
        self.calls = Calls(self)
        self.sender: threading.Thread | None = None
        self.reader: threading.Thread | None = None
        self.away_since = 0.0  # monotonic seconds since when a server does not answer; 0: all do
        self._reader_away = False  # it was the reader that found out
        self.trouble: ProviderError | None = None
        self.worker_seen = False
        self._lock = threading.Lock()
        self._bell = threading.Condition(self._lock)  # of the sender
        self._work = threading.Condition(self._lock)  # of the reader
        self.outbox = Outbox(self)
        self.desk: Desk | None = None  # made by who needs it
        self._asked: dict[tuple[str, int], list[Any]] = {}  # of workers, by task and kind
        self._sleeping = False
        self._news = False  # somebody rang while the sender was busy
        self._closing = False
        self.main = self.mailbox(self.messenger)
        self._warned: set[str] = set()

    # --- what the client calls

    def expect(self) -> None:
        pass

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        """Take the parcels; no I/O. Raises `Overloaded`, `Unsupported`."""
        if self._closing:
            raise Unreachable("the client is closed")
        if type(parcels[0].work) is Foreign:
            self.calls.submit(parcels, sink)
            return
        jobs = []
        for parcel in parcels:
            if parcel.work.shares:
                raise Unsupported("client.share() goes with worker processes of this machine: pass the value itself")
            job = parcel._ = RemoteJob(parcel, sink)
            job.history = self._history(parcel.options)
            jobs.append(job)
        if len(self.outbox.jobs) + len(jobs) > self.max_pending:
            raise Overloaded(
                f"{len(self.outbox.jobs):,} tasks wait for {self.place} to acknowledge them: wait with queued()"
            )
        for job in jobs:
            self.jobs[job.parcel.id] = job
        self.outbox.jobs.extend(jobs)
        if self.sender is None:
            self.start()
        if self._sleeping:
            with self._lock:
                self._bell.notify()

    def attach(self, parcel: Parcel, sink: Sink, within: float = 0.0) -> bool:
        """Hear a task that somebody else submitted; no I/O. False: no task can be called that. Raises `Unsupported`."""
        if self._closing:
            raise Unreachable("the client is closed")
        return self.watches.attach(parcel, sink, within)

    def detach(self, parcel: Parcel) -> None:
        """Nobody here is interested in it any more. From any thread, the collector's included."""
        self.watches.detach(parcel)

    def _history(self, options: Any) -> float:
        """Seconds that a task's log is kept after its end."""
        wish = options.history if options is not None else None
        if wish is False:
            return 0.0
        if not self.messenger.traits.replays:
            if wish:
                raise Unsupported(f"{self.main.name} keeps no history: leave history= out, or take another messenger")
            return 0.0
        return HISTORY if wish is None or wish is True else float(wish)

    def _job(self, task_id: str) -> RemoteJob | None:
        return self.jobs.get(task_id) or self.watches.jobs.get(task_id)

    def state(self, ids: Iterable[str]) -> Mapping[str, EngineState]:
        found: dict[str, EngineState] = {}
        for id in ids:
            job = self._job(id)
            found[id] = "unknown" if job is None else "running" if job.started else "queued"
        return found

    def cancel(self, task_id: str) -> bool:
        """Take an untaken task back, or tell the worker that has it; returns at once."""
        job = self._job(task_id)
        if job is None or job.ended:
            return self.calls.cancel(task_id)
        job.stopping = True
        self.outbox.cancels.append(job)
        self.ring()
        return True

    def send(self, parcel: Parcel, name: str, packed: Any) -> bool:
        """Hand a message to the task, kept here until it starts. False: it has ended."""
        job: RemoteJob | None = parcel._
        if job is None or job.ended:
            return False
        if type(job) is Call:
            raise Unsupported("a function of another program takes no messages")
        with self._lock:
            if not job.started:
                if job.messages is None:
                    job.messages = []
                job.messages.append((name, packed))
                del job.messages[:-1000]
                return True
        self.say(job, control.SEND, name, packed)
        return True

    def grant(self, parcel: Parcel) -> None:
        """Credit is between a worker and its child; what waits in the inbox is capped instead."""

    def help(self, task_id: str) -> None:
        pass

    def stack(self, parcel: Parcel) -> str:
        """The live stacks, asked of the worker. Blocks up to 5 s. Raises `LookupError`, `Unreachable`."""
        return str(self._ask(parcel, control.STACK))

    def arguments(self, parcel: Parcel) -> tuple[bytes, Sequence[bytes]]:
        """What a running task was called with, pickled, asked of the worker. As `stack`."""
        payload, buffers = self._ask(parcel, control.ARGUMENTS)
        if payload is None:
            raise LookupError("they are too large to be shown")
        return payload, buffers

    def _ask(self, parcel: Parcel, kind: int) -> Any:
        job: RemoteJob | None = parcel._
        if job is None or not job.started:
            raise LookupError(f"task {parcel.id} is not running")
        if type(job) is Call:
            raise Unsupported("a function of another program shows nothing of itself")
        box: list[Any] = [threading.Event(), None]
        self._asked[parcel.id, kind] = box
        try:
            self.say(job, kind)
            if not box[0].wait(5.0):
                raise Unreachable(f"the worker of task {parcel.id} did not answer within 5 s")
        finally:
            self._asked.pop((parcel.id, kind), None)
        return box[1]

    def when_acknowledged(self, parcel: Parcel, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` once the queue has the task, or it has ended; perhaps at once."""
        job: RemoteJob | None = parcel._
        with self._lock:
            if job is not None and not job.acknowledged and not job.ended:
                if job.wakes is None:
                    job.wakes = []
                wakes = job.wakes
                wakes.append(wake)
                return lambda: wakes.remove(wake) if wake in wakes else None
        wake()
        return lambda: None

    def close(self) -> None:
        """Send what was submitted (up to 5 s), then let go: what runs elsewhere goes on there."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._bell.notify_all()
            self._work.notify_all()
        for thread, wake in ((self.sender, self.queue.wake), (self.reader, self.messenger.wake)):
            if thread is not None and thread is not threading.current_thread():
                wake()
                thread.join(FLUSH + 5.0)
        self.calls.close()
        if self.desk is not None:
            self.desk.close()
        if self.sender is not None:
            if not self.jobs:
                self.main.forget()
            for box in (self.main, *self.sources):
                box.messenger.close()
        self.queue.close()

    def abandon(self) -> None:
        """In a forked child: the connections are the parent's; what is made next opens its own."""
        self._closing = True
        self.sender = self.reader = None

    # --- shared by the threads

    def ring(self) -> None:
        """Have the sender look at what there is to do."""
        with self._lock:
            self._news = True
            self._bell.notify()

    def say(self, job: RemoteJob, kind: int, *more: Any) -> None:
        """Have a control message sent to the worker that has the task."""
        if not job.control:
            return
        message = control.encode(self.inbox_name, kind, job.parcel.id, job.run or b"", *more)
        sealed = self.keys.seal(Purpose.CONTROL, f"{self.namespace}/{job.control}", message, expires=time() + 3600)
        self.post(job.control, sealed)

    def report(self, reports: list[tuple[Sink, tuple[Any, ...]]]) -> None:
        """Hand reports to their sinks; what has ended is forgotten."""
        batch: list[Any] = []
        last: Sink | None = None
        for sink, report in reports:
            job = report[0]._
            if job is not None and job.ended:
                self.jobs.pop(job.key, None)
                if job.log is not None or job.attached:
                    self.watches.forget(job)
                if job.parcel.unique is not None and not job.attached:
                    self.outbox.freed(job.key)
                if job.wakes:
                    self.acknowledge([job])
            if sink is not last:
                if last is not None:
                    last.deliver(batch)
                batch, last = [], sink
            batch.append(report)
        if last is not None:
            last.deliver(batch)

    def end(self, job: RemoteJob, kind: int, *rest: Any) -> None:
        """End a task here, with a verdict of our own."""
        if not job.ended:
            job.ended = True
            self.report([(job.sink, (job.parcel, kind, *rest))])

    def lost_touch(self, error: ProviderError) -> None:
        """A server does not answer."""
        if not self.away_since:
            self.away_since = monotonic()
            log.warning("%s; trying again", error)
        self.trouble = error
        self.reckoning.suspect()
        self.ring()  # it may be the reader's thread that found out

    def in_touch(self) -> None:
        """A server answered."""
        if self.away_since:
            log.warning("%s answers again", self.place)
            self.away_since = 0.0
            self.trouble = None

    def known_to_queue(self, task_id: str) -> bool:
        """Asks it. On the sender's thread."""
        return bool(self.queue.state([task_id]).get(task_id, "unknown") != "unknown")

    def post(self, channel: str, sealed: bytes) -> None:
        """Have a message written."""
        self.outbox.words.append((channel, sealed))
        self.ring()

    def overlook(self, monitor: Monitored, begin: bool) -> None:
        """Hear what all workers say of all tasks, or no more. Raises `Unsupported` where nobody can."""
        if begin and not self.messenger.traits.fanout:
            raise Unsupported(f"{self.main.name} tells each message to one reader only: nobody can look at all tasks")
        self.monitors = [each for each in self.monitors if each is not monitor] + [monitor] * begin
        self.start()
        self.ring()
        self.reader_ring()

    def reader_ring(self) -> None:
        """Have the reader look at what there is to read."""
        self.reader_look()
        self.messenger.wake()

    def pause(self, seconds: float) -> None:
        """Wait so long, or until there is something to send. On the sender's thread."""
        with self._lock:
            self._bell.wait(seconds)

    def reader_look(self) -> None:
        """The reader may have something to read for now."""
        with self._lock:
            self._work.notify()

    def warn_once(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < 100:
            self._warned.add(text)
            log.warning("%s", text)

    # --- the sender

    def start(self) -> None:
        """Start the threads, once."""
        if self.sender is not None:
            return
        with self._lock:
            if self.sender is not None or self._closing:
                return
            self.sender = OurThread(self._run, "revolve-sender", (self._send,))
            self.sender.start()
            if not self.driven:
                self.reader = OurThread(self._run, "revolve-reader", (self._read,))
                self.reader.start()

    def _run(self, loop: Callable[[], None]) -> None:
        """A thread's whole life: a server that does not answer is tried again, more and more slowly."""
        pause = PAUSES[0]
        while True:
            try:
                loop()
                return
            except ProviderError as error:
                self.lost_touch(error)
                self._reader_away = self._reader_away or loop == self._read
                if self._closing:
                    return
                with self._lock:
                    self._bell.wait(pause) if loop == self._send else self._work.wait(pause)
                pause = min(PAUSES[1], pause * 2)
                if not self.away_since:
                    pause = PAUSES[0]
            except Exception:
                log.exception("the client's thread failed; it goes on")
                with self._lock:
                    self._work.wait(PAUSES[1])

    def _send(self) -> None:
        self.queue.open()
        self.messenger.open()
        self.in_touch()
        flushed = None
        while True:
            if self.main.due():
                self._keep()
            if self.sources:
                self._keep_sources()
            for monitor in self.monitors:
                if monitor.due():
                    monitor.keep()
                    self.reader_ring()
            self.outbox.send()
            due = min(self.reckoning.look(monotonic()), self.outbox.next)
            if self.watches.missing:
                due = min(due, self.watches.settle_missing())
            with self._lock:
                if self._closing and not self.outbox.jobs and not self.outbox.words:
                    return
                if self._closing:
                    flushed = flushed or monotonic() + FLUSH
                    if monotonic() > flushed:
                        return
                if self.outbox or self.main.fresh or self._news:
                    self._news = False
                    continue
                self._sleeping = True
                if not self.outbox.jobs:  # one that was put there without the lock
                    self._bell.wait(max(0.0, due - monotonic()) if self.jobs or self.watches.jobs else None)
                self._sleeping = False

    def _keep(self) -> None:
        self.main.keep()
        with self._lock:
            self._work.notify()

    def _keep_sources(self) -> None:
        for box in list(self.sources):
            if box.due():
                try:
                    box.messenger.open()
                    box.keep()
                except ProviderError as error:  # tasks go on without it, and what is missing is said
                    self.warn_once(f"{box.name} does not answer: {error}")

    def add_source(self, box: Mailbox, address: str) -> None:
        """Have a further mailbox kept, and tasks told that this client reads it."""
        self.inbox.reads.add(address)
        self.sources[box] = address
        self.ring()

    def until_kept(self, timeout: float) -> None:
        """Wait until the inbox is there, at most `timeout` seconds."""
        with self._lock:
            if self.main.fresh:
                self._work.wait(timeout)

    def acknowledge(self, jobs: Sequence[RemoteJob]) -> None:
        """The queue has these: wake whoever waits for that."""
        now = monotonic()
        with self._lock:
            wakes = []
            for job in jobs:
                job.acknowledged = True
                job.heard = job.heard or now
                if job.wakes:
                    wakes += job.wakes
                    job.wakes = None
        for wake in wakes:
            wake()

    def begun(self, job: RemoteJob) -> None:
        """A worker has the task: it gets what was said before, and whether it is wanted at all."""
        self.worker_seen = True
        with self._lock:
            messages, job.messages = job.messages, None
        if job.stopping:
            self.say(job, control.CANCEL)
        for name, packed in messages or ():
            self.say(job, control.SEND, name, packed)

    # --- the reader

    def _read(self) -> None:
        main = self.main
        wait = 30.0 if main.messenger.traits.waits else 0.5
        idle = 0.0  # since when there is nothing to read for, monotonic seconds
        while True:
            with self._lock:
                while not self._closing:
                    wanted = bool(self.jobs or self._asked or self.watches.boxes or self.monitors)
                    if wanted:
                        idle = 0.0
                    elif not idle:
                        idle = monotonic()
                    if not main.fresh and (wanted or monotonic() - idle < LINGER):
                        break  # soon after one task there is often another: its start need not wake this thread first
                    self._work.wait()
                if self._closing:
                    return
            self.take_all(0.0 if self._reader_away else wait if wanted else LINGER / 2)
            if self._reader_away:  # it answers, although it may have nothing to say
                self._reader_away = False
                self.in_touch()

    def take_all(self, wait: float) -> int:
        """Read the inbox and all logs that are watched, and report what came. As `take`."""
        total = 0
        if self.main.untidy:
            wait = min(wait, TIDY)
        boxes: list[Mailbox] = [self.main, *list(self.watches.boxes)]
        monitors = [each for each in self.monitors if not each.fresh]
        boxes += monitors
        told = 0
        for box, found, count in read_together(self.messenger, boxes, wait):
            if monitors and box in monitors:
                told = count
                continue
            watch = self.watches.boxes.get(box)
            if watch is not None and len(found) > 1:
                superseded(found)
            self._take(box, found, watch.inbox if watch is not None else self.inbox)
            total += count
            if watch is not None:
                self.watches.look(box)
            elif self.watches.jobs:
                for _, frames in found:
                    self.watches.answered(frames, monotonic())
        self.main.tidy(not total)
        self.reckoning.read(
            monotonic(), total + (told if told + total >= READ else 0)
        )  # else the rest was read to its end
        return total

    def take(self, box: Mailbox, wait: float) -> int:
        """Read a further mailbox and report what came; the number of messages. Raises `Unreachable`."""
        found, count = box.read(wait)
        self._take(box, found, self.inbox)
        box.tidy(not count)
        return count

    def _take(self, box: Mailbox, found: list[tuple[str, list[Any]]], inbox: Inbox) -> None:
        if box is self.main and box.fresh:
            self.reckoning.suspect()
            self.ring()
        if found:
            self.in_touch()
            self.worker_seen = True
            self.reckoning.keys_of(box.fingerprints)
        source = self.sources.get(box, "")
        for sender, frames in found:
            if self._asked:
                self._take_answers(frames)
            self.report(inbox.take(frames, monotonic(), source, sender))

    def mailbox(self, messenger: Any) -> Mailbox:
        """This client's inbox on a messenger."""
        return Mailbox(messenger, self.inbox_name, self.keys, self.namespace, self.distrust)

    def _take_answers(self, frames: list[Any]) -> None:
        for id, _run, first, records in frames:
            if first == 0 and records:
                kind, *rest = records[0]
                box = self._asked.get((id, _ANSWERS.get(kind, 0)))
                if box is not None:
                    box[1] = rest[0] if kind == wire.STACK else rest[:2]
                    box[0].set()

    def distrust(self, error: Untrusted) -> None:
        """Somebody answers who does not hold our key: most likely a worker that could not open ours either."""
        theirs = getattr(error, "fingerprint", "") or "?"
        ours = ", ".join(self.keys.fingerprints)
        text = (
            f"a worker at {self.place} signs with the key {theirs}, this client with {ours}: "
            "give both the same secret (REVOLVE_SECRET or REVOLVE_SECRET_FILE)"
        )
        self.warn_once(text if getattr(error, "reason", "") == "unknown key" else f"a message was refused: {error}")
        self.reckoning.distrust(text)
