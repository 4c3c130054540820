"""The base directory and the channels in it: their making, their leases, their end.

    dir/                          0700, and ours
      clock                       touched to learn what time the file system has
      swept                       touched by who begins to remove what has expired
      <hash of a name>/           a channel; every file in it belongs to one incarnation
        lease                     its incarnation and cap; the file's modification time is when the lease ends
      cap                       bytes, in decimal, if that was changed
        <writer>.<segment>        records, appended by one object of one process; 0400: no more will come
        floor-<who>               a cursor: what comes before it was forgotten
      new-<random>/               a channel being made
      gone-<random>/              a channel being removed

No lock is taken anywhere. A channel is made aside and renamed into place, which succeeds for one of those who try, and
it goes by being renamed away, whole. Who removes an expired one looks again after the renaming, and puts it back if it
was renewed meanwhile. All names are made here; a channel's own name is only ever hashed.

Leases are measured by the clock of the file system, since its hosts need not agree: a file is touched and its time
compared with our monotonic clock, and again every 30 s.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

from ...errors import Overloaded, ProviderError, Unreachable, Unsupported, UsageError
from .network import is_network
from .record import INCARNATION, lease_of, pack_lease

SETTLED = 60.0  # seconds after which what was left half made or half removed is nobody's work any more
GRACE = 5.0  # seconds that an expired channel stays for those whose look at the clock is old
CLOCK_EVERY = 30.0  # seconds
SWEEP_EVERY = 60.0  # seconds between rounds through all channels, whoever makes them
CENTURY = 100 * 365 * 86400.0  # the longest lease in seconds
COARSE = 2_000_000_000  # ns, the coarsest time of a file that there is
TRIES = 20

_CHANNEL = re.compile(r"[0-9a-f]{32}\Z")
_ASIDE = re.compile(r"(new|gone)-[0-9a-f]{16}\Z")
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _SAFE
READ = os.O_RDONLY | _SAFE
WRITE = os.O_WRONLY | _SAFE
UPDATE = os.O_RDWR | _SAFE
MAKE = os.O_CREAT | os.O_EXCL

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE}
GONE = {errno.ENOENT, errno.ESTALE}
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}


class Full(Unreachable, Overloaded):
    """No space, quota or descriptors left. Writing again is right once there are."""


def failure(error: OSError, path: str, doing: str) -> ProviderError:
    """Our error for what the operating system said about a path."""
    if isinstance(error.filename, str) and error.filename not in path:
        path = os.path.join(path, error.filename)
    text = f"{doing} {path} failed: {error.strerror or error}"
    if error.errno in NO_DESCRIPTORS:
        return Full(f"{text}; raise the limit of open files (ulimit -n)")
    if error.errno in _FULL:
        return Full(f"{text}; make room there, and it goes on")
    return Unreachable(text)


def write(fd: int, data: bytes, offset: int = 0) -> None:
    """Write all of it at an offset: a full disk may first take a part without a word."""
    left = memoryview(data)
    while left:
        count = os.pwrite(fd, left, offset)
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left, offset = left[count:], offset + count


def _set_end(fd: int, ends: int) -> None:
    """Say in its modification time when a lease ends, and never too early: some file systems only know seconds."""
    os.utime(fd, ns=(ends, ends))
    if os.fstat(fd).st_mtime_ns < ends:
        os.utime(fd, ns=(ends + COARSE, ends + COARSE))


@lru_cache(maxsize=16384)
def hash_of(channel: str) -> str:
    """The name of a channel's directory: fit for file systems that confuse case or dislike long names."""
    return sha256(channel.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Lease(NamedTuple):
    """What the file `lease` says; `ends` in nanoseconds of the file system's clock."""

    incarnation: bytes
    cap: int
    ends: int


class Folder:
    """The base directory. Methods may run in several threads; `sweep` in one at a time. Raises `OSError`."""

    def __init__(self, path: str, network: bool | None = None, durable: bool = False) -> None:
        """`network`: may other hosts write to it? None: ask the operating system when it is opened.

        `durable`: a channel that was made is on the disk.
        """
        self.path = path
        self._durable = durable
        self.network = bool(network)
        self._asked_network = network
        self.fd = -1
        self._offset = 0  # ns to add to our monotonic clock
        self._measured = -CLOCK_EVERY
        self._unswept: list[str] = []

    def open(self) -> None:
        """Make it if it is not there. Raises `UsageError` if it is not safe, `Unreachable`."""
        if not hasattr(os, "pwrite") or os.open not in os.supports_dir_fd:
            raise Unsupported("file:// needs a POSIX system")
        self.fd = self._opened()
        self.network = is_network(self.fd) if self._asked_network is None else self._asked_network

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _opened(self) -> int:
        try:
            with contextlib.suppress(FileExistsError):
                os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
                os.mkdir(self.path, 0o700)
        except OSError as error:
            if not os.path.isdir(self.path):  # else it may be on a file system that is read-only
                raise failure(error, self.path, "making the directory") from error
        try:
            fd = os.open(self.path, DIRECTORY)
        except OSError as error:
            if os.path.islink(self.path):
                raise UsageError(
                    f"{self.path} is a symbolic link, which anybody who can change it could point elsewhere: "
                    f"name the directory itself, {os.path.realpath(self.path)}"
                ) from None
            raise failure(error, self.path, "opening the directory") from error
        found = os.fstat(fd)
        wrong = ""
        if found.st_uid != os.geteuid():
            wrong = f"belongs to user {found.st_uid}, not to {os.geteuid()}: use a directory of your own"
        elif found.st_mode & 0o022:
            wrong = f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o}): chmod 700 {self.path}"
        if wrong:
            os.close(fd)
            raise UsageError(f"{self.path} {wrong}")
        return fd

    def _reopened(self) -> bool:
        """Whether the directory was removed and we now have the one that took its place; the number stays ours."""
        if os.fstat(self.fd).st_nlink:
            return False
        fd = self._opened()
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        return True

    # ---- time

    def now(self) -> int:
        """The time of the file system in nanoseconds, never too late."""
        if time.monotonic() - self._measured >= CLOCK_EVERY:
            self._measure()
        return time.monotonic_ns() + self._offset

    def _measure(self) -> None:
        try:
            fd = os.open("clock", UPDATE | os.O_CREAT, 0o600, dir_fd=self.fd)
            try:
                os.utime(fd)
                touched = os.fstat(fd).st_mtime_ns
            finally:
                os.close(fd)
        except OSError:  # read-only, or full: then it is the clock of this host
            touched = time.time_ns()
        self._offset = touched - time.monotonic_ns()
        self._measured = time.monotonic()

    # ---- channels

    @contextlib.contextmanager
    def channel(self, name: str) -> Iterator[int]:
        """A descriptor of the directory of a channel. Raises `FileNotFoundError`."""
        fd = os.open(name, DIRECTORY, dir_fd=self.fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def lease(self, name: str) -> Lease | None:
        """The lease of a channel as it is now, or None: there is no channel, or it has expired.

        Always opens the file, which is what makes a network file system ask its server.
        """
        for again in (True, False):
            with contextlib.suppress(FileNotFoundError), self.channel(name) as within:
                return self.lease_in(within)
            if not again:
                break
            if self.network:  # ask anew whether there is no such name
                os.close(os.open(".", DIRECTORY, dir_fd=self.fd))
            elif not self._reopened():
                break
        return None

    def lease_in(self, within: int) -> Lease | None:
        """The lease of the channel whose directory has this descriptor, or None."""
        try:
            lease = self._read_lease(os.open("lease", READ, dir_fd=within))
        except OSError as error:
            if error.errno not in GONE:
                raise
            return None
        return lease if lease is not None and lease.ends > self.now() else None

    def _read_lease(self, fd: int) -> Lease | None:
        try:
            found = lease_of(os.read(fd, 64))
            return None if found is None else Lease(*found, ends=os.fstat(fd).st_mtime_ns)
        finally:
            os.close(fd)

    def cap(self, lease: Lease, within: int) -> int:
        """The cap in bytes of the channel with this descriptor, as it is now."""
        try:
            fd = os.open("cap", READ, dir_fd=within)
        except FileNotFoundError:
            return lease.cap
        try:
            return int(os.read(fd, 32))
        finally:
            os.close(fd)

    def keep(self, name: str, seconds: float, cap: int) -> bool:
        """Make a channel or renew its lease, which never gets shorter. Whether its cap became smaller."""
        lasts = int(min(seconds, CENTURY) * 1e9)
        for attempt in range(TRIES):
            try:
                with self.channel(name) as within:
                    fd = os.open("lease", READ, dir_fd=within)
                    try:
                        usual = self._renew(fd, within, lasts, cap)
                        # It counts only if it is still there, and not being removed meanwhile.
                        with contextlib.suppress(FileNotFoundError):
                            there = os.stat(f"{name}/lease", dir_fd=self.fd)
                            if usual is not None and os.path.samestat(there, os.fstat(fd)):
                                return cap < usual
                    finally:
                        os.close(fd)
                if usual is None:
                    self.remove(name, only_dead=True)
            except OSError as error:
                if error.errno not in GONE:
                    raise
                if self._make(name, lasts, cap):
                    return False
                if attempt > 2:  # not somebody who was faster, but a directory without a lease
                    self.remove(name, only_dead=True)
        raise OSError(errno.EBUSY, "it is made and removed by others at the same time", name)

    def _renew(self, fd: int, within: int, lasts: int, cap: int) -> int | None:
        """Renew a lease that has not ended; the cap that there was, or None."""
        lease = self._read_lease(os.dup(fd))
        now = self.now()
        if lease is None or lease.ends <= now:
            return None
        if lease.ends < now + lasts:
            _set_end(fd, now + lasts)
        usual = self.cap(lease, within)
        if usual != cap:
            self._write_cap(within, cap)
        return usual

    def _make(self, name: str, lasts: int, cap: int) -> bool:
        """Make a channel aside and rename it into place; False if there is one by now."""
        aside = f"new-{os.urandom(8).hex()}"
        try:
            os.mkdir(aside, 0o700, dir_fd=self.fd)
        except FileNotFoundError:
            if not self._reopened():
                raise
            os.mkdir(aside, 0o700, dir_fd=self.fd)
        try:
            with self.channel(aside) as within:
                fd = os.open("lease", WRITE | MAKE, 0o600, dir_fd=within)
                try:
                    write(fd, pack_lease(os.urandom(INCARNATION), cap))
                    _set_end(fd, self.now() + lasts)
                    if self._durable:
                        os.fsync(fd)
                        os.fsync(within)
                finally:
                    os.close(fd)
            try:
                os.rename(aside, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            except OSError as error:
                # "No such file": over a network it may have been done, and the answer got lost.
                if error.errno not in (*_TAKEN, errno.ENOENT):
                    raise
                self._delete(aside)
                return False
            if self._durable:
                os.fsync(self.fd)
        except OSError:
            self._delete(aside)
            raise
        return True

    def _write_cap(self, within: int, cap: int) -> None:
        aside = f"cap-{os.urandom(8).hex()}"
        fd = os.open(aside, WRITE | MAKE, 0o600, dir_fd=within)
        try:
            write(fd, b"%d" % cap)
        except OSError:
            os.unlink(aside, dir_fd=within)
            raise
        finally:
            os.close(fd)
        os.rename(aside, "cap", src_dir_fd=within, dst_dir_fd=within)

    def remove(self, name: str, only_dead: bool = False) -> None:
        """Remove a channel with all that is in it. `only_dead`: unless its lease has been renewed."""
        aside = f"gone-{os.urandom(8).hex()}"
        try:
            os.rename(name, aside, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except FileNotFoundError:
            return
        if only_dead and self.lease(aside) is not None:
            try:
                os.rename(aside, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
                return
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
        self._delete(aside)

    def _delete(self, name: str) -> None:
        """Delete a directory that was renamed aside; the sweep does what cannot be done now."""
        with contextlib.suppress(OSError):
            if not stat.S_ISDIR(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=self.fd)
                return
            for _ in range(3):  # a writer may make one more file
                with self.channel(name) as fd:
                    for each in sorted(os.listdir(fd), key="lease".__ne__):  # the lease first
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(each, dir_fd=fd)
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=self.fd)
                    return

    def sweep(self, seconds: float) -> bool:
        """Remove channels that have expired, for about so long. True when all have been looked at, by us or others."""
        deadline = time.monotonic() + seconds
        if not self._unswept:
            if not self._turn():
                return True
            self._unswept = [each for each in os.listdir(self.fd) if _CHANNEL.match(each) or _ASIDE.match(each)]
        while self._unswept:
            name = self._unswept.pop()
            with contextlib.suppress(OSError):
                if not _CHANNEL.match(name):
                    if self._untouched(name):
                        self._delete(name)
                elif self._dead(name):
                    self.remove(name, only_dead=True)
            if time.monotonic() > deadline:
                break
        return not self._unswept

    def _turn(self) -> bool:
        """Whether nobody has begun to sweep for a while; then we do."""
        with contextlib.suppress(FileNotFoundError):
            if os.stat("swept", dir_fd=self.fd).st_mtime_ns + SWEEP_EVERY * 1e9 > self.now():
                return False
        fd = os.open("swept", UPDATE | os.O_CREAT, 0o600, dir_fd=self.fd)
        try:
            os.utime(fd)
        finally:
            os.close(fd)
        return True

    def _dead(self, name: str) -> bool:
        try:
            ends = os.stat(f"{name}/lease", dir_fd=self.fd).st_mtime_ns
        except FileNotFoundError:
            return self._untouched(name)
        return ends + GRACE * 1e9 <= self.now()

    def _untouched(self, name: str) -> bool:
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_ctime_ns + SETTLED * 1e9 <= self.now()
