"""What is no more is removed, a little at a time, by whoever is at it anyway; and what the dead had is given back.

Pages that became free are used again. When there are many of them the file is made smaller, a little at a time too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from .board import ALL, TAKER, Member
from .database import Connection

SWEEP = 1.0  # seconds between looks for what has expired
STEP = 500  # rows at once
SPARE = 4096  # free pages (16 MiB) that are kept for what comes
SHRINK = 256  # pages at once


def sweep(db: sqlite3.Connection, now: float) -> bool:
    """Remove some of what has expired; True: there is more. Inside a transaction that writes."""
    db.execute(
        "DELETE FROM channel WHERE number IN (SELECT number FROM channel WHERE expires <= ? LIMIT ?)", (now, STEP)
    )
    left = STEP
    while left > 0:
        row = db.execute("SELECT channel FROM gone LIMIT 1").fetchone()
        if row is None:
            break
        removed = db.execute(
            "DELETE FROM message WHERE number IN (SELECT number FROM message WHERE channel = ? LIMIT ?)", (*row, left)
        ).rowcount
        if removed < left:
            db.execute("DELETE FROM gone WHERE channel = ?", row)
        left -= max(1, removed)
    if db.execute("PRAGMA freelist_count").fetchone()[0] > SPARE:
        db.execute(f"PRAGMA incremental_vacuum({SHRINK})").fetchall()
        return True
    return left <= 0


def is_due(line: Connection, now: float) -> bool:
    """Whether there is something to sweep."""
    found = line.rows(
        "SELECT EXISTS(SELECT 1 FROM channel WHERE expires <= ?) OR EXISTS(SELECT 1 FROM gone) "
        "OR (SELECT freelist_count FROM pragma_freelist_count) > ?",
        (now, SPARE),
    )
    return bool(found[0][0])


def recover(line: Connection, member: Member) -> int:
    """End the leases of processes that died; how many there were. Rings takers."""
    dead = member.dead()
    if not dead:
        return 0
    done, freed = False, 0
    try:
        with line.writing() as db:
            freed = give_back(db, list(dead.values()), line.clock.now())
        done = True
    finally:
        member.board.bury(dead, done)
    if freed:
        member.ring(TAKER, ALL)
    return freed


def give_back(db: sqlite3.Connection, holders: Sequence[str], now: float) -> int:
    """End all leases of these holders, which are no more. Inside a transaction that writes."""
    marks = ",".join("?" * len(holders))
    db.execute(f"DELETE FROM worker WHERE holder IN ({marks})", holders)
    return db.execute(
        f"UPDATE task SET stage = 0, since = ? WHERE stage = 2 AND holder IN ({marks})", (now, *holders)
    ).rowcount
