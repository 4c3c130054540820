"""Appending to logs: a file for each channel that this object writes to, and nobody else ever writes to that file.

    frames ─▶ records ─▶ one pwrite at the end of  <writer>.00000
                                                   <writer>.00001   once the first is full; past the cap the oldest go

After each write the file is looked at once: if it is no longer linked in its directory the channel was forgotten (or a
reader took us for dead), and what was written goes to the channel of that name that there is now, or nowhere.

A write that fails half-way is cut back to its last whole record, and goes on after that record later on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from .folder import GONE, MAKE, NO_DESCRIPTORS, UPDATE, Folder, hash_of
from .record import HEADER, IDENTITY, MAX_SEGMENT, Source, numbered, pack

SEGMENT = 16 << 20  # bytes of a file at which the next one begins
LEAST_SEGMENT = 4096  # bytes, however small the cap
OPEN_FILES = 128
LOGS = 10_000  # channels written to that are remembered
CHECK_EVERY = 0.1  # seconds between looks at the lease
IDLE = 600.0  # seconds without a write after which a file is not written to any more
ABANDONED = 1800.0  # seconds without a write after which others may take its writer for dead

Sync = float | Literal["none", "batch"]
_flush = getattr(os, "fdatasync", os.fsync)


class _Log:
    """Our file in one channel. `size` is that of its whole records, `number` that of the last one tried."""

    __slots__ = (
        "checked",
        "dirty",
        "identity",
        "incarnation",
        "limit",
        "made",
        "name",
        "number",
        "segment",
        "size",
        "source",
        "time",
        "uncertain",
        "wrote",
    )

    def __init__(self, name: str, incarnation: bytes, now: float) -> None:
        self.name = name
        self.incarnation = incarnation
        self.number = self.time = 0
        self.checked = self.wrote = now
        self.dirty = False
        self.limit = SEGMENT
        self.begin(os.urandom(IDENTITY), 0)

    def begin(self, identity: bytes, segment: int) -> None:
        self.identity, self.segment = identity, segment
        self.source = Source.of(self.incarnation, identity, segment)
        self.size = 0
        self.made = False
        self.uncertain = False  # a write began, and we do not know how it ended

    @property
    def path(self) -> str:
        return f"{self.name}/{self.source.name}"


class Writers:
    """All logs that one Messenger writes. One thread at a time. Raises `OSError`."""

    def __init__(self, folder: Folder, sync: Sync = "none") -> None:
        self._folder = folder
        # What stays in this host's memory is not there for the others.
        self.sync: Sync = "batch" if folder.network else sync
        self._logs: OrderedDict[str, _Log] = OrderedDict()
        self._files: OrderedDict[str, int] = OrderedDict()  # descriptors by name of the channel

    def append(self, channel: str, frames: Sequence[bytes]) -> None:
        """Append frames to a channel as one write. If nobody keeps it they are dropped."""
        name = hash_of(channel)
        for _ in range(5):
            try:
                log = self._log(name)
                if log is None or self._append(log, frames):
                    return
            except OSError as error:
                if error.errno not in NO_DESCRIPTORS or not self._files:
                    raise
                for each in list(self._files):  # do with fewer
                    self._put_away(each)
            else:
                self._drop(name)
        raise OSError(errno.EBUSY, "it is made and removed by others at the same time", name)

    def close(self) -> None:
        for log in self._logs.values():
            self._seal(log)
        self._logs.clear()
        while self._files:
            os.close(self._files.popitem()[1])

    def abandon(self) -> None:
        """Let go of everything as it is: after a fork it is our parent's."""
        self._logs.clear()
        while self._files:
            os.close(self._files.popitem()[1])

    def flush(self) -> None:
        """Have what was written since the last time on the disk."""
        for log in self._logs.values():
            if log.dirty:
                self._flush(log)

    # ---- which log

    def _log(self, name: str) -> _Log | None:
        now = time.monotonic()
        log = self._logs.get(name)
        if log is not None and now - log.checked < CHECK_EVERY:
            if now - log.wrote > IDLE:
                self._next_segment(log)
            return log
        lease = self._folder.lease(name)
        if log is not None:
            if lease is not None and lease.incarnation == log.incarnation:
                log.checked = now
                self._logs.move_to_end(name)
                if now - log.wrote > IDLE:
                    self._next_segment(log)
                return log
            self._drop(name)
        if lease is None:
            return None
        log = self._logs[name] = _Log(name, lease.incarnation, now)
        if len(self._logs) > LOGS:
            oldest = next(iter(self._logs))
            self._seal(self._logs[oldest])
            self._drop(oldest)
        return log

    def _drop(self, name: str) -> None:
        self._logs.pop(name, None)
        self._close(name)

    def _seal(self, log: _Log) -> None:
        """Say that no more will come, so that a reader who has read it may remove it."""
        with contextlib.suppress(OSError):
            if log.dirty:
                self._flush(log)
            fd = self._files.get(log.name)
            if fd is not None:
                os.fchmod(fd, 0o400)
            elif log.made:
                os.chmod(log.path, 0o400, dir_fd=self._folder.fd)

    # ---- writing

    def _append(self, log: _Log, frames: Sequence[bytes]) -> bool:
        """False if the channel is not there any more."""
        if log.uncertain:  # Ctrl-C: readers may have what we do not know of, so nothing may be written over it
            self._next_segment(log)
        if self._file(log) is None:  # which says what the limit is
            return False
        moment = log.time = max(time.time_ns(), log.time)
        parts: list[bytes] = []
        size, number, seed = log.size, log.number, log.source.seed
        for frame in frames:
            needed = HEADER + len(frame)
            if size + needed > log.limit and size:
                if parts and not self._write(log, parts):
                    return False
                self._next_segment(log)
                parts, size, seed = [], 0, log.source.seed
                if self._file(log) is None:
                    return False
            number += 1
            parts.append(pack(frame, number, moment, seed))
            parts.append(frame)
            size += needed
        return self._write(log, parts)

    def _write(self, log: _Log, parts: Sequence[bytes]) -> bool:
        fd = self._file(log)
        if fd is None:
            return False
        data = b"".join(parts)
        written, size = 0, len(data)
        log.uncertain = True
        log.number += len(parts) // 2
        try:
            written = os.pwrite(fd, data, log.size)
            while written < size:
                more = os.pwrite(fd, memoryview(data)[written:], log.size + written)
                if not more:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                written += more
            log.size += size
            log.uncertain = False
            log.wrote = time.monotonic()
            if self.sync != "none":
                log.dirty = True
                if self.sync == "batch":
                    self._flush(log)
            return os.fstat(fd).st_nlink > 0
        except OSError as error:
            if written < size:
                self._cut_back(log, fd, parts, written)
            if error.errno == errno.ESTALE:
                return False
            raise

    def _cut_back(self, log: _Log, fd: int, parts: Sequence[bytes], written: int) -> None:
        """Keep the whole records of a write that failed: readers may already have them."""
        for header, frame in zip(parts[::2], parts[1::2], strict=True):
            written -= len(header) + len(frame)
            if written < 0:
                break
            log.size += len(header) + len(frame)
        log.uncertain = False
        with contextlib.suppress(OSError):  # else the next write goes over it
            os.ftruncate(fd, log.size)

    def _flush(self, log: _Log) -> None:
        fd = self._files.get(log.name)
        log.dirty = False
        if fd is not None:
            try:
                _flush(fd)
            except OSError:
                # Linux has marked the lost pages as clean: trying again would succeed and say nothing.
                self._next_segment(log)
                raise

    # ---- files

    def _next_segment(self, log: _Log) -> None:
        if log.dirty:
            self._flush(log)
        self._close(log.name)  # a network file system then has all of it before there is a next one
        if not log.made:
            return
        if log.segment < MAX_SEGMENT:
            log.begin(log.identity, log.segment + 1)
        else:
            log.begin(os.urandom(IDENTITY), 0)

    def _close(self, name: str) -> None:
        fd = self._files.pop(name, None)
        if fd is not None:
            os.close(fd)

    def _file(self, log: _Log) -> int | None:
        """The descriptor to write with, or None if the channel or the file is gone."""
        fd = self._files.get(log.name)
        if fd is not None:
            self._files.move_to_end(log.name)
            return fd
        while len(self._files) >= OPEN_FILES:
            self._put_away(next(iter(self._files)))
        try:
            fd = self._opened(log)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise
        if fd is not None:
            self._files[log.name] = fd
        return fd

    def _put_away(self, name: str) -> None:
        """Close the file of a log that we go on with later."""
        log = self._logs.get(name)
        if log is not None and log.dirty:
            self._flush(log)
        self._close(name)

    def _opened(self, log: _Log) -> int | None:
        folder = self._folder
        if log.made:
            fd = os.open(log.path, UPDATE, dir_fd=folder.fd)
            if os.fstat(fd).st_size == log.size:
                return fd
            os.close(fd)  # somebody else was at it
            self._next_segment(log)
        with folder.channel(log.name) as within:
            lease = folder.lease_in(within)
            if lease is None or lease.incarnation != log.incarnation:
                return None
            names = os.listdir(within)
            cap, writers = folder.cap(lease, within), len(numbered(names))
            log.limit = max(LEAST_SEGMENT, min(SEGMENT, cap // (8 * max(1, writers))))
            fd = os.open(log.source.name, UPDATE | MAKE, 0o600, dir_fd=within)
            log.made = True
            try:
                if log.segment or len(names) % 16 == 0:
                    trim(within, max(cap // 2, cap - log.limit))
                if self.sync != "none":
                    os.fsync(within)
            except OSError:
                os.close(fd)
                raise
            return fd


def trim(within: int, cap: int) -> None:
    """Remove the oldest segments of a channel until the rest has at most `cap` bytes.

    What its writer may still write to stays, so that a writer's last message is always kept.
    """
    total = 0
    spare = []
    for identity, segments in numbered(os.listdir(within)).items():
        for segment in segments:
            name = Source(identity, segment, 0).name
            try:
                found = os.stat(name, dir_fd=within)
            except FileNotFoundError:
                continue
            total += found.st_size
            if segment != segments[-1] or finished(found):
                spare.append((found.st_mtime_ns, name, found.st_size))
    spare.sort(reverse=True)
    while total > cap and spare:
        _, name, size = spare.pop()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=within)
        total -= size


def finished(found: os.stat_result) -> bool:
    """Whether the writer of a file has said that no more will come."""
    return not stat.S_IMODE(found.st_mode) & 0o200


class Syncer(threading.Thread):
    """Flushes to disk every so many seconds, until `stop`. Keeps the first error for the next write."""

    def __init__(self, writers: Writers, lock: contextlib.AbstractContextManager[object], every: float) -> None:
        super().__init__(name="filesystem sync", daemon=True)
        self._writers, self._lock, self._every = writers, lock, every
        self._ended = threading.Event()
        self.error: OSError | None = None

    def run(self) -> None:
        while not self._ended.wait(self._every):
            with self._lock:
                if self._ended.is_set():
                    return
                try:
                    self._writers.flush()
                except OSError as error:
                    self.error = self.error or error

    def stop(self) -> None:
        """Not under the lock. Blocks while it is in the middle of it."""
        self._ended.set()
        self.join()
