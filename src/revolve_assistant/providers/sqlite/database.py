"""A connection to the database: opened at first use, closed before a fork, one transaction at a time.

SQLite forbids to carry an open connection over a fork, even to close it in the child: its locks are the process's, and
what it remembers of them is not. So a fork closes what is open here first, and both sides open it again when they need
it. (`subprocess` does not fork in that sense.)

SQLite waits for a lock by sleeping longer and longer, from 1 ms on; ours are held for a tenth of that. So it is told
not to wait, and we try again after shorter pauses.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import ClientClosed, ProviderError, UsageError
from ..filesystem.network import is_network
from . import schema
from .clock import Clock
from .failure import BUSY, code, failure
from .place import Place

PAUSES = (0.0001, 0.001, 0.02)  # seconds between attempts: at first, soon, and once PATIENCE is over
PATIENCE = 0.2  # seconds
LOOK = 1.0  # seconds after which to see whether the file is still the one that was opened
CHECKPOINT = 4000  # pages in the log until they go into the file itself
LOG_LIMIT = 64 << 20  # bytes that the log keeps when it is empty

_every: weakref.WeakSet[Connection] = weakref.WeakSet()
_gates: weakref.WeakValueDictionary[str, Gate] = weakref.WeakValueDictionary()
_making = threading.Lock()


class Gate:
    """One thread of this process writes to a file at a time: threads can wait for each other without looking."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    @classmethod
    def of(cls, path: str) -> Gate:
        with _making:
            gate = _gates.get(path)
            if gate is None:
                gate = _gates[path] = cls()
            return gate


class Connection:
    """Any thread may use it, one at a time; `lock` sees to that."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.lock = threading.RLock()
        self._gate = Gate.of(os.path.realpath(place.path))
        self.barred = True
        self.clock = Clock(None)
        self._db: sqlite3.Connection | None = None
        self._file = (0, 0)  # device and inode
        self._looked = 0.0
        _every.add(self)

    def ready(self) -> sqlite3.Connection:
        """Open it unless it is. Under the lock. Raises `ClientClosed`, `ProviderError`, `UsageError`."""
        if self.barred:
            raise ClientClosed(f"{self.place.text} is not open: call open() first")
        now = time.monotonic()
        if self._db is not None and now - self._looked >= LOOK:
            self._looked = now
            if _identity(self.place.path) != self._file:
                self.close()  # somebody has moved or removed the file
        if self._db is None:
            try:
                self._db = self._open()
            except sqlite3.Error as error:
                raise failure(error, self.place) from error
            self._looked = now
        return self._db

    def _open(self) -> sqlite3.Connection:
        place = self.place
        _prepare(place)
        db = sqlite3.connect(
            place.path, timeout=0.0, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            self._set_up(db)
        except BaseException:
            db.close()
            raise
        self._file = _identity(place.path)
        return db

    def _set_up(self, db: sqlite3.Connection) -> None:
        place = self.place
        version = self._again(lambda: schema.version(db, place))
        if not version:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        mode = self._again(lambda: db.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        if mode != "wal":
            raise ProviderError(f"{place.path} cannot have a write-ahead log here: put it on a local disk")
        db.execute(f"PRAGMA synchronous = {place.synchronous}")
        db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT}")
        db.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")
        db.execute("PRAGMA cache_size = -32000")
        db.execute("PRAGMA temp_store = MEMORY")
        self._again(lambda: db.execute("BEGIN IMMEDIATE"))
        try:
            if not schema.version(db, place):
                schema.make(db)
            self.clock = Clock.of(db)
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def close(self) -> None:
        with self.lock:
            db, self._db = self._db, None
            if db is not None:
                with contextlib.suppress(sqlite3.Error):
                    db.close()

    # ---- to use it

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that writes; nothing of it happened if this raises. Waits up to `timeout` for a lock."""
        with self.lock, self._gate.lock:
            db = self.ready()
            try:
                try:
                    db.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    if code(error) not in BUSY:
                        raise
                    self._again(lambda: db.execute("BEGIN IMMEDIATE"))
                yield db
                db.execute("COMMIT")
            except sqlite3.Error as error:
                raise failure(error, self.place) from error
            finally:
                if db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        db.execute("ROLLBACK")

    def rows(self, sql: str, args: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What a query finds, outside of a transaction."""
        with self.lock:
            db = self.ready()
            try:
                try:
                    return db.execute(sql, args).fetchall()
                except sqlite3.OperationalError as error:
                    if code(error) not in BUSY:
                        raise
                    found: list[tuple[Any, ...]] = self._again(lambda: db.execute(sql, args).fetchall())
                    return found
            except sqlite3.Error as error:
                raise failure(error, self.place) from error

    def some(self, sql: str, args: Sequence[Any], most: int) -> tuple[list[tuple[int, bytes]], bool]:
        """Rows of a number and bytes, until those are more than `most`, and whether these are all."""

        def fetch() -> tuple[list[tuple[int, bytes]], bool]:
            found: list[tuple[int, bytes]] = []
            size = 0
            cursor = db.execute(sql, args)
            try:
                for row in cursor:
                    found.append(row)
                    size += len(row[1])
                    if size > most:
                        return found, False
                return found, True
            finally:
                cursor.close()

        with self.lock:
            db = self.ready()
            try:
                result: tuple[list[tuple[int, bytes]], bool] = self._again(fetch)
                return result
            except sqlite3.Error as error:
                raise failure(error, self.place) from error

    def _again(self, call: Any) -> Any:
        """Call it until no lock is in its way."""
        began = time.monotonic()
        deadline = began + self.place.timeout
        pause = PAUSES[0]
        while True:
            try:
                return call()
            except sqlite3.OperationalError as error:
                if code(error) not in BUSY or time.monotonic() >= deadline:
                    raise
            time.sleep(pause)
            pause = min(PAUSES[1] if time.monotonic() - began < PATIENCE else PAUSES[2], pause * 1.3)


def _prepare(place: Place) -> None:
    """Make the file, for this user alone, unless it is there; refuse a place where it cannot work."""
    if sqlite3.sqlite_version_info < (3, 35):
        raise ProviderError(f"sqlite needs SQLite 3.35 or later; this Python has {sqlite3.sqlite_version}")
    folder = os.path.dirname(place.path)
    try:
        fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError as error:
        raise ProviderError(f"{folder} cannot be opened ({error.strerror}): make that folder first") from error
    try:
        if place.network is None and is_network(fd):
            raise UsageError(
                f"{place.path} is on a network file system, where SQLite's locks and log do not work: put it on a "
                "local disk, or use redis:// for several machines (network=no says that it is local after all)"
            )
    finally:
        os.close(fd)
    try:
        if not os.path.exists(place.path):
            # Never of one that exists: closing a file drops every lock that this process has on it, SQLite's too.
            os.close(os.open(place.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:  # another process was first
        pass
    except OSError as error:
        raise ProviderError(
            f"{place.path} cannot be made ({error.strerror}): its folder must be writable for this user"
        ) from error


def _identity(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


# ---- forks

_held: list[Connection] = []


def _before_fork() -> None:
    for line in list(_every):
        if line.lock.acquire(timeout=line.place.timeout):
            _held.append(line)
            line.close()


def _after_in_parent() -> None:
    while _held:
        _held.pop().lock.release()


def _after_in_child() -> None:
    _held.clear()
    globals()["_making"] = threading.Lock()
    for gate in list(_gates.values()):
        gate.lock = threading.RLock()
    for line in list(_every):
        line.lock = threading.RLock()
        if line._db is not None:  # a thread held it for too long: it must never be closed here
            _inherited.append(line._db)
            line._db = None


_inherited: list[sqlite3.Connection] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
