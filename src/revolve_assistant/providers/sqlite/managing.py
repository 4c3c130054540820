"""What can be seen of a queue and changed about it: counts, buried tasks, rules, plans, who takes."""

from __future__ import annotations

import math
import sqlite3
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ...engine import Buried, Count, Overdue, Plan, Rule
from ...errors import UsageError
from . import taking
from .board import ALL, TAKER
from .joined import Joined
from .place import Place

FAR = 3600.0  # seconds after which to look at the plans again, if none is due
_GRAVE = "number, id, body, queue, deliveries, reason, name, unix"


class Managing(Joined):
    """Part of the Queue. Every method may be called from any thread, and none waits but for a lock."""

    lease: float
    _keep: tuple[float, int]

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._introduced: str | None = None  # the holder as which it said who it is

    # ---- to see

    def counts(self) -> Sequence[Count]:
        self._joined()
        ns = self.place.namespace
        found: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(Count._fields[1:], 0))
        with self._line.writing() as db:
            now = self._line.clock.now()
            taking.tick(db, now)
            self._clear_buried(db, now)
            for queue, stage, count in db.execute(
                "SELECT queue, stage, count(*) FROM task WHERE ns = ? AND stage IN (1, 2) GROUP BY 1, 2", (ns,)
            ):
                found[queue]["delayed" if stage == 1 else "leased"] = count
            rooms = taking.Rooms(db, ns, now)
            parked = db.execute("SELECT EXISTS(SELECT 1 FROM task WHERE stage = 3 AND ns = ?)", (ns,)).fetchone()[0]
            self._count_waiting(db, rooms, found) if rooms.rules or parked else self._count_ready(db, found, now)
            for queue, count in db.execute("SELECT queue, count(*) FROM buried WHERE ns = ? GROUP BY 1", (ns,)):
                found[queue]["buried"] = count
        return [Count(queue, **count) for queue, count in sorted(found.items())]  # type: ignore[arg-type]

    def _count_ready(self, db: sqlite3.Connection, found: dict[str, dict[str, float]], now: float) -> None:
        """Without rules: what the index of the ready ones says."""
        sql = "SELECT queue, count(*), min(number) FROM task WHERE stage = 0 AND ns = ? GROUP BY queue, rank"
        for queue, count, first in db.execute(sql, (self.place.namespace,)).fetchall():
            since = db.execute("SELECT since FROM task WHERE number = ?", (first,)).fetchone()[0]
            found[queue]["pending"] += count
            found[queue]["oldest"] = max(found[queue]["oldest"], now - since)

    def _count_waiting(self, db: sqlite3.Connection, rooms: taking.Rooms, found: dict[str, dict[str, float]]) -> None:
        """With rules: of a function that has room for a few only, those few are pending and the others blocked."""
        now = self._line.clock.now()
        left: dict[str, float] = {}
        sql = (
            "SELECT queue, name, count(*), min(since) FROM task WHERE ns = ? AND stage IN (0, 3) "
            "GROUP BY queue, name ORDER BY min(rank), min(number)"
        )
        for queue, name, count, since in db.execute(sql, (self.place.namespace,)).fetchall():
            room = left.setdefault(name, rooms.room(name))
            pending = int(min(room, count))
            left[name] = room - pending
            found[queue]["pending"] += pending
            found[queue]["blocked"] += count - pending
            if pending:
                found[queue]["oldest"] = max(found[queue]["oldest"], now - since)

    def buried(self, *, limit: int = 100) -> Sequence[Buried]:
        self._joined()
        with self._line.writing() as db:
            self._clear_buried(db, self._line.clock.now())
            sql = f"SELECT {_GRAVE} FROM buried WHERE ns = ? ORDER BY number DESC LIMIT ?"
            return [Buried(*row[1:]) for row in db.execute(sql, (self.place.namespace, limit))]

    def _clear_buried(self, db: sqlite3.Connection, now: float) -> None:
        """Forget who was buried too long ago, and the first of too many."""
        seconds, most = self._keep
        ns = self.place.namespace
        row = db.execute("SELECT min(number) FROM buried WHERE ns = ?", (ns,)).fetchone()
        if row[0] is None:
            return
        old = "SELECT number FROM buried WHERE ns = ? AND at <= ? ORDER BY number LIMIT 100"
        db.execute(f"DELETE FROM buried WHERE number IN ({old})", (ns, now - seconds))
        count = db.execute("SELECT count(*) FROM buried WHERE ns = ?", (ns,)).fetchone()[0]
        if count > most:
            surplus = "SELECT number FROM buried WHERE ns = ? ORDER BY number LIMIT ?"
            db.execute(f"DELETE FROM buried WHERE number IN ({surplus})", (ns, count - most))

    # ---- to take out

    def exhume(self, task_id: str) -> Buried | None:
        self._joined()
        with self._line.writing() as db:
            now = self._line.clock.now()
            taking.tick(db, now)
            self._clear_buried(db, now)
            sql = f"SELECT {_GRAVE} FROM buried WHERE ns = ? AND id = ?"
            row = db.execute(sql, (self.place.namespace, task_id)).fetchone()
            if row is not None:
                db.execute("DELETE FROM buried WHERE number = ?", row[:1])
                return Buried(*row[1:])
            return self._take_out(db, task_id)

    def purge(self, queue: str, *, buried: bool = False, limit: int = 1000) -> Sequence[Buried]:
        self._joined()
        ns = self.place.namespace
        with self._line.writing() as db:
            now = self._line.clock.now()
            taking.tick(db, now)
            if buried:
                self._clear_buried(db, now)
                sql = f"SELECT {_GRAVE} FROM buried WHERE ns = ? AND queue = ? ORDER BY number LIMIT ?"
                rows = db.execute(sql, (ns, queue, limit)).fetchall()
                db.executemany("DELETE FROM buried WHERE number = ?", [row[:1] for row in rows])
                return [Buried(*row[1:]) for row in rows]
            ids: list[str] = []
            for stage in (0, 3, 1):
                sql = f"SELECT id FROM task WHERE stage = {stage} AND ns = ? AND queue = ? LIMIT ?"
                ids += [row[0] for row in db.execute(sql, (ns, queue, limit - len(ids)))]
            return [one for id in ids if (one := self._take_out(db, id)) is not None]

    def _take_out(self, db: sqlite3.Connection, task_id: str) -> Buried | None:
        """Remove a task that nobody has taken. Inside a transaction that writes."""
        sql = "SELECT number, body, queue, deliveries, name FROM task WHERE ns = ? AND id = ? AND stage <> 2"
        row = db.execute(sql, (self.place.namespace, task_id)).fetchone()
        if row is None:
            return None
        number, body, queue, deliveries, name = row
        if body is None:
            body = db.execute("DELETE FROM large WHERE number = ? RETURNING body", (number,)).fetchone()[0]
        db.execute("DELETE FROM task WHERE number = ?", (number,))
        return Buried(task_id, body, queue, deliveries, "", name, 0.0)

    # ---- rules

    def rules(self) -> Sequence[Rule]:
        self._joined()
        sql = "SELECT name, paused, concurrency, rate, per FROM rule WHERE ns = ? ORDER BY name"
        return [Rule(row[0], bool(row[1]), *row[2:]) for row in self._line.rows(sql, (self.place.namespace,))]

    def set_rule(self, name: str, **changes: Any) -> Rule:
        """Raises `UsageError` for what is no field of a rule, or no value of it."""
        _check_rule(name, changes)
        member = self._joined()
        key = (self.place.namespace, name)
        with self._line.writing() as db:
            sql = "SELECT name, paused, concurrency, rate, per FROM rule WHERE ns = ? AND name = ?"
            row = db.execute(sql, key).fetchone()
            rule = (Rule(name) if row is None else Rule(name, bool(row[1]), *row[2:]))._replace(**changes)
            rule = rule._replace(paused=bool(rule.paused), per=float(rule.per))
            if rule._replace(per=1.0) == Rule(name):
                db.execute("DELETE FROM rule WHERE ns = ? AND name = ?", key)
            else:
                db.execute(
                    "INSERT OR REPLACE INTO rule VALUES (?, ?, ?, ?, ?, ?)",
                    (*key, int(rule.paused), rule.concurrency, rule.rate, rule.per),
                )
            if rule.rate is None:
                db.execute("DELETE FROM started WHERE ns = ? AND name = ?", key)
        member.ring(TAKER, ALL)
        return rule

    # ---- plans

    def plans(self) -> Sequence[Plan]:
        self._joined()
        sql = "SELECT key, spec, due FROM plan WHERE ns = ? ORDER BY key"
        return [Plan(*row) for row in self._line.rows(sql, (self.place.namespace,))]

    def plan(self, key: str, spec: bytes, due: float) -> None:
        self._joined()
        with self._line.writing() as db:
            row = (self.place.namespace, key, bytes(spec), float(due))
            db.execute("INSERT OR REPLACE INTO plan VALUES (?, ?, ?, ?)", row)

    def unplan(self, key: str) -> bool:
        self._joined()
        with self._line.writing() as db:
            return db.execute("DELETE FROM plan WHERE ns = ? AND key = ?", (self.place.namespace, key)).rowcount > 0

    def overdue(self) -> Overdue:
        plans = self.plans()
        now = time.time()  # plans are for times of the day, as clocks on the wall show them
        later = min((plan.due for plan in plans if plan.due > now), default=math.inf)
        return Overdue(now, [plan for plan in plans if plan.due <= now], min(later, now + FAR))

    # ---- who takes

    def introduce(self, worker: str, about: bytes) -> None:
        member = self._joined()
        with self._line.writing() as db:
            row = (member.holder, self.place.namespace, worker, bytes(about))
            db.execute("INSERT OR REPLACE INTO worker VALUES (?, ?, ?, ?)", row)
        self._introduced = member.holder
        member.seen(self._line.clock.now())

    def workers(self) -> Mapping[str, bytes]:
        member = self._joined()
        now = self._line.clock.now()
        sql = "SELECT holder, worker, about FROM worker WHERE ns = ?"
        return {
            worker: about
            for holder, worker, about in self._line.rows(sql, (self.place.namespace,))
            if member.present(holder, now)
        }


def _check_rule(name: str, changes: Mapping[str, Any]) -> None:
    for field, value in changes.items():
        if field in ("concurrency", "rate"):
            if value is not None and (type(value) is not int or value < 0):
                raise UsageError(f"{field} of {name} must be a whole number or None, not {value!r}")
        elif field == "per":
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise UsageError(f"per of {name} must be a number of seconds, not {value!r}")
        elif field != "paused":
            raise UsageError(f"a rule has no {field!r}: {', '.join(Rule._fields[1:])}")
