"""Which tasks a take gets: the first ones of each queue, but for those that a rule keeps back.

Without rules that is one walk along the index. With rules the walk meets tasks that may not go; they are parked, so
that no later walk meets them again. A function whose parked tasks may go has its first ones offered beside the ready
ones, by priority and place in line, so that order is as if nothing had been parked.
"""

from __future__ import annotations

import heapq
import math
import sqlite3
from collections.abc import Iterator
from typing import Any

from ...engine import Rule

PAGE = 200  # ready tasks looked at, at once
MOST_PARKED = 2000  # in one transaction
TICK = 1000  # delays and leases that are ended at once

FIRST = (
    "SELECT rank, number, id, body, queue, deliveries, name FROM task "
    "WHERE stage = 0 AND ns = ? AND queue = ? ORDER BY rank, number LIMIT ?"
)
_NEXT = (
    "SELECT rank, number, id, body, queue, deliveries, name FROM task "
    "WHERE stage = 0 AND ns = ? AND queue = ? AND (rank, number) > (?, ?) ORDER BY rank, number LIMIT ?"
)
_PARKED = (
    "SELECT rank, number, id, body, queue, deliveries, name FROM task "
    "WHERE stage = 3 AND ns = ? AND queue = ? AND name = ? ORDER BY rank, number LIMIT ?"
)
_PARKED_NAME = "SELECT min(name) FROM task WHERE stage = 3 AND ns = ? AND queue = ? AND name > ?"
_PARKED_FIRST = "SELECT min(name) FROM task WHERE stage = 3 AND ns = ? AND queue = ?"


class Rooms:
    """How many more tasks of each function may be taken, in this transaction."""

    def __init__(self, db: sqlite3.Connection, namespace: str, now: float) -> None:
        self._db, self._ns, self._now = db, namespace, now
        found = db.execute("SELECT name, paused, concurrency, rate, per FROM rule WHERE ns = ?", (namespace,))
        self.rules = {row[0]: Rule(row[0], bool(row[1]), *row[2:]) for row in found}
        self._rooms: dict[str, float] = {}
        self.later = math.inf  # when a rate lets something go again

    def room(self, name: str) -> float:
        rule = self.rules.get(name)
        if rule is None:
            return math.inf
        found = self._rooms.get(name)
        if found is None:
            found = self._rooms[name] = max(0.0, self._count(rule))
        return found

    def _count(self, rule: Rule) -> float:
        room = 0.0 if rule.paused else math.inf
        if rule.concurrency is not None and room > 0:
            sql = "SELECT count(*) FROM task WHERE stage = 2 AND ns = ? AND name = ?"
            room = min(room, rule.concurrency - self._db.execute(sql, (self._ns, rule.name)).fetchone()[0])
        if rule.rate is not None and room > 0:
            sql = "SELECT count(*), min(at) FROM started WHERE ns = ? AND name = ? AND at > ?"
            count, first = self._db.execute(sql, (self._ns, rule.name, self._now - rule.per)).fetchone()
            room = min(room, rule.rate - count)
            if rule.rate <= count:
                self.later = min(self.later, self._now + rule.per if first is None else first + rule.per)
        return room

    def take(self, name: str) -> None:
        """One more is taken."""
        rule = self.rules.get(name)
        if rule is None:
            return
        self._rooms[name] = self.room(name) - 1
        if rule.rate is not None:
            key = (self._ns, name)
            self._db.execute("DELETE FROM started WHERE ns = ? AND name = ? AND at <= ?", (*key, self._now - rule.per))
            self._db.execute("INSERT INTO started VALUES (?, ?, ?)", (*key, self._now))
            if self._rooms[name] <= 0:
                self.later = min(self.later, self._now + rule.per)


def choose(db: sqlite3.Connection, rooms: Rooms, queue: str, most: int) -> list[tuple[Any, ...]]:
    """Up to `most` rows of a queue, as in `FIRST`."""
    ns = rooms._ns
    parked = _parked(db, rooms, queue, most)
    if parked is None and not rooms.rules:
        return db.execute(FIRST, (ns, queue, most)).fetchall()
    chosen: list[tuple[Any, ...]] = []
    park: list[tuple[int]] = []
    # Each row with whether it is parked already; rank and number differ, so nothing else is compared.
    merged = heapq.merge(((row, False) for row in _ready(db, ns, queue)), ((row, True) for row in parked or ()))
    for row, was_parked in merged:
        if rooms.room(row[6]) > 0:
            rooms.take(row[6])
            chosen.append(row)
            if len(chosen) >= most:
                break
        elif not was_parked:
            park.append((row[1],))
            if len(park) >= MOST_PARKED:
                break
    db.executemany("UPDATE task SET stage = 3 WHERE number = ?", park)
    return chosen


def _parked(db: sqlite3.Connection, rooms: Rooms, queue: str, most: int) -> list[tuple[Any, ...]] | None:
    """The first ones of each function that is parked and may go; None: nothing is parked."""
    name = db.execute(_PARKED_FIRST, (rooms._ns, queue)).fetchone()[0]
    if name is None:
        return None
    found: list[tuple[Any, ...]] = []
    while name is not None:
        room = min(most, rooms.room(name))
        if room > 0:
            found += db.execute(_PARKED, (rooms._ns, queue, name, int(room))).fetchall()
        name = db.execute(_PARKED_NAME, (rooms._ns, queue, name)).fetchone()[0]
    found.sort(key=lambda row: row[:2])
    return found


def _ready(db: sqlite3.Connection, ns: str, queue: str) -> Iterator[tuple[Any, ...]]:
    page = db.execute(FIRST, (ns, queue, PAGE)).fetchall()
    while page:
        yield from page
        if len(page) < PAGE:
            return
        page = db.execute(_NEXT, (ns, queue, *page[-1][:2], PAGE)).fetchall()


def tick(db: sqlite3.Connection, now: float) -> int:
    """End the delays and leases that are due; how many."""
    ended = 0
    for stage in (1, 2):
        due = db.execute(f"SELECT min(due) FROM task WHERE stage = {stage}").fetchone()[0]
        if due is not None and due <= now:
            ended += db.execute(
                "UPDATE task SET stage = 0, since = ? WHERE number IN "
                f"(SELECT number FROM task WHERE stage = {stage} AND due <= ? ORDER BY due LIMIT ?)",
                (now, now, TICK),
            ).rowcount
    return ended


def due_next(db: sqlite3.Connection) -> float:
    """When the next delay or lease ends."""
    dues = [db.execute(f"SELECT min(due) FROM task WHERE stage = {stage}").fetchone()[0] for stage in (1, 2)]
    return min((due for due in dues if due is not None), default=math.inf)
