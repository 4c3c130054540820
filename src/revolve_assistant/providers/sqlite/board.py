"""Who uses a database, who of them waits for what, and who is dead: a board in shared memory, and a bell for each.

    jobs.db-bells/board     64 bytes a slot: incarnation, state, kind, mask, when it was last seen, its lease
    jobs.db-bells/7         the bell of slot 7, a named pipe

      waiter                                    notifier
      state = waits, mask of its queues         commit
      look into the database                    who waits for that?  (a look into shared memory)
      sleep on the bell  ◀────── one byte ───── its state = rung

A waiter looks after it has said that it waits, a notifier asks after it has committed: one of them sees the other. One
that is killed between the two leaves a waiter asleep, which therefore looks once a second anyway.

The byte of the file with a slot's number is locked (fcntl) by the process that has the slot. The kernel drops that lock
when the process dies, however it dies; a slot that is in use and not locked is that of a dead one, whose leases whoever
notices ends. Such locks belong to a process and fall when it closes *any* descriptor of the file, so a process has one
board for each file, and one descriptor; what its own slots do it knows by itself. A fork inherits none of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import struct
import threading
import weakref
import zlib
from collections.abc import Iterable

from ...errors import Overloaded, ProviderError

SLOT = 64
SLOTS = 4096  # the first one is the header
ALL = (1 << 64) - 1
MANY = 24  # names from which on a mask says nothing
FREE, BUSY, WAITS = 0, 1, 2
TAKER, READER = 1, 2
_SEEN = struct.Struct("=dd")
_MASK = struct.Struct("=Q")
_HIGH = struct.Struct("=I")

_boards: dict[str, Board] = {}
_lock = threading.Lock()
_members: weakref.WeakSet[Member] = weakref.WeakSet()


def mask_of(namespace: str, names: Iterable[str]) -> int:
    """One bit for each name, of 64; all of them if there are many."""
    mask = 0
    for count, name in enumerate(names):
        if count >= MANY:
            return ALL
        mask |= 1 << (zlib.crc32(f"{namespace}/{name}".encode()) & 63)
    return mask


class Board:
    """One for each database in a process; `Member` joins and leaves it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.pid = os.getpid()
        self.own: set[int] = set()
        self.claimed: set[int] = set()  # of dead ones, by a thread of ours: locks do not tell threads apart
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
            self.fd = os.open(f"{folder}/board", flags, 0o600)
        except OSError as error:
            raise ProviderError(f"{folder} cannot be used ({error.strerror}): it must be writable") from error
        try:
            if os.fstat(self.fd).st_size < SLOT * SLOTS:
                os.ftruncate(self.fd, SLOT * SLOTS)
            self.map = mmap.mmap(self.fd, SLOT * SLOTS)
        except OSError as error:
            os.close(self.fd)
            raise ProviderError(f"{folder}/board cannot be used: {error}") from error

    @property
    def high(self) -> int:
        """The highest slot that was ever used."""
        return int(min(SLOTS - 1, _HIGH.unpack_from(self.map, 8)[0]))

    def acquire(self) -> int:
        """A slot, locked. Under the module's lock."""
        fcntl.lockf(self.fd, fcntl.LOCK_EX, 1, 0)
        try:
            for slot in range(1, SLOTS):
                if self.map[slot * SLOT + 8] == FREE and slot not in self.own | self.claimed and self.lock(slot):
                    self.own.add(slot)
                    if slot > self.high:
                        _HIGH.pack_into(self.map, 8, slot)
                    return slot
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, 0)
        raise Overloaded(f"{self.folder}: {SLOTS - 1:,} clients and workers are there already")

    def lock(self, slot: int) -> bool:
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        except OSError:
            return False
        return True

    def unlock(self, slot: int) -> None:
        fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, slot)

    def holder(self, slot: int) -> str:
        return f"{slot}.{self.map[slot * SLOT : slot * SLOT + 8].hex()}"

    def dead(self) -> list[int]:
        """Slots whose processes died. They are locked and ours now, until `bury`. Under the module's lock."""
        states = self.map[SLOT + 8 : (self.high + 1) * SLOT : SLOT]
        ours = self.own | self.claimed
        found = [
            slot
            for slot, state in enumerate(states, 1)
            if state != FREE and slot not in ours and self.lock(slot) and self._still(slot)
        ]
        self.claimed.update(found)
        return found

    def _still(self, slot: int) -> bool:
        """Whether a slot that was just locked is still in use; it was set free meanwhile otherwise."""
        if self.map[slot * SLOT + 8] != FREE:
            return True
        self.unlock(slot)
        return False

    def bury(self, slots: Iterable[int], freed: bool) -> None:
        """Let go of dead ones; `freed`: what they had was given back, and nobody need look again."""
        with _lock:
            for slot in slots:
                if not self.map.closed:
                    if freed:
                        self.map[slot * SLOT + 8] = FREE
                    self.unlock(slot)
                self.claimed.discard(slot)

    def present(self, holder: str, now: float) -> bool:
        """Whether a taker waits, or was seen within the time of its lease."""
        slot = int(holder.partition(".")[0])
        at = slot * SLOT
        state = self.map[at + 8]
        if state == FREE or self.holder(slot) != holder:
            return False
        seen, lease = _SEEN.unpack_from(self.map, at + 24)
        return state == WAITS or seen + lease >= now

    def ring(self, kind: int, mask: int, most: int = SLOTS) -> None:
        """Ring up to `most` that wait for any of that."""
        end = (self.high + 1) * SLOT
        states = self.map[8 + SLOT : end : SLOT]
        slot = states.find(WAITS) + 1
        while slot > 0 and most > 0:
            at = slot * SLOT
            if self.map[at + 9] == kind and _MASK.unpack_from(self.map, at + 16)[0] & mask:
                self.map[at + 8] = BUSY
                if self._ring(slot):
                    most -= 1
            slot = states.find(WAITS, slot) + 1

    def _ring(self, slot: int) -> bool:
        try:
            bell = os.open(f"{self.folder}/{slot}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # nobody is there: it died
            return False
        try:
            os.write(bell, b"!")
        except OSError:  # full: it rings already
            pass
        finally:
            os.close(bell)
        return True

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


class Member:
    """One object's slot and bell. `wake` and `leave` from any thread, the others by who waits."""

    def __init__(self, path: str, kind: int, lease: float = 0.0) -> None:
        """Join. Raises `ProviderError`, `Overloaded`."""
        self.lease = lease
        folder = os.path.realpath(path) + "-bells"
        self._guard = threading.RLock()  # a signal handler may wake while its thread does
        self.woken = False
        with _lock:
            board = _boards.get(folder)
            if board is None:
                board = _boards[folder] = Board(folder)
            self.board = board
            self.slot = slot = board.acquire()
            self._at = at = slot * SLOT
            try:
                self._bell = _bell(f"{folder}/{slot}")
            except OSError as error:
                self._drop()
                raise ProviderError(f"{folder}/{slot} cannot be used: {error}") from error
            board.map[at : at + 8] = os.urandom(8)
            board.map[at + 9] = kind
            _SEEN.pack_into(board.map, at + 24, 0.0, lease)
            board.map[at + 8] = BUSY
            self.holder = board.holder(slot)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        _members.add(self)

    def leave(self) -> None:
        with self._guard, _lock:
            if self._bell < 0:
                return
            os.close(self._bell)
            self._bell = -1
            self.board.map[self._at + 8] = FREE
            self._drop()

    def _drop(self) -> None:
        board = self.board
        board.unlock(self.slot)
        board.own.discard(self.slot)
        if not board.own and _boards.get(board.folder) is board:
            del _boards[board.folder]
            board.close()

    def wake(self) -> None:
        with self._guard:
            self.woken = True
            if self._bell >= 0:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._bell, b"!")

    # ---- to wait

    def seen(self, now: float) -> None:
        with self._guard:
            if self._bell >= 0:
                _SEEN.pack_into(self.board.map, self._at + 24, now, self.lease)

    def waits(self, mask: int) -> None:
        """From now on it is rung for what fits the mask."""
        with self._guard:
            if self._bell >= 0:
                _MASK.pack_into(self.board.map, self._at + 16, mask)
                self.board.map[self._at + 8] = WAITS

    def rests(self) -> None:
        with self._guard:
            if self._bell >= 0:
                self.board.map[self._at + 8] = BUSY

    def wait(self, seconds: float) -> None:
        """Until it is rung or the time is over."""
        bell = self._bell
        if self.woken or seconds <= 0 or bell < 0:
            return
        if self._poll.poll(seconds * 1000):
            with self._guard:
                if self._bell >= 0:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._bell, 4096)

    def ring(self, kind: int, mask: int, most: int = SLOTS) -> None:
        with self._guard:
            if self._bell >= 0:
                self.board.ring(kind, mask, most)

    def dead(self) -> dict[int, str]:
        """Slots of the dead, and as which holders they had their leases. `Board.bury` them."""
        with self._guard, _lock:
            return {slot: self.board.holder(slot) for slot in self.board.dead()} if self._bell >= 0 else {}

    def present(self, holder: str, now: float) -> bool:
        with self._guard:
            return self._bell >= 0 and self.board.present(holder, now)


def _bell(path: str) -> int:
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        pass
    bell = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    with contextlib.suppress(BlockingIOError):
        os.read(bell, 65536)
    return bell


def _after_in_child() -> None:
    globals()["_lock"] = threading.Lock()
    for member in list(_members):
        member._guard = threading.RLock()
        bell, member._bell = member._bell, -1
        if bell >= 0:
            os.close(bell)
    _members.clear()
    for board in _boards.values():
        os.close(board.fd)  # drops no lock: they are the parent's
    _boards.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)
