"""Hears what watchers say to the code that reports on a line: cancel, messages, a look at its stack, is it alive?"""

from __future__ import annotations

import logging
import sys
import traceback
from time import sleep
from typing import TYPE_CHECKING

from ..errors import ProviderError, Untrusted
from ..pool.threads import OurThread
from ..wire import control as wire
from ..wire import frames
from ..wire.seal import Purpose
from ..wire.values import unpack_message
from . import api

if TYPE_CHECKING:
    from .line import Line
    from .report import Report

log = logging.getLogger("revolve_assistant")

WAIT = 20.0  # seconds of one read: who must be polled is polled slowly
PAUSE = 0.2  # seconds before a messenger that does not answer is asked again


class Hearing(OurThread):
    """Part of a Line: one thread that reads its control channel."""

    def __init__(self, line: Line) -> None:
        super().__init__(self._run, "revolve-hearing")
        self._line = line
        self._refused = 0

    def _run(self) -> None:
        line = self._line
        messenger, channel = line.messenger, line.control
        cursor = b""
        wait = min(WAIT, messenger.traits.max_wait)
        while not line.closing:
            try:
                batch = messenger.read({channel: cursor}, limit=1000, wait=wait)
                for message in batch.messages:
                    self._heed(message.frame)
                    cursor = message.cursor
                if batch.messages:
                    messenger.forget(channel, cursor)
            except (ProviderError, OSError) as error:
                log.debug("the control channel of reports: %s", error)
                sleep(PAUSE)
            except Exception:
                log.exception("the thread that hears what is said to reports failed; it goes on")
                sleep(PAUSE)
            else:
                if channel in batch.lost and not line.closing:
                    cursor = b""
                    line.missed()
                    sleep(PAUSE)

    def _heed(self, frame: bytes) -> None:
        line = self._line
        try:
            found = wire.decode(line.keys.open(Purpose.CONTROL, f"{line.namespace}/{line.control}", frame))
        except (Untrusted, ProviderError) as error:
            self._refused += 1
            if self._refused < 10 or self._refused % 1000 == 0:
                log.error("a control message was refused (%d so far): %s", self._refused, error)
            return
        report = line.find(found.id, found.run)
        if report is None:
            return
        try:
            self._obey(report, found)
        except Exception:
            log.exception("control message %d for %s failed", found.kind, found.id)

    def _obey(self, report: Report, found: wire.Control) -> None:
        if found.kind == wire.CANCEL:
            report.flag()
        elif found.kind == wire.SEND:
            message = unpack_message(found.more[0], found.more[1])
            if message is not None:
                token = api.in_context.set(report.running)  # a handler's emit is the report's
                try:
                    report.running.put_message(message)
                finally:
                    api.in_context.reset(token)
        elif found.kind == wire.STACK:
            frame = sys._current_frames().get(report.thread)
            text = "".join(traceback.format_stack(frame)) if frame is not None else f"{report.id}: its thread is gone"
            self._line.answer(found.inbox, report, (frames.STACK, text))
        elif found.kind == wire.ALIVE:
            self._line.answer(found.inbox, report, (frames.ALIVE,))
