"""Writes what tasks say: batches of frames, sealed once, to the inboxes of their callers.

While one batch is being written the next one gathers, so a slow messenger gets larger batches and a fast one short
delays. A task's child gets credit, and its lease is settled, once what it said is stored. When the messenger does not
answer, the same bytes are written again until it does: readers drop what they have.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..engine import Outcome
from ..errors import Overloaded, ProviderError, UsageError
from ..wire import frames as wire
from ..wire.remote import pack_error
from ..wire.seal import Purpose

if TYPE_CHECKING:
    from .held import Held
    from .worker import Worker

log = logging.getLogger("revolve_assistant")

MESSAGE = 256 << 10  # bytes of events after which a message is closed
PAUSES = (0.05, 5.0)  # seconds between attempts: first, most
AGAIN = 10.0  # seconds until a task runs again whose end could not be said


class Speaker:
    """Part of the Worker: one thread, and the sink of the local engine."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.lock = threading.Lock()
        self._bell = threading.Condition(self.lock)
        self._ready: list[Held] = []
        self._sleeping = False
        self._closing = False
        self._deadline = float("inf")
        self.away_since = 0.0  # monotonic seconds since when the messenger does not answer; 0: it does
        self.written = 0  # events
        self.thread = threading.Thread(target=self._run, name="revolve-speaker", daemon=True)

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

    # --- the thread

    def _run(self) -> None:
        while True:
            with self.lock:
                while not self._ready and not self._closing:
                    self._sleeping = True
                    self._bell.wait()
                self._sleeping = False
                if not self._ready:
                    return
                ready, self._ready = self._ready, []
                taken = [_Taken(held) for held in ready]
            try:
                self._speak(taken)
            except Exception as error:
                log.exception("what %d tasks said could not be written", len(taken))
                self._give_up(taken, error)

    def _speak(self, taken: list[_Taken]) -> None:
        worker = self._worker
        inboxes: dict[str, list[_Taken]] = {}
        for each in taken:
            if each.records or each.asides:
                inboxes.setdefault(each.held.inbox, []).append(each)
        messages: list[tuple[str, bytes]] = []
        for inbox, mine in inboxes.items():
            if inbox:
                self._gather(inbox, mine, messages)
        stored = not messages or self._write(messages)
        self.written += sum(len(each.records) for each in taken)
        for each in taken:
            held = each.held
            if each.wants and held.parcel is not None:
                worker.engine.grant(held.parcel)
            if each.ended:
                worker.over(held, stored)

    def _give_up(self, taken: list[_Taken], error: Exception) -> None:
        """What was to be said is gone: run those tasks again whose end was among it, some day, and free their places."""
        for each in taken:
            if each.ended:
                each.held.outcome = Outcome("release", AGAIN, reason=f"{type(error).__name__}: {error}")
                self._worker.over(each.held, True)

    def _gather(self, inbox: str, taken: list[_Taken], messages: list[tuple[str, bytes]]) -> None:
        frames: list[Any] = []
        size = 0
        for each in taken:
            id, run = each.held.id, each.held.run
            if each.asides:
                frames.append((id, run, 0, each.asides))
            if each.records:
                frames.append((id, run, each.first, each.records))
            size += each.size + 100
            if size > MESSAGE:
                self._close(inbox, frames, messages)
                frames, size = [], 0
        if frames:
            self._close(inbox, frames, messages)

    def _close(self, inbox: str, frames: list[Any], messages: list[tuple[str, bytes]]) -> None:
        worker = self._worker
        data = wire.encode(worker.channel, worker.fingerprints, frames)
        sealed = worker.keys.seal(Purpose.EVENT, f"{worker.namespace}/{inbox}", data)
        try:
            messages += [(inbox, piece) for piece in wire.pieces(sealed, worker.messenger.traits.max_bytes)]
        except UsageError as error:
            if len(frames) > 1:
                for frame in frames:
                    self._close(inbox, [frame], messages)
                return
            id, run, first, records = frames[0]
            if len(records) > 1:
                half = len(records) // 2
                self._close(inbox, [(id, run, first, records[:half])], messages)
                self._close(inbox, [(id, run, first + half if first else 0, records[half:])], messages)
            elif first and records[0][0] in wire.ENDS:
                problem = UsageError(f"the end of task {id} does not fit: {error}")
                self._close(inbox, [(id, run, first, [(wire.FAILED, pack_error(problem), [])])], messages)
            else:  # what is missing shows as a gap
                log.warning("an event of task %s was left out: %s", id, error)

    def _write(self, messages: list[tuple[str, bytes]]) -> bool:
        """Write until it is stored; False: the worker ends before that."""
        messenger = self._worker.messenger
        pause = PAUSES[0]
        while True:
            try:
                messenger.write(messages)
            except (ProviderError, OSError) as error:
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
                return True


class _Taken:
    """What is written of a held task this time."""

    __slots__ = ("asides", "ended", "first", "held", "records", "size", "wants")

    def __init__(self, held: Held) -> None:
        self.held = held
        self.first = held.next
        self.records, held.records = held.records, []
        self.asides, held.asides = held.asides, []
        self.size, held.size = held.size, 0
        self.wants, held.wants = held.wants, False
        self.ended = held.ended
        held.next += len(self.records)
        held.listed = False
