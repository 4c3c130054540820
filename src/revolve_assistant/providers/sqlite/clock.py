"""One clock for all processes of a machine, which a change of the time of day does not move.

It counts from the boot of the machine, sleep included, and tells the Unix time that it was when this boot's first
process opened the database; that moment is kept in the database with the boot's id. So a lease, a delay or an expiry
lasts as long as it says even if somebody sets the clock, and what outlives a reboot goes on by the time of day. Where
the system has no such clock or id (macOS) it is the time of day itself.
"""

from __future__ import annotations

import sqlite3
import time
from functools import cache

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)


@cache
def boot_id() -> str:
    """Of this boot of this machine; "" if nothing tells."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


class Clock:
    """Seconds, near to Unix time."""

    def __init__(self, offset: float | None) -> None:
        self._offset = offset

    def now(self) -> float:
        if self._offset is None or _BOOTTIME is None:
            return time.time()
        return time.clock_gettime(_BOOTTIME) + self._offset

    @classmethod
    def of(cls, db: sqlite3.Connection) -> Clock:
        """This boot's clock of that database. Inside a transaction that writes."""
        boot = boot_id()
        if not boot or _BOOTTIME is None:
            return cls(None)
        row = db.execute("SELECT boot, offset FROM clock").fetchone()
        if row is not None and row[0] == boot:
            return cls(row[1])
        offset = time.time() - time.clock_gettime(_BOOTTIME)
        db.execute("DELETE FROM clock")
        db.execute("INSERT INTO clock(boot, offset) VALUES (?, ?)", (boot, offset))
        return cls(offset)
