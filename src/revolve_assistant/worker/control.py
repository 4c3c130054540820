"""Hears what callers say to the tasks that run here. A message names the run that it is for."""

from __future__ import annotations

import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import ProviderError, Untrusted
from ..pool.threads import OurThread
from ..wire import control as wire
from ..wire import frames
from ..wire.seal import Purpose
from .monitor import WATCH, asked

if TYPE_CHECKING:
    from .held import Held
    from .worker import Worker

log = logging.getLogger("revolve_assistant")

KEEP = 120.0  # seconds that the channel outlives its worker
CAP = 16 << 20  # bytes
SHOWN = 256 << 10  # bytes of arguments that are told to who wants to see them
WATCH_CAP = 4 << 10  # bytes of the channel on which progress is asked for
PAUSES = (0.05, 5.0)
RENEW = 86400.0  # seconds of running after which a task's log is renewed
LONGEST = 8 * 86400.0  # seconds that it is then kept
LOG_CAP = 8 << 20  # bytes


class Control:
    """Part of the Worker: one thread that reads the control channel."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._bell = threading.Condition(self._lock)
        self._closing = False
        self.opened = threading.Event()  # the messenger is connected
        self.refused = 0
        self.thread = OurThread(self._run, "revolve-control")

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        with self._lock:
            self._closing = True
            self._bell.notify()
        self._worker.messenger.wake()
        self.thread.join(5.0)

    def _run(self) -> None:
        pause = PAUSES[0]
        while not self._closing:
            try:
                self._listen()
            except (ProviderError, OSError) as error:
                log.debug("the control channel: %s", error)
            except Exception:
                log.exception("the worker's control thread failed; it goes on")
            with self._lock:
                if not self._closing:
                    self._bell.wait(pause)
            pause = min(PAUSES[1], pause * 2)

    def _listen(self) -> None:
        worker = self._worker
        messenger, channel = worker.messenger, worker.channel
        messenger.open()
        self.opened.set()
        cursors, kept = {channel: b""}, 0.0
        if messenger.traits.fanout:
            cursors[WATCH] = b""
        while not self._closing:
            now = monotonic()
            if now - kept > KEEP / 3:
                messenger.keep([channel], seconds=KEEP, cap=CAP)
                if WATCH in cursors:
                    messenger.keep([WATCH], seconds=KEEP, cap=WATCH_CAP)
                kept = now
                self._renew_logs(now)
            busy = bool(worker.taker.held)
            wait = min(messenger.traits.max_wait, KEEP / 4 if messenger.traits.waits or not busy else 1.0)
            batch = messenger.read(cursors, limit=1000, wait=wait)
            heard = False
            for message in batch.messages:
                cursors[message.channel] = message.cursor
                if message.channel == WATCH:
                    self._watched(message.frame)
                else:
                    heard = True
                    self._heed(message.frame)
            if heard:
                messenger.forget(channel, cursors[channel])
            for name in batch.lost:
                cursors[name], kept = b"", 0.0

    def _renew_logs(self, now: float) -> None:
        """What a task says is kept while it runs, however long that is."""
        old = [held for held in list(self._worker.taker.held.values()) if held.log and now - held.since > RENEW]
        if old:
            self._worker.messenger.keep([held.log for held in old], seconds=LONGEST, cap=LOG_CAP)
            for held in old:
                held.since = now

    def _watched(self, frame: bytes) -> None:
        worker = self._worker
        try:
            seconds, all = asked(worker.keys.open(Purpose.CONTROL, f"{worker.namespace}/{WATCH}", frame))
        except (Untrusted, ProviderError) as error:  # of somebody with another secret, or of long ago
            log.debug("who asks for progress is not heard: %s", error)
        else:
            worker.speaker.watch(seconds, all)

    def _heed(self, frame: bytes) -> None:
        worker = self._worker
        try:
            found = wire.decode(worker.keys.open(Purpose.CONTROL, f"{worker.namespace}/{worker.channel}", frame))
        except (Untrusted, ProviderError) as error:
            self.refused += 1
            if self.refused < 10 or self.refused % 1000 == 0:
                log.error("a control message was refused (%d so far): %s", self.refused, error)
            return
        held = worker.taker.held.get(found.id)
        if held is None or held.parcel is None or held.ended or (found.run and found.run != held.run):
            return
        try:
            self._obey(held, held.parcel, found)
        except Exception:
            log.exception("control message %d for task %s failed", found.kind, found.id)

    def _obey(self, held: Held, parcel: Any, found: wire.Control) -> None:
        worker = self._worker
        if found.kind == wire.CANCEL:
            worker.engine.cancel(found.id)
        elif found.kind == wire.SEND:
            worker.engine.send(parcel, found.more[0], found.more[1])
        elif found.kind == wire.STACK:
            try:
                text = worker.engine.stack(parcel)
            except LookupError as error:
                text = str(error)
            self._answer(held, found.inbox, (frames.STACK, text))
        elif found.kind == wire.ALIVE:
            self._answer(held, found.inbox, (frames.ALIVE,))
        elif found.kind == wire.ARGUMENTS and held.envelope is not None:
            payload, buffers = held.envelope.payload, held.envelope.buffers
            whole = len(payload) + sum(map(len, buffers)) <= SHOWN
            self._answer(held, found.inbox, (frames.ARGUMENTS, payload if whole else None, buffers if whole else []))

    def _answer(self, held: Held, inbox: str, record: tuple[Any, ...]) -> None:
        with self._worker.speaker.lock:
            held.asides.append((inbox, record))
        self._worker.speaker.say(held)
