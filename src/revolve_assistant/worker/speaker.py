"""Writes what tasks say: batches of frames, sealed once, to the inboxes of their callers, and to each task's own log.

While one batch is being written the next one gathers, so a slow messenger gets larger batches and a fast one short
delays. A task's child gets credit, and its lease is settled, once what it said is stored. When the messenger does not
answer, the same bytes are written again until it does: readers drop what they have.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from ..engine import Outcome
from ..errors import Overloaded, ProviderError, UsageError
from ..pool.threads import OurThread
from ..wire import frames as wire
from ..wire.remote import pack_error
from ..wire.seal import Purpose
from .monitor import Monitor

if TYPE_CHECKING:
    from ..messenger import Messenger
    from .held import Held, Stream
    from .worker import Worker

log = logging.getLogger("revolve_assistant")

MANY = 8  # tasks that had something to say in one batch, from which on more is gathered before the next
GATHER = 0.002  # seconds that it is gathered
MESSAGE = 256 << 10  # bytes of events after which a message is closed
ELSEWHERE = 5.0  # seconds that a task's other messenger may be away before what was written to it is given up
PAUSES = (0.05, 5.0)  # seconds between attempts: first, most
LOG_CAP = 8 << 20  # bytes of a task's log
LONGEST = 8 * 86400.0  # seconds that it is kept while the task runs
AGAIN = 10.0  # seconds until a task runs again whose end could not be said


class Speaker:
    """Part of the Worker: one thread, and the sink of the local engine."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.lock = threading.Lock()
        self._bell = threading.Condition(self.lock)
        self._ready: list[Held] = []
        self._to_keep: list[tuple[Mapping[float, Sequence[str]], threading.Event]] = []
        self._sleeping = False
        self._closing = False
        self._deadline = float("inf")
        self.away_since = 0.0  # monotonic seconds since when the messenger does not answer; 0: it does
        self.written = 0  # events
        self.returns = 0  # times that the messenger answered again
        self._busy = False  # much was said last time
        self.monitor = Monitor(worker)
        self.thread = OurThread(self._run, "revolve-speaker")

    def start(self) -> None:
        self.thread.start()

    def stop(self, deadline: float) -> None:
        """Write what there is, until `deadline` (monotonic seconds), then end."""
        with self.lock:
            self._closing = True
            self._deadline = deadline
            self._bell.notify()
        self.thread.join(max(0.0, deadline - monotonic()) + 5.0)

    # --- the sink of the local engine, on its threads

    def deliver(self, reports: Sequence[Any]) -> None:
        with self.lock:
            for report in reports:
                held: Held = report[0].owner
                held.take(report)
                if not held.listed:
                    held.listed = True
                    self._ready.append(held)
            if self._sleeping:
                self._bell.notify()

    def say(self, held: Held) -> None:
        """Have written what the held task has to say."""
        with self.lock:
            if not held.listed:
                held.listed = True
                self._ready.append(held)
            self._bell.notify()

    def watch(self, seconds: float, all: bool) -> None:
        """Somebody looks, and wants to be told how far tasks are."""
        self.monitor.watch(seconds, all)
        with self.lock:
            self._bell.notify()

    def keep(self, channels: Mapping[float, Sequence[str]], patience: float) -> bool:
        """Have logs made, by the seconds that they are kept. Blocks up to `patience` seconds; False: they may not be.

        From another thread: a messenger is written to by one.
        """
        made = threading.Event()
        with self.lock:
            self._to_keep.append((channels, made))
            self._bell.notify()
        return made.wait(patience)

    # --- the thread

    def _run(self) -> None:
        while True:
            with self.lock:
                while not self._ready and not self._to_keep and not self._closing:
                    due = self.monitor.due
                    if monotonic() >= due:
                        break
                    self._sleeping = True
                    self._bell.wait(None if due == float("inf") else max(0.0, due - monotonic()))
                self._sleeping = False
                if not self._ready and not self._to_keep and self._closing:
                    return
                to_keep, self._to_keep = self._to_keep, []
            for channels, made in to_keep:
                try:
                    if self._keep(channels):
                        made.set()
                except Exception:
                    log.exception("%d logs could not be made", len(channels))
            if not self._ready:
                self._tell()
                continue
            if self._busy:
                sleep(GATHER)
            with self.lock:
                ready, self._ready = self._ready, []
                taken = [_Taken(held) for held in ready]
            self._busy = len(taken) >= MANY
            try:
                self._speak(taken)
            except Exception as error:
                log.exception("what %d tasks said could not be written", len(taken))
                self._give_up(taken, error)

    def _tell(self) -> None:
        """Tell who looks how far tasks are, about which there is nothing else to say. It is told again soon."""
        seen = self.monitor.message(())
        try:
            if seen is not None and len(seen[1]) <= self._worker.messenger.traits.max_bytes and self._connected():
                self._worker.messenger.write([seen])
        except (ProviderError, OSError) as error:
            log.debug("nobody was told how far tasks are: %s", error)

    def _speak(self, taken: list[_Taken]) -> None:
        worker = self._worker
        if worker.lifecycle.watchers:
            worker.lifecycle.tell(taken)
        inboxes: dict[str, list[_Taken]] = {}
        elsewhere = False
        for each in taken:
            if each.elsewhere:
                elsewhere = True
            if each.records:
                inboxes.setdefault(each.held.inbox, []).append(each)
        if elsewhere:
            self._speak_elsewhere(taken)
        messages: list[tuple[str, bytes]] = []
        for inbox, mine in inboxes.items():
            if inbox:
                self._gather(inbox, mine, messages)
        for each in taken:
            held = each.held
            if each.records and held.log:
                self._close(held.log, [(held.id, held.run, each.first, each.records)], messages)
            for inbox, record in each.asides:
                if inbox:
                    self._close(inbox, [(held.id, held.run, 0, [record])], messages)
        seen = self.monitor.message(taken) if messages else None
        if seen is not None and len(seen[1]) <= worker.messenger.traits.max_bytes:
            messages.append(seen)
        self._begin_logs(taken)
        stored = not messages or self._write(messages)
        over: list[Held] = []
        for each in taken:
            self.written += len(each.records)
            held = each.held
            if each.wants and held.parcel is not None:
                worker.engine.grant(held.parcel)
            if each.ended:
                over.append(held)
        if over:
            worker.over(over, stored)
        if messages and stored:
            self._retain(taken)  # nobody waits for that

    def _begin_logs(self, taken: list[_Taken]) -> None:
        """A task of a schedule may have waited for longer than its log was kept: nobody minds that of a client."""
        logs = [each.held.log for each in taken if each.first == 1 and not each.held.inbox and each.held.log]
        if logs:
            self._keep({LONGEST: logs})

    def _keep(self, channels: Mapping[float, Sequence[str]]) -> bool:
        if not self._connected():
            return False
        try:
            for seconds, logs in channels.items():
                self._worker.messenger.keep(logs, seconds=seconds, cap=LOG_CAP)
        except (ProviderError, OSError) as error:
            log.debug("%d logs could not be kept: %s", sum(map(len, channels.values())), error)
            return False
        return True

    def _retain(self, taken: list[_Taken]) -> None:
        """From a task's end on its log is kept for as long as its caller said."""
        logs: dict[float, list[str]] = {}
        for each in taken:
            held = each.held
            final = each.ended and held.outcome is not None and held.outcome.kind != "release"
            if final and held.log and held.envelope is not None:
                logs.setdefault(held.envelope.history, []).append(held.log)
        if logs:
            self._keep(logs)  # failing that they are kept for longer

    def _speak_elsewhere(self, taken: list[_Taken]) -> None:
        """Write what tasks say to further messengers, before the ends that name it. One that stays away is skipped."""
        places: dict[str, dict[str, list[Any]]] = {}
        for each in taken:
            held = each.held
            for address, first, records in each.elsewhere or ():
                frames = places.setdefault(address, {}).setdefault(held.inbox, [])
                frames.append((held.id, held.run, first, records))
        for address, inboxes in places.items():
            messages: list[tuple[str, bytes]] = []
            try:
                messenger = self._worker.messenger_at(address)
                for inbox, frames in inboxes.items():
                    self._close(inbox, frames, messages, messenger)
                self._write(messages, messenger, monotonic() + ELSEWHERE)
            except Exception as error:  # its address comes from a task: whatever it is, it concerns that task alone
                log.error("what a task wrote to %s is lost: %s", address, error)

    def _give_up(self, taken: list[_Taken], error: Exception) -> None:
        """What was to be said is gone: tasks whose end was among it run again some day, and their places are free."""
        over = [each.held for each in taken if each.ended]
        for held in over:
            held.outcome = Outcome("release", AGAIN, reason=f"{type(error).__name__}: {error}")
        self._worker.over(over, True)

    def _gather(self, inbox: str, taken: list[_Taken], messages: list[tuple[str, bytes]]) -> None:
        frames: list[Any] = []
        size = 0
        for each in taken:
            frames.append((each.held.id, each.held.run, each.first, each.records))
            size += each.size + 100
            if size > MESSAGE:
                self._close(inbox, frames, messages)
                frames, size = [], 0
        if frames:
            self._close(inbox, frames, messages)

    def _close(
        self, inbox: str, frames: list[Any], messages: list[tuple[str, bytes]], messenger: Messenger | None = None
    ) -> None:
        worker = self._worker
        limit = (messenger or worker.messenger).traits.max_bytes
        data = wire.encode(worker.channel, worker.fingerprints, frames)
        sealed = worker.keys.seal(Purpose.EVENT, f"{worker.namespace}/{inbox}", data)
        try:
            messages += [(inbox, piece) for piece in wire.pieces(sealed, limit)]
        except UsageError as error:
            if len(frames) > 1:
                for frame in frames:
                    self._close(inbox, [frame], messages, messenger)
                return
            id, run, first, records = frames[0]
            if len(records) > 1:
                half = len(records) // 2
                self._close(inbox, [(id, run, first, records[:half])], messages, messenger)
                self._close(inbox, [(id, run, first + half if first else 0, records[half:])], messages, messenger)
            elif first and records[0][0] in wire.ENDS:
                problem = UsageError(f"the end of task {id} does not fit: {error}")
                last = (wire.FAILED, pack_error(problem), records[0][-1])
                self._close(inbox, [(id, run, first, [last])], messages, messenger)
            else:  # what is missing shows as a gap
                log.warning("an event of task %s was left out: %s", id, error)

    def _write(
        self, messages: list[tuple[str, bytes]], other: Messenger | None = None, deadline: float = float("inf")
    ) -> bool:
        """Write until it is stored; False: the worker ends before that. Raises what the messenger raised last."""
        messenger = other or self._worker.messenger
        if other is None and not self._connected():
            return False
        pause = PAUSES[0]
        while True:
            try:
                messenger.write(messages)
            except (ProviderError, OSError) as error:
                if monotonic() >= deadline:
                    raise
                if not self.away_since:
                    self.away_since = monotonic()
                    log.warning("what tasks say waits: %s", error)
                with self.lock:
                    if monotonic() >= self._deadline:
                        return False
                    self._bell.wait(min(pause, max(0.0, self._deadline - monotonic())))
                pause = min(PAUSES[1], pause * 2)
                if isinstance(error, Overloaded):
                    pause = min(pause, 0.5)
            else:
                if self.away_since:
                    log.warning("the messenger answers again after %.1f s", monotonic() - self.away_since)
                    self.away_since = 0.0
                    self.returns += 1
                return True

    def _connected(self) -> bool:
        """Wait for the control thread to open the messenger; False: the worker ends before that."""
        opened = self._worker.control.opened
        while not opened.is_set():
            if monotonic() >= self._deadline:
                return False
            opened.wait(min(1.0, max(0.0, self._deadline - monotonic())))
        return True


class _Taken:
    """What is written of a held task this time."""

    __slots__ = ("asides", "elsewhere", "ended", "first", "held", "records", "size", "wants")

    def __init__(self, held: Held) -> None:
        self.held = held
        self.first = held.next
        self.records, held.records = held.records, []
        self.asides, held.asides = held.asides, []
        self.size, held.size = held.size, 0
        self.wants, held.wants = held.wants, False
        self.elsewhere = _take_elsewhere(held.elsewhere) if held.elsewhere else None
        self.ended = held.ended
        held.next += len(self.records)
        held.listed = False


def _take_elsewhere(streams: dict[str, Stream]) -> list[tuple[str, int, list[Any]]]:
    found = []
    for address, stream in streams.items():
        if stream.records:
            found.append((address, stream.next, stream.records))
            stream.next += len(stream.records)
            stream.records, stream.size = [], 0
    return found
