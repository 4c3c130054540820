"""Messages on a Redis server.

    write ─▶ one script: append to each channel's string, publish what was appended
                                                        ║
    read  ◀── buffers, by channel ◀── notices ══════════╝       who has heard all that came before needs no request
                     ▲
                     └── one script: what a string holds from a place on     at first, after a hole, now and then

A channel is a string, `{namespace}:m:CHANNEL`, with an expiry; `lua/messages/shared.lua` has its layout. A stream would
do, and takes three times the memory for the log of a task of two messages; nor can it be capped by bytes. The cursor of
a message is its channel's incarnation and the place of its end, so reading on is reading from that byte on.

A reader subscribes to the channels that it is asked for, once, so that a thousand of them cost no more than one while
nothing comes. It does not trust the notices: each says where it stands, and what does not follow on what is known is
fetched. Every 2 s it looks whether its channels are still there (expired, evicted and flushed ones say nothing), and a
server that is another one, or was restarted, may have lost the last messages: there everything is read again, and whose
message it was knows it by its number.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hiredis import ReplyError

from ... import messenger as contract
from ...errors import ClientClosed, ProviderError, UsageError
from ...messenger import Batch, Message
from ...traits import Traits
from ..url import Url
from .address import Place
from .connection import Connection
from .hearing import run_of
from .scripts import script

if TYPE_CHECKING:
    from ...engine import Queue

LARGEST = 64 << 20  # bytes of a frame
LOAD = 4 << 20  # bytes written or read by one script; a larger message is fetched on the connection that writes, since
# one that listens is cut off when 32 MB wait for it (client-output-buffer-limit pubsub)
BATCH = 500  # channels in one script
LOOK = 2.0  # seconds between two looks at channels of which nothing is heard
SURPLUS = 64  # subscriptions that nobody needs any more, before they are given up
LONGEST = 100 * 365 * 86400.0  # seconds
_MARK = b"revolve"
_START = bytes(6)


class _Log:
    """What is known of a channel that is read."""

    __slots__ = ("at", "behind", "cursor", "frames", "incarnation", "name")

    def __init__(self, name: str, cursor: bytes) -> None:
        self.name = name
        self.cursor = cursor  # after the last message that was handed out
        self.incarnation = cursor[:8]  # b"": not known yet
        self.at = cursor[8:]  # the place after what is known, 6 bytes; b"": its start
        self.frames: deque[tuple[bytes, bytes]] = deque()  # not handed out: the message, and the cursor after it
        self.behind = True  # there may be more than is known

    def rewind(self, afresh: bool) -> None:
        """Forget what was not handed out. `afresh`: what was may be gone on the server, and other messages there."""
        self.frames.clear()
        self.at = _START if afresh and self.incarnation else self.cursor[8:]
        self.behind = True

    def add(self, data: bytes) -> None:
        """Messages that follow on what is known, perhaps with a part of one at the end."""
        place = int.from_bytes(self.at, "big")
        incarnation, add = self.incarnation, self.frames.append
        pos, size = 0, len(data)
        while pos + 4 <= size:
            end = pos + 4 + int.from_bytes(data[pos : pos + 4], "big")
            if end > size:
                break
            add((data[pos + 4 : end], incarnation + (place + end).to_bytes(6, "big")))
            pos = end
        self.at = (place + pos).to_bytes(6, "big")


class Messenger(contract.Messenger):
    """Channels on a Redis or Valkey server. One thread reads; what else there is may come from any. Every call ends
    within `timeout`, a read within that and its `wait`, and raises `Unreachable` then; `Overloaded` when the server's
    memory is full.
    """

    traits = Traits(
        summary="channels on a Redis or Valkey server",
        replays=True,
        fanout=True,
        waits=True,
        keeps=True,
        max_bytes=LARGEST,
        max_wait=3600.0,
    )

    def __init__(self, place: Place) -> None:
        self._place = place
        self._prefix = f"{{{place.namespace}}}:m:".encode()
        self._open = False
        self._run = b""
        self._bell: tuple[socket.socket, socket.socket] | None = None
        self._begin()

    @classmethod
    def from_url(cls, url: Url, **options: object) -> Messenger:
        """`redis://host/0?namespace=assistant`; for the rest see `address`. Raises `UsageError`."""
        return cls(Place.read(url, options))

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._woken = False
        self._writing = threading.Lock()
        self._line = Connection(self._place)
        self._ear = Connection(self._place)
        self._heard = 0  # which of the ear's connections has the subscriptions
        self._logs: dict[bytes, _Log] = {}  # by key
        self._subscribed: set[bytes] = set()
        self._look = 0.0  # when to look again, monotonic seconds

    # ---- open, close, wake

    def open(self) -> None:
        if self._pid != os.getpid():
            self._afresh()
        with self._writing:
            self._line.connect()
        if self._bell is None:
            self._bell = socket.socketpair()
            for each in self._bell:
                each.setblocking(False)
        self._open = True

    def close(self) -> None:
        self._open = False
        ours = self._pid == os.getpid()
        self.wake()
        for line in (self._line, self._ear):
            if ours:
                line.close()
            else:
                line.abandon()
        bell, self._bell = self._bell, None
        for each in bell or ():
            each.close()

    def wake(self) -> None:
        self._woken = True
        bell = self._bell
        if bell is not None:
            with contextlib.suppress(OSError):  # full, or closed
                bell[1].send(b"!")

    def _afresh(self) -> None:
        """In a child that was forked: the connections are the parent's."""
        self._line.abandon()
        self._ear.abandon()
        bell, self._bell = self._bell, None
        for each in bell or ():
            each.close()
        self._begin()
        if self._open:
            self.open()

    def _joined(self) -> None:
        if not self._open:
            raise ClientClosed(f"{self._place.text} is not open: call open() first")
        if self._pid != os.getpid():
            self._afresh()

    # ---- to write

    def write(self, messages: Sequence[tuple[str, bytes]]) -> None:
        for channel, frame in messages:
            if len(frame) > LARGEST:
                raise UsageError(
                    f"{len(frame):,} bytes for {channel!r} are more than the {LARGEST:,} that go through redis"
                )
        self._joined()
        for part in _parts(messages):
            self._do("write", list(part), [b"".join(data) for data in part.values()])

    def keep(self, channels: Iterable[str], *, seconds: float, cap: int) -> None:
        self._joined()
        names = list(channels)
        life = max(1, round(min(seconds, LONGEST) * 1000))
        for at in range(0, len(names), BATCH):
            self._do("keep", names[at : at + BATCH], [os.urandom(8), min(cap, (1 << 48) - 1), life])

    def forget(self, channel: str, upto: bytes | None = None) -> None:
        self._joined()
        self._do("forget", [channel], [upto or b""])

    def _do(self, name: str, channels: list[str], args: list[Any]) -> None:
        keys = [self._key(channel) for channel in channels]
        with self._writing:
            self._line.call(script(f"messages/{name}"), len(keys), *keys, *args)

    def _key(self, channel: str) -> bytes:
        return self._prefix + channel.encode()

    # ---- to read

    def read(self, cursors: Mapping[str, bytes], *, limit: int, wait: float) -> Batch:
        deadline = time.monotonic() + wait
        self._joined()
        fresh = True
        while True:
            self._listen()
            self._gather()
            if fresh:
                self._agree(cursors)
                fresh = False
            lost = self._fetch(limit)
            messages = self._hand_out(limit)
            left = deadline - time.monotonic()
            if messages or lost or self._woken or left <= 0:
                self._woken = False
                return Batch(messages, frozenset(lost))
            self._wait(min(left, self._look - time.monotonic()))
            if not self._open:
                raise ClientClosed(f"{self._place.text} was closed")

    def _listen(self) -> None:
        """Have a connection that hears. On a new one all is subscribed and fetched again."""
        ear = self._ear
        ear.ready()
        if self._heard == ear.made:
            return
        (info,) = ear.exchange([("INFO", "server")])
        run = run_of(info)
        for log in self._logs.values():
            log.rewind(run != self._run or not run)
        self._subscribed.clear()
        self._subscribe(list(self._logs))
        self._run, self._heard = run, ear.made
        self._look = time.monotonic() + LOOK

    def _subscribe(self, keys: list[bytes]) -> None:
        if not keys:
            return
        ear = self._ear
        ear.send([("SUBSCRIBE", *keys), ("ECHO", _MARK)])  # only an error answers the first one
        failure = None
        while (answer := ear.take(time.monotonic() + self._place.timeout)) != _MARK:
            failure = failure or answer
        if isinstance(failure, ReplyError):
            error = ear.failure(failure)
            if "NOPERM" in str(failure):
                error = ProviderError(f"{error}; it needs the channels '{{{self._place.namespace}}}:*'")
            raise error
        self._subscribed.update(keys)

    def _agree(self, cursors: Mapping[str, bytes]) -> None:
        """Know a log for each channel that is asked for, where it is asked from, and for no other."""
        logs, prefix = self._logs, self._prefix
        known = 0
        new: list[bytes] = []
        for channel, cursor in cursors.items():
            key = prefix + channel.encode()
            log = logs.get(key)
            if log is not None:
                known += 1
                if log.cursor == cursor:
                    continue
            logs[key] = _Log(channel, cursor)
            if key not in self._subscribed:
                new.append(key)
        if len(logs) > len(cursors):
            wanted = {prefix + channel.encode() for channel in cursors}
            for key in [key for key in logs if key not in wanted]:
                del logs[key]
        if len(self._subscribed) > len(logs) + SURPLUS:
            surplus = [key for key in self._subscribed if key not in logs]
            self._subscribed.difference_update(surplus)
            self._ear.send([("UNSUBSCRIBE", *surplus)])
        self._subscribe(new)

    def _gather(self) -> None:
        """Take in the notices that have come."""
        ear, logs = self._ear, self._logs
        ear.gather()
        pushed = ear.pushed
        while pushed:
            push = pushed.popleft()
            if push[0] != b"message":
                continue
            log = logs.get(push[1])
            if log is None or log.behind:
                continue
            notice = push[2]
            if notice[8:14] == log.at and notice[:8] == log.incarnation and len(notice) > 14:
                log.add(notice[14:])
            elif notice[:8] != log.incarnation or len(notice) <= 14 or not _known(notice, log.at):
                log.behind = True

    def _fetch(self, limit: int) -> set[str]:
        """Fetch what is missing, up to `limit` messages or so; the channels that are gone."""
        logs = self._logs
        if time.monotonic() >= self._look:
            self._look = time.monotonic() + LOOK
            wanted = list(logs.items())
        else:
            wanted = [each for each in logs.items() if each[1].behind]
        lost: set[str] = set()
        room = limit - sum(len(log.frames) for log in logs.values()) if wanted else 0
        for at in range(0, len(wanted), BATCH):
            if room <= 0:
                for _, log in wanted[at:]:  # later
                    log.behind = True
                break
            part = wanted[at : at + BATCH]
            places = [log.incarnation + (log.at or _START) if log.incarnation else b"" for _, log in part]
            command = (script("messages/read"), len(part), *[key for key, _ in part], LOAD, LOAD, *places)
            for (key, log), place, found in zip(part, places, self._ear.call(*command), strict=True):
                if found == 1:
                    with self._writing:
                        (found,) = self._line.call(command[0], 1, key, 1, LARGEST + 4, place)
                if type(found) is not bytes:
                    lost.add(log.name)
                    del logs[key]
                    continue
                log.incarnation, log.at = found[:8], found[8:14]
                before = len(log.frames)
                log.add(found[20:])
                log.behind = log.at < found[14:20]
                room -= len(log.frames) - before
        return lost

    def _hand_out(self, limit: int) -> list[Message]:
        """Up to `limit` messages, evenly of all channels that have some."""
        messages: list[Message] = []
        ready = [log for log in self._logs.values() if log.frames]
        while ready and len(messages) < limit:
            share = max(1, (limit - len(messages)) // len(ready))
            for log in ready:
                frames = log.frames
                for _ in range(min(share, len(frames), limit - len(messages))):
                    frame, cursor = frames.popleft()
                    messages.append(Message(log.name, frame, cursor))
                    log.cursor = cursor
            ready = [log for log in ready if log.frames]
        return messages

    def _wait(self, seconds: float) -> None:
        """Until something comes, somebody wakes us, or so many seconds have gone by."""
        bell = self._bell
        if bell is None or self._woken or seconds <= 0:
            return
        poll = select.poll()
        try:
            poll.register(bell[0], select.POLLIN)
            poll.register(self._ear.fileno(), select.POLLIN)
        except (OSError, ValueError):  # closed meanwhile
            return
        for number, _ in poll.poll(seconds * 1000):
            if number == bell[0].fileno():
                with contextlib.suppress(OSError):
                    bell[0].recv(4096)


def _known(notice: bytes, at: bytes) -> bool:
    """Whether all of this was fetched before it was heard of."""
    return int.from_bytes(notice[8:14], "big") + len(notice) - 14 <= int.from_bytes(at, "big")


def _parts(messages: Sequence[tuple[str, bytes]]) -> Iterator[dict[str, list[bytes]]]:
    """The messages by channel, each after its length, in parts of a bearable size."""
    part: dict[str, list[bytes]] = {}
    size = 0
    for channel, frame in messages:
        if size + len(frame) > LOAD and part:
            yield part
            part, size = {}, 0
        size += len(frame) + 4
        data = part.get(channel)
        if data is None:
            data = part[channel] = []
        data += (len(frame).to_bytes(4, "big"), frame)
    if part:
        yield part
