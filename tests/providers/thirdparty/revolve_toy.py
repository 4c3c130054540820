"""A Messenger by somebody else: lists in memory, written from the contract alone."""

import threading
import time

from revolve_assistant import Messenger as Contract
from revolve_assistant import Traits, UsageError
from revolve_assistant.errors import ClientClosed
from revolve_assistant.messenger import Batch, Message

_changed = threading.Condition()
_rooms = {}  # (room, channel) -> _Log


class _Log:
    def __init__(self):
        self.name = str(time.perf_counter_ns())
        self.first = 0  # number of frames[0]
        self.frames = []
        self.until = 0.0
        self.cap = 0


class Messenger(Contract):
    traits = Traits(summary="a toy", replays=True, fanout=True, waits=True, max_bytes=100_000)

    @classmethod
    def from_url(cls, url, **options):
        url.with_options(options).only()
        return cls(url.host)

    def __init__(self, room):
        self.room = room
        self.is_open = self.woken = False

    def open(self):
        self.is_open = True

    def close(self):
        self.is_open = False

    def wake(self):
        with _changed:
            self.woken = True
            _changed.notify_all()

    def write(self, messages):
        if any(len(frame) > self.traits.max_bytes for _, frame in messages):
            raise UsageError(f"the toy takes frames of up to {self.traits.max_bytes} bytes")
        with _changed:
            for channel, frame in messages:
                log = self._log(channel)
                if log:
                    log.frames.append(frame)
                    while sum(map(len, log.frames)) > log.cap and len(log.frames) > 1:
                        log.first += 1
                        del log.frames[0]
            _changed.notify_all()

    def read(self, cursors, *, limit, wait):
        deadline = time.monotonic() + wait
        with _changed:
            while True:
                found, lost = [], set()
                for channel, cursor in cursors.items():
                    log = self._log(channel)
                    name, _, number = cursor.decode().partition(" ")
                    if log is None or (cursor and name != log.name):
                        lost.add(channel)
                        continue
                    start = max(int(number or 0) - log.first, 0)
                    for n, frame in enumerate(log.frames[start : start + limit], log.first + start + 1):
                        found.append(Message(channel, frame, f"{log.name} {n}".encode()))
                left = deadline - time.monotonic()
                if found or lost or self.woken or left <= 0:
                    self.woken = False
                    return Batch(found[:limit], frozenset(lost))
                _changed.wait(min(left, 0.1))  # a toy: it looks for what expired ten times a second

    def keep(self, channels, *, seconds, cap):
        with _changed:
            for channel in channels:
                log = self._log(channel) or _rooms.setdefault((self.room, channel), _Log())
                log.until = max(log.until, time.monotonic() + seconds)
                log.cap = cap

    def forget(self, channel, upto=None):
        with _changed:
            log = self._log(channel)
            if log and upto is None:
                del _rooms[self.room, channel]
            elif log:
                count = int(upto.decode().partition(" ")[2]) - log.first
                if count > 0:
                    del log.frames[:count]
                    log.first += count
            _changed.notify_all()

    def _log(self, channel):
        if not self.is_open:
            raise ClientClosed("the toy is not open")
        log = _rooms.get((self.room, channel))
        if log and log.until <= time.monotonic():
            log = _rooms.pop((self.room, channel)) and None
        return log
