"""Reading logs: a tail for each writer of a channel, merged by the time of writing.

    cursor ─▶ <writer 1>.00000 ─ 00001 ──▶ pending ─┐
              <writer 2>.00000 ──────────▶ pending ─┴─▶ by time ─▶ up to `limit` messages, each with a cursor

A cursor holds a position for every writer of which something was read, so that what a slow writer adds later, with an
earlier time, is not passed over. Where a cursor has no position for a writer it starts at what was not forgotten.

What is not whole is "not yet" as long as nothing can come after it. A record that fails its check with something
behind it is damage: it is skipped and logged, and the layer above, which numbers the events, sees the hole. On a
network file system the pages of a write may arrive in any order, so there damage must last for some seconds.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from operator import itemgetter

from ...messenger import Batch, Message
from .folder import GONE, NO_DESCRIPTORS, READ, Folder, hash_of
from .forgetting import read_floor
from .record import Entry, Place, Source, later, next_header, numbered, parts_of, places_of, scan
from .watch import Inotify

CHUNK = 64 << 10  # bytes read at once
WINDOW = 1 << 20  # bytes looked through at once for the next good record
BUDGET = 8 << 20  # bytes read ahead of a channel, and at least one record of each writer
OPEN_FILES = 128
LOOK_EVERY = 0.25  # seconds between looks at everything, whatever inotify says
DOUBT = 5.0  # seconds that damage must last on a network file system
SETTLED = 0.02  # seconds after which one more change of a directory changes its time
SETTLED_COARSE = 2.5  # where times are of whole seconds, or another host's


class _Tail:
    """How far one writer's files were read, and what of it waits to be handed on."""

    __slots__ = ("doubted", "identity", "number", "offset", "pending", "source")

    def __init__(self, incarnation: bytes, identity: bytes, place: Place) -> None:
        self.identity = identity
        self.number = 0
        self.pending: list[Entry] = []
        self.begin(incarnation, place)

    def begin(self, incarnation: bytes, place: Place) -> None:
        self.source = Source.of(incarnation, self.identity, place.segment)
        self.offset = place.offset
        self.doubted = 0.0  # since when what stands here is not right


class _Channel:
    """One channel as this reader knows it; `cursor` is that of the last message handed on."""

    __slots__ = (
        "cursor",
        "due",
        "files",
        "incarnation",
        "key",
        "listed",
        "lost",
        "name",
        "parts",
        "places",
        "settled",
        "since",
        "tails",
        "touched",
        "watch",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.watch: int | None = None
        self.incarnation = b""
        self.start(b"")

    def start(self, cursor: bytes) -> None:
        self.cursor = cursor
        self.key: object = None  # of the lease that was read
        self.listed = 0  # time of the directory when it was listed
        self.since = 0.0  # when that time was first seen
        self.settled = False  # a change since the listing would show in that time
        self.files: dict[bytes, list[int]] = {}
        self.tails: dict[bytes, _Tail] = {}
        self.parts: dict[bytes, bytes] = {}  # of the cursor, by writer
        self.places: dict[bytes, Place] = {}  # where to start, by writer
        self.lost = False
        self.due = True  # look at everything
        self.touched: set[bytes] = set()  # else at these writers


class Reader:
    """All channels that one Messenger reads. One thread at a time. Raises `OSError`."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._channels: dict[str, _Channel] = {}
        self._files: OrderedDict[str, int] = OrderedDict()
        self._inotify: Inotify | None = None if folder.network else Inotify.open()
        self._watched: dict[int, _Channel] = {}
        self._looked = 0.0
        self._every = LOOK_EVERY
        self._all = False  # are we looking at everything?

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])
        self._channels.clear()
        self._watched.clear()
        inotify, self._inotify = self._inotify, None
        if inotify is not None:
            inotify.close()

    def restart(self) -> None:
        """Know nothing of what was read: the next cursors say it."""
        for name in list(self._channels):
            self._discard(name)

    @property
    def notified(self) -> int:
        """The descriptor that says that there may be something, or -1."""
        return -1 if self._inotify is None else self._inotify.fd

    @property
    def polled(self) -> bool:
        """Whether some channel is not watched by inotify."""
        return len(self._watched) < len(self._channels)

    def collect(self, cursors: Mapping[str, bytes], limit: int) -> Batch:
        """What there is now. Does not wait."""
        wanted = [self._channel(name, cursor) for name, cursor in cursors.items()]
        self._hear(wanted)
        began = time.monotonic()
        if len(self._channels) > 2 * len(wanted) + 256:
            for name in self._channels.keys() - cursors.keys():
                self._discard(name)
        lost = set()
        ready: list[tuple[str, _Channel, _Tail]] = []
        for name, channel in zip(cursors, wanted, strict=True):
            if channel.due or channel.touched:
                self._look_with_room(channel, limit)
            if channel.lost and not channel.cursor:  # it may have been made anew, and this reader is at the start
                self._discard(name)
                channel = self._channel(name, b"")
                self._look_with_room(channel, limit)
            if channel.lost:
                lost.add(name)
                self._discard(name)
            else:
                ready += [(name, channel, tail) for tail in channel.tails.values() if tail.pending]
        if self._all:  # with very many channels it is to cost a twentieth of the time at most
            self._all = False
            self._every = max(LOOK_EVERY, 20 * (time.monotonic() - began))
        return Batch(_messages(ready, limit) if limit > 0 else [], frozenset(lost))

    # ---- what to look at

    def _channel(self, name: str, cursor: bytes) -> _Channel:
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = _Channel(hash_of(name))
            channel.cursor = cursor
            self._watch(channel)  # before the first look, so that nothing comes between
        elif channel.cursor != cursor:
            self._forget_files(channel)
            channel.start(cursor)
        return channel

    def _watch(self, channel: _Channel) -> None:
        if self._inotify is not None:
            channel.watch = self._inotify.add(os.path.join(self._folder.path, channel.name))
            if channel.watch is not None:
                self._watched[channel.watch] = channel

    def _unwatch(self, channel: _Channel) -> None:
        watch, channel.watch = channel.watch, None
        if watch is not None and self._watched.get(watch) is channel:
            del self._watched[watch]
            if self._inotify is not None:
                self._inotify.remove(watch)

    def _discard(self, name: str) -> None:
        channel = self._channels.pop(name)
        self._forget_files(channel)
        self._unwatch(channel)

    def _hear(self, wanted: list[_Channel]) -> None:
        """Mark what has to be looked at."""
        now = time.monotonic()
        if self._inotify is None or now - self._looked >= self._every:
            self._looked = now
            self._all = True
            for channel in wanted:
                channel.due = True
                if channel.watch is None:
                    self._watch(channel)
        elif self.polled:
            for channel in wanted:
                if channel.watch is None:
                    channel.due = True
        if self._inotify is None:
            return
        for watch, name in self._inotify.events():
            if watch == -1:
                for channel in self._channels.values():
                    channel.due = True
            elif (found := self._watched.get(watch)) is not None:
                if not name:
                    found.due = True
                    if name == "":  # another of that name may have been made meanwhile
                        self._unwatch(found)
                        self._watch(found)
                else:
                    with contextlib.suppress(ValueError):
                        found.touched.add(bytes.fromhex(name.partition(".")[0]))

    # ---- looking

    def _look_with_room(self, channel: _Channel, limit: int) -> None:
        try:
            self._look(channel, limit)
        except OSError as error:
            channel.due = True
            if error.errno not in NO_DESCRIPTORS or not self._files:
                raise
            while self._files:  # do with fewer
                os.close(self._files.popitem()[1])
            self._look(channel, limit)

    def _look(self, channel: _Channel, limit: int) -> None:
        touched, channel.touched = channel.touched, set()
        if channel.due:
            channel.due = False
            if not self._alive(channel):
                channel.lost = True
                return
            if self._folder.network:
                self._forget_files(channel)  # only opening asks the server how long a file is
            self._list(channel)
            tails = list(channel.tails.values())
        else:
            tails = [channel.tails[identity] for identity in touched if identity in channel.tails]
        budget = max(CHUNK, BUDGET // max(1, len(tails)))
        for tail in tails:
            if self._fill(channel, tail, limit, budget):
                channel.touched.add(tail.identity)

    def _alive(self, channel: _Channel) -> bool:
        folder = self._folder
        key = None
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(f"{channel.name}/lease", dir_fd=folder.fd)
            key = (found.st_ino, found.st_ctime_ns, found.st_mtime_ns)
            if key == channel.key and not folder.network:
                return found.st_mtime_ns > folder.now()
        lease = folder.lease(channel.name)
        if lease is None:
            return False
        if channel.key is None:  # not begun yet
            channel.incarnation = lease.incarnation
            places = places_of(channel.cursor, lease.incarnation) if channel.cursor else {}
            if places is None:
                return False
            channel.parts = parts_of(places)
            channel.places = later(self._floor(channel), places)
        channel.key = key
        return lease.incarnation == channel.incarnation

    def _floor(self, channel: _Channel) -> dict[bytes, Place]:
        """Up to where the messages were forgotten."""
        merged: dict[bytes, Place] = {}
        try:
            with self._folder.channel(channel.name) as within:
                for name in os.listdir(within):
                    if name.startswith("floor-"):
                        merged = later(merged, read_floor(within, name, channel.incarnation))
        except FileNotFoundError:
            pass
        return merged

    def _list(self, channel: _Channel) -> None:
        """Find new files, and begin the tails of new writers."""
        folder = self._folder
        try:
            trusted = channel.settled and not folder.network
            if trusted and os.stat(channel.name, dir_fd=folder.fd).st_mtime_ns == channel.listed:
                return
            with folder.channel(channel.name) as within:
                changed = os.fstat(within).st_mtime_ns
                if channel.settled and changed == channel.listed:
                    return
                now = time.monotonic()
                if changed != channel.listed:
                    channel.listed, channel.since = changed, now
                coarse = folder.network or not changed % 1_000_000_000
                channel.settled = now - channel.since > (SETTLED_COARSE if coarse else SETTLED)
                channel.files = numbered(os.listdir(within))
        except FileNotFoundError:  # it goes at this moment
            channel.due = True
            return
        for identity, segments in channel.files.items():
            if identity not in channel.tails:
                place = channel.places.pop(identity, Place(0, 0))
                if place.segment not in segments and segments[-1] > place.segment:
                    place = Place(next(each for each in segments if each > place.segment), 0)
                channel.tails[identity] = _Tail(channel.incarnation, identity, place)
        for identity in channel.parts.keys() - channel.files.keys() - channel.tails.keys():
            del channel.parts[identity]  # read, forgotten and removed

    # ---- one writer

    def _fill(self, channel: _Channel, tail: _Tail, limit: int, budget: int) -> bool:
        """Read what there is for up to `limit` messages and about `budget` bytes. True: there may be more at once."""
        chunk = CHUNK
        while (left := limit - len(tail.pending)) > 0 and budget > 0:
            fd = self._file(channel, tail)
            if fd is None:
                if self._advance(channel, tail):
                    continue
                self._end(channel, tail)
                return False
            data = os.pread(fd, chunk, tail.offset)
            found = scan(data, tail.offset, tail.source, tail.number, left)
            if found.at:
                tail.pending += found.entries
                tail.offset += found.at
                tail.number = found.number
                tail.doubted = 0.0
                budget -= found.at
            if found.state == "full":
                return True
            if found.state == "end":
                if len(data) == chunk:
                    return True
                segments = channel.files.get(tail.identity)
                if segments and segments[-1] == tail.source.segment:
                    return False  # the usual end: the rest is still to be written
                if not data and not self._advance(channel, tail):
                    if not segments:  # removed, and read to its end
                        self._close(channel, tail)
                        self._end(channel, tail)
                    return False
                continue
            if found.state == "torn" and len(data) == chunk and os.fstat(fd).st_size >= tail.offset + found.need:
                chunk = max(CHUNK, found.need)
                continue
            if not self._pass(channel, tail, fd, data[found.at :], found.state, found.need):
                return False
        return True

    def _end(self, channel: _Channel, tail: _Tail) -> None:
        """The file is not there: nothing more will come from this writer, or we have to list the files again."""
        if tail.identity in channel.files:
            channel.settled = False
        elif not tail.pending:
            del channel.tails[tail.identity]
            channel.parts.pop(tail.identity, None)

    def _pass(self, channel: _Channel, tail: _Tail, fd: int, data: bytes, state: str, need: int) -> bool:
        """At something that is not whole: go past it if it is damage, and not merely unfinished."""
        size = os.fstat(fd).st_size
        over = any(each > tail.source.segment for each in channel.files.get(tail.identity, ()))
        target = -1
        if state == "spoilt" and size > tail.offset + need:
            target = tail.offset + need
        elif state == "bad":
            target = self._search(tail, fd, data)
        if target < 0 and not over:
            return False
        now = time.monotonic()
        if self._folder.network:
            tail.doubted = tail.doubted or now
            if now - tail.doubted < DOUBT:
                return False
        end = target if target >= 0 else size
        _warn(os.path.join(self._folder.path, channel.name, tail.source.name), tail.offset, end - tail.offset)
        if target < 0:
            return self._advance(channel, tail)
        tail.offset, tail.doubted = target, 0.0
        return True

    def _search(self, tail: _Tail, fd: int, data: bytes) -> int:
        """The offset of the next good header, or -1."""
        start, at = 1, tail.offset
        while True:
            found = next_header(data, start, tail.source.seed, tail.number)
            if found >= 0:
                return at + found
            at += max(0, len(data) - 64)
            start = 0 if at > tail.offset else 1
            more = os.pread(fd, WINDOW, at)
            if len(more) <= len(data) and len(more) <= 64:
                return -1
            data = more

    def _advance(self, channel: _Channel, tail: _Tail) -> bool:
        """Go to the next file of the writer, if there is one."""
        for segment in channel.files.get(tail.identity, ()):
            if segment > tail.source.segment:
                self._close(channel, tail)
                tail.begin(channel.incarnation, Place(segment, 0))
                return True
        return False

    # ---- descriptors

    def _file(self, channel: _Channel, tail: _Tail) -> int | None:
        path = f"{channel.name}/{tail.source.name}"
        fd = self._files.get(path)
        if fd is not None:
            self._files.move_to_end(path)
            return fd
        while len(self._files) >= OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        try:
            fd = self._files[path] = os.open(path, READ, dir_fd=self._folder.fd)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise
        return fd

    def _close(self, channel: _Channel, tail: _Tail) -> None:
        fd = self._files.pop(f"{channel.name}/{tail.source.name}", None)
        if fd is not None:
            os.close(fd)

    def _forget_files(self, channel: _Channel) -> None:
        for tail in channel.tails.values():
            self._close(channel, tail)


def _messages(ready: list[tuple[str, _Channel, _Tail]], limit: int) -> list[Message]:
    """Take up to `limit` messages from what is pending, by time of writing."""
    if len(ready) == 1:
        name, channel, tail = ready[0]
        taken, tail.pending = tail.pending[:limit], tail.pending[limit:]
        if channel.parts.keys() <= {tail.identity}:  # the usual one: a channel with one writer
            head = channel.incarnation
            messages = [Message(name, frame, head + part) for _, part, frame in taken]
            channel.parts[tail.identity] = taken[-1][1]
            channel.cursor = messages[-1].cursor
            return messages
        merged = [(moment, 0, part, frame) for moment, part, frame in taken]
    else:
        merged = [
            (moment, index, part, frame)
            for index, (_, _, tail) in enumerate(ready)
            for moment, part, frame in tail.pending[:limit]
        ]
        merged.sort(key=itemgetter(0))  # stable: what one writer wrote keeps its order
        del merged[limit:]
        counts = [0] * len(ready)
        for _, index, _, _ in merged:
            counts[index] += 1
        for count, (_, _, tail) in zip(counts, ready, strict=True):
            del tail.pending[:count]
    messages = []
    for _, index, part, frame in merged:
        name, channel, tail = ready[index]
        channel.parts[tail.identity] = part
        channel.cursor = channel.incarnation + b"".join(channel.parts.values())
        messages.append(Message(name, frame, channel.cursor))
    return messages


def _warn(path: str, offset: int, count: int) -> None:
    import logging  # here: 5 ms of every start

    logging.getLogger("revolve_assistant").warning(
        "%s is damaged at byte %d: %d bytes are skipped, what was in them is missing", path, offset, count
    )
