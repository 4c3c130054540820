"""A Messenger over a directory that any number of processes share, on this host or through a network file system.

    write ─▶ Writers ─▶ dir/<channel>/<writer>.<segment> ─▶ Reader ─▶ read
                                                 └ inotify ┄┄┄┄▲

`folder` is the directory and its channels, `record` the bytes, `writing` and `reading` the two sides, `forgetting`
what happens to what was read, `watch` how a waiting read ends. Nothing relies on locks, on append being atomic, or on
being told of changes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import msgspec

from ... import messenger as contract
from ...errors import ClientClosed, UsageError
from ...messenger import Batch
from ...traits import Traits
from ..url import Url
from . import forgetting
from .folder import SWEEP_EVERY, Folder, failure, hash_of
from .reading import LOOK_EVERY, Reader
from .record import MAX_FRAME
from .watch import Bell
from .writing import Sync, Syncer, Writers, trim

SWEEP_FOR = 0.005  # seconds of a write at most
SOON, LATE = 0.008, 0.25  # seconds between looks where we have to poll: for an urgent reader, for a patient one
FIRST = 0.001  # seconds until the next look right after something came

_every: weakref.WeakSet[Messenger] = weakref.WeakSet()


class Messenger(contract.Messenger):
    """Ordered logs in files. Every method may be called from any thread; after a fork the child just goes on.

    A write to a channel that nobody keeps is dropped: reading that channel names it as lost.
    """

    traits: ClassVar[Traits] = Traits(
        summary="logs in a directory, which may be on a network file system",
        replays=True,
        fanout=True,
        waits=sys.platform.startswith("linux"),
        keeps=True,
        max_bytes=MAX_FRAME,
        max_wait=3600.0,
    )

    @classmethod
    def from_url(cls, url: Url, **options: object) -> Messenger:
        """`file:///dir`, with the options of the constructor. Raises `UsageError`."""
        url = url.with_options(options).only("sync", "network")
        if url.hosts or not url.path.startswith("/"):
            raise UsageError(f"{url} names a host: a directory of this host has three slashes, {url.scheme}:///dir")
        sync: Sync = "none"
        choice = url.text("sync", "none")
        if choice == "batch":
            sync = "batch"
        elif choice != "none":
            sync = url.number("sync", 0.0, least=0.001)
        network = url.text("network", "auto", choices=("auto", "yes", "no"))
        return cls(url.path, sync=sync, network=None if network == "auto" else network == "yes")

    def __init__(self, path: str | os.PathLike[str], *, sync: Sync = "none", network: bool | None = None) -> None:
        """`path`: the directory, made when it is opened, mode 0700.

        `sync`: when messages are on the disk itself, so that they survive a power cut: "none" (when the system likes),
        "batch" (before `write` returns), or seconds between. `network`: do other hosts, or other machines' mounts, use
        the directory? Then it is polled, and each batch is flushed. None asks the operating system.
        """
        self._path = os.path.abspath(os.fspath(path))
        if self._path == os.path.sep:
            raise UsageError("the root of the file system is no place for messages: name a directory of your own")
        self._sync = sync
        self._folder = Folder(self._path, network, durable=sync != "none")
        self._token = ""
        self._opened = False
        self._bell: Bell | None = None
        self._begin()

    def _begin(self) -> None:
        """What neither a fork nor a close leaves behind."""
        self._writers: Writers | None = None
        self._reader: Reader | None = None
        self._syncer: Syncer | None = None
        self._state = threading.RLock()
        self._reading = threading.RLock()
        self._writing = threading.RLock()
        self._swept = 0.0
        self._came = time.monotonic()

    def open(self) -> None:
        """Make the directory if need be, remove what has expired. Raises `UsageError` if it is not safe to use."""
        with self._state:
            if self._opened:
                return
            self._folder.open()
            try:
                self._bell = Bell()
            except OSError as error:
                self._folder.close()
                raise failure(error, self._path, "opening") from error
            self._opened = True
            self._token = os.urandom(8).hex()
            if self._folder.network:
                self.traits = _POLLED  # type: ignore[misc]
            _every.add(self)
        with self._writing:
            self._sweep(10 * SWEEP_FOR)

    def close(self) -> None:
        """Close all files; a waiting read ends. Waits for a write that is going on."""
        with self._state:
            if not self._opened:
                return
            self._opened = False
            bell = self._bell
            assert bell is not None
            bell.ring()
        with self._writing:
            writers, self._writers = self._writers, None
            syncer, self._syncer = self._syncer, None
            if writers is not None:
                writers.close()
        if syncer is not None:
            syncer.stop()
        with self._reading:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            self._folder.close()
        with self._state:
            bell.close()
            self._bell = None
        _every.discard(self)

    def wake(self) -> None:
        """End the waiting read, or the next one. From any thread."""
        bell = self._bell
        if bell is not None:
            bell.ring()

    # ---- writing

    def write(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """One write for each channel. Raises `Unreachable`, which is also `Overloaded` if there is no space."""
        groups: dict[str, list[bytes]] = {}
        for channel, frame in messages:
            if len(frame) > MAX_FRAME:
                raise UsageError(f"{len(frame):,} bytes for {channel!r} are more than {MAX_FRAME:,}")
            group = groups.get(channel)
            if group is None:
                groups[channel] = [frame]
            else:
                group.append(frame)
        with self._writing:
            writers = self._writers or self._write_first()
            if self._syncer is not None and self._syncer.error is not None:
                error, self._syncer.error = self._syncer.error, None
                raise failure(error, self._path, "flushing to disk in") from error
            failed: OSError | None = None
            for channel, frames in groups.items():
                try:
                    writers.append(channel, frames)
                except OSError as error:  # the other channels may fare better
                    failed = failed or error
                    where = os.path.join(self._path, hash_of(channel))
            if failed is not None:
                raise failure(failed, where, "writing to") from failed
            if time.monotonic() - self._swept >= SWEEP_EVERY:
                self._sweep(SWEEP_FOR)

    def _write_first(self) -> Writers:
        self._check()
        self._writers = Writers(self._folder, self._sync)
        if isinstance(self._writers.sync, float):
            self._syncer = Syncer(self._writers, self._writing, self._writers.sync)
            self._syncer.start()
        return self._writers

    def _sweep(self, seconds: float) -> None:
        try:
            done = self._folder.sweep(seconds)
        except OSError:  # whoever reads or writes will hear of it
            done = True
        if done:
            self._swept = time.monotonic()

    # ---- reading

    def read(self, cursors: Mapping[str, bytes], *, limit: int, wait: float) -> Batch:
        deadline = time.monotonic() + wait
        with self._reading:
            bell = self._check()
            if self._reader is None:
                self._reader = Reader(self._folder)
            reader = self._reader
            while True:
                try:
                    batch = reader.collect(cursors, limit)
                except OSError as error:
                    raise failure(error, self._path, "reading") from error
                except BaseException:  # Ctrl-C, half-way: the caller's cursors know better than we do
                    reader.restart()
                    raise
                now = time.monotonic()
                if batch.messages:
                    self._came = now
                if batch.messages or batch.lost or bell.rung or now >= deadline:
                    if bell.rung:
                        bell.still()
                    return batch
                bell.wait(min(deadline - now, self._pause(reader, now, wait)), reader.notified)
                self._check()

    def _pause(self, reader: Reader, now: float, wait: float) -> float:
        """Seconds until the next look: longer the longer nothing has come."""
        if not reader.polled:
            return LOOK_EVERY
        return max(FIRST, min(SOON if wait <= 1 else LATE, (now - self._came) / 8))

    # ---- channels

    def keep(self, channels: Iterable[str], *, seconds: float, cap: int) -> None:
        self._check()
        for channel in channels:
            name = hash_of(channel)
            try:
                if self._folder.keep(name, seconds, cap):
                    with contextlib.suppress(FileNotFoundError), self._folder.channel(name) as within:
                        trim(within, cap)
            except OSError as error:
                raise failure(error, os.path.join(self._path, name), "keeping") from error

    def forget(self, channel: str, upto: bytes | None = None) -> None:
        self._check()
        name = hash_of(channel)
        try:
            if upto is None:
                self._folder.remove(name)
            else:
                forgetting.forget(self._folder, self._token, name, upto)
        except OSError as error:
            raise failure(error, os.path.join(self._path, name), "forgetting in") from error

    # ---- life

    def _check(self) -> Bell:
        bell = self._bell
        if not self._opened or bell is None:
            raise ClientClosed(f"file://{self._path} is not open: call open() first")
        return bell

    def _after_fork(self) -> None:
        """Our parent's files, wake-ups and locks stay our parent's; the directory is as good as before."""
        writers, reader, bell = self._writers, self._reader, self._bell
        self._begin()
        self._token = os.urandom(8).hex()
        if writers is not None:
            writers.abandon()
        if reader is not None:
            reader.close()
        if bell is not None:
            bell.close_copy()
            self._bell = Bell()


_POLLED = msgspec.structs.replace(Messenger.traits, waits=False)


def _after_fork() -> None:
    for messenger in list(_every):
        messenger._after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
