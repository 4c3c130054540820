"""Feeds children: what waits, in which order, and how much of it each child is given in advance.

    submit ──▶ inbox ──▶ lanes (by priority) ──▶ an idle child at once
                                        └──▶ refill: as many as the child will finish within AHEAD seconds

Nothing is queued behind a callable that was never seen or is known to be slow.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import Unreachable
from .child import LARGE
from .jobs import ENDED, SENT, WAITING, Job, Lanes
from .process import ChildProcess
from .pump import READ, WRITE
from .reports import BUFFERS, DROP, FORGET, FUNCTION, REPORT_RAISED, SEND, SHARE, TASK
from .shared import write_buffers

if TYPE_CHECKING:
    from ..wire.carry import Function, Work
    from ..wire.share import Share
    from .supervisor import Supervisor

AHEAD = 0.005  # seconds of expected work given to a child in advance
MAX_AHEAD = 2048  # tasks
MAX_FUNCTIONS = 4096  # callables that a child keeps, and
MAX_FUNCTION_BYTES = 16 << 20  # their bytes: what was sent first goes first, and is sent again when it is used again
PLAIN = ("plain", "generator")  # kinds that run one at a time, in children of their own


class Feeder:
    """Part of the supervisor; works under its lock, but for `inbox`."""

    plain: tuple[str, ...] = PLAIN

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.inbox: deque[Job] = deque()  # submitted, not yet in a lane
        self.lanes = {"plain": Lanes(), "async": Lanes()}
        self.idle: list[ChildProcess] = []
        self.durations: dict[int, float] = {}  # function key -> seconds, weighted towards the last runs
        self._shared: dict[str, tuple[int, bytes, list[int]]] = {}

    @property
    def waiting(self) -> int:
        return self.lanes["plain"].count + self.lanes["async"].count

    def drop(self, job: Job) -> None:
        """The job ended while it waited."""
        self.lanes["plain" if job.parcel.work.function.kind in self.plain else "async"].drop(job)

    def take_in(self) -> None:
        """Sort what was submitted into the lanes; give to idle children what they can have at once."""
        inbox = self.inbox
        coroutines = False
        while inbox:
            job = inbox[0]
            kind = job.parcel.work.function.kind
            if kind in self.plain and (job.child is not None or job.state == ENDED):
                inbox.popleft()  # given a moment ago, by a thread that a signal interrupted right here
            elif kind in self.plain:
                if self.idle and not self.lanes["plain"].count and not self.supervisor.closing:
                    child = self.idle[-1]
                    self.give(child, [job])
                    inbox.popleft()
                    if child.jobs:
                        self.idle.pop()
                else:
                    inbox.popleft()
                    self.lanes["plain"].push(job)
            else:
                self.lanes["async"].push(inbox.popleft())
                coroutines = True
        if coroutines:
            self.supervisor.grow()
            self.refill_async()

    def give(self, child: ChildProcess, jobs: Sequence[Job]) -> None:
        """Send jobs to a child, with whatever it does not have yet."""
        messages: list[Any] = []
        for job in jobs:
            parcel = job.parcel
            work = parcel.work
            function = work.function
            key = function.key
            child.given = job.seq = seq = child.given + 1  # first: no number is used twice, whatever happens
            extras = None
            payload = work.payload
            if (
                parcel.chunk
                or parcel.options is not None
                or parcel.headers is not None
                or work.buffers
                or work.shares
                or job.messages
                or len(payload) >= LARGE
            ):
                try:
                    payload, extras = self._extras(child, job)
                except OSError as error:  # no memory, no descriptors: it fails of it, the others do not
                    problem = Unreachable(f"cannot hand {job.name} to a child process: {error}")
                    self.supervisor.end(job, (parcel, REPORT_RAISED, problem))
                    continue
            if key not in child.functions:
                self._give_function(child, function, work, messages)
            job.child = child
            job.state = SENT
            child.jobs[seq] = job
            child.cost += self.durations.get(key, AHEAD)
            messages.append((TASK, seq, parcel.id, key, payload, parcel.attempt, extras))
        if not messages:
            return
        self._write(child, messages)
        if child.check is None:
            self.supervisor.watch.look_at(child)
        self.supervisor.watch.keep_ticking()

    def _write(self, child: ChildProcess, messages: list[Any]) -> None:
        if not child.write(messages):
            self.supervisor.pump.change(child.tasks.fileno(), READ | WRITE)

    def _give_function(self, child: ChildProcess, function: Function, work: Work, messages: list[Any]) -> None:
        """Have the child receive a callable before the task that uses it; old ones make room for it."""
        known, size = child.functions, len(function.body)
        known[function.key] = size
        child.function_bytes += size
        messages.append((FUNCTION, function.key, function.name, function.kind, function.body))
        for share in work.shares:
            if share.key.encode() in function.body:
                child.holders.setdefault(share.key, set()).add(function.key)
        while len(known) > 1 and (child.function_bytes > MAX_FUNCTION_BYTES or len(known) > MAX_FUNCTIONS):
            oldest = next(iter(known))
            child.function_bytes -= known.pop(oldest)
            messages.insert(-1, (DROP, oldest))

    def _extras(self, child: ChildProcess, job: Job) -> tuple[bytes, dict[str, Any] | None]:
        """The rarer parts of a task: shared memory, shares, options, messages that came before it."""
        work = job.parcel.work
        extras: dict[str, Any] = {}
        payload: bytes = work.payload
        if work.shares:
            extras["shares"] = self.give_shares(child, work.shares)
        buffers = list(work.buffers or ())
        if len(payload) >= LARGE:
            buffers.insert(0, payload)
            payload = b""
        if buffers:
            fd, sizes = write_buffers(buffers)
            extras["buffers"] = len(buffers)
            self.supervisor.tell(child, (BUFFERS, job.seq, sizes), fd)
        options = job.parcel.options
        if options is not None and options.capture:
            extras["capture"] = True
        retry = getattr(options, "retry", None)  # only where this process decides for somebody else: a worker
        if retry is not None:
            extras["retry"] = retry
        if job.parcel.headers is not None:
            extras["headers"], extras["queue"] = job.parcel.headers, job.parcel.queue
        if job.parcel.chunk:
            extras["chunk"] = True
            if job.parcel.chunk == 2:
                extras["whole"] = True
        for name, packed in job.messages or ():
            self.supervisor.tell(child, (SEND, job.seq, name, packed))
        return payload, extras or None

    def give_shares(self, child: ChildProcess, shares: Sequence[Share[Any]]) -> list[str]:
        """Have the child receive the objects and those inside them, once; returns all their keys."""
        keys: list[str] = []
        for share in shares:
            for each in share.family():
                keys.append(each.key)
                if each.key not in child.shares:
                    fd, data, sizes = self._share(each)
                    mine = os.dup(fd) if fd >= 0 else -1
                    self.supervisor.tell(child, (SHARE, each.key, data, sizes), mine)
                    child.shares.add(each.key)  # after: a signal between the two has it sent twice, not never
        return keys

    def _share(self, share: Share[Any]) -> tuple[int, bytes, list[int]]:
        """A shared object's memory: one copy, whatever the number of children; freed with the last handle."""
        found = self._shared.get(share.key)
        if found is None:
            data, buffers = share.payload()
            fd, sizes = write_buffers(buffers) if buffers else (-1, [])
            found = self._shared[share.key] = (fd, data, sizes)
            weakref.finalize(share, _share_gone, weakref.ref(self), share.key).atexit = False
        return found

    def _forget_share(self, key: str) -> None:
        supervisor = self.supervisor
        with supervisor.lock:
            fd, _, _ = self._shared.pop(key, (-1, b"", []))
            if fd >= 0:
                os.close(fd)
            for child in supervisor.children:
                if key in child.shares:
                    child.shares.discard(key)
                    supervisor.tell(child, (FORGET, key))
                held = [each for each in child.holders.pop(key, ()) if each in child.functions]
                if held and not child.dead:  # they hold the object as well
                    for each in held:
                        child.function_bytes -= child.functions.pop(each)
                    self._write(child, [(DROP, each) for each in held])

    def refill(self, child: ChildProcess) -> None:
        """Feed a plain child as far ahead as measured durations allow."""
        if self.inbox:
            self.take_in()
        lanes = self.lanes["plain"]
        if child.stopping and not child.jobs and not child.dead:
            self.supervisor.retire(child)
        if not child.ready or child.dead or child.stopping:
            return
        if child.blocked:
            if child.jobs:
                return
            child.blocked = False
        jobs: list[Job] = []
        room = MAX_AHEAD - len(child.jobs)
        fair = lanes.count // max(1, len(self.supervisor.children)) + 1
        limit = self.supervisor.max_tasks_per_child
        durations = self.durations
        cost = child.cost
        while lanes.count and len(jobs) < room and len(jobs) < fair:
            if limit is not None and child.given + len(jobs) >= limit:
                break
            job = lanes.peek()
            if job is None:
                break
            expected = durations.get(job.parcel.work.function.key, AHEAD)
            if (child.jobs or jobs) and cost + expected > AHEAD:
                break
            cost += expected
            lanes.pop()
            jobs.append(job)
        if jobs:
            self.give(child, jobs)
        if not child.jobs:
            child.cost = 0.0
            if limit is not None and child.given >= limit:
                self.supervisor.retire(child)
            elif child not in self.idle:
                self.idle.append(child)
                if self.inbox:
                    self.take_in()

    def refill_async(self) -> None:
        lanes = self.lanes["async"]
        children = [
            child for child in self.supervisor.children if child.kind == "async" and child.ready and not child.blocked
        ]
        limit = self.supervisor.max_tasks_per_child
        if limit is not None:
            for child in [each for each in children if each.given >= limit]:
                children.remove(child)
                if not child.jobs:
                    self.supervisor.retire(child)
        while lanes.count and children:
            child = min(children, key=lambda child: len(child.jobs))
            if len(child.jobs) >= self.supervisor.concurrency or (limit is not None and child.given >= limit):
                children.remove(child)
                continue
            job = lanes.pop()
            if job is not None:
                self.give(child, [job])

    def measure(self, child: ChildProcess, job: Job, duration: int) -> None:
        if job.parcel.chunk:
            child.cost = 0.0
            return
        seconds = duration * 1e-9
        key = job.parcel.work.function.key
        known = self.durations.get(key)
        if known is None:
            if len(self.durations) > 10_000:
                self.durations.clear()
            self.durations[key] = seconds
            child.cost -= AHEAD
        else:
            child.cost -= known
            # follows a slower run at once and a faster one slowly: better to feed too little than to take back
            self.durations[key] = seconds if seconds > 4 * known else known + (seconds - known) / 8
        if child.cost < 0 or not child.jobs:
            child.cost = 0.0

    def again(self, jobs: list[Job]) -> None:
        """Jobs that did not start go back to the front of their lanes."""
        plain: list[Job] = []
        for job in jobs:
            job.state, job.child, job.seq = WAITING, None, 0
            if job.reason:
                self.supervisor.end(job, self.supervisor.ladder.ended(job, "unstarted"))
            elif job.parcel.work.function.kind in self.plain:
                plain.append(job)
            else:
                self.lanes["async"].push(job)
        self.lanes["plain"].push_back(plain)
        if not self.supervisor.closing:
            for child in list(self.idle):
                if not self.lanes["plain"].count:
                    break
                self.idle.remove(child)
                self.refill(child)
            self.refill_async()
            self.supervisor.want_children()

    def close(self) -> None:
        """Forget shared objects."""
        for fd, _, _ in self._shared.values():
            if fd >= 0:
                os.close(fd)
        self._shared = {}


def _share_gone(feeder: weakref.ref[Feeder], key: str) -> None:
    """Nobody holds the shared object any more. Called from anywhere, by the garbage collector too."""
    alive = feeder()
    if alive is not None:
        alive.supervisor.pump.soon(lambda: alive._forget_share(key))
