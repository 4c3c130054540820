"""Tasks in an SQLite database.

    submit ─▶ delayed ─▶ ready ─▶ leased ─▶ settled: done, buried
                ▲         ▲ ▲       │
                └─────────┼─┴───────┘  released, or the lease ended, or its taker is dead
                          ▼
                        parked (a rule keeps its function back)

Every call is one transaction (BEGIN IMMEDIATE), whatever number of tasks it is about; `settle_and_take` too, and
`submit_and_keep` where the messages are in the same database. See `schema` for the tables, `taking` for rules, `board`
for how a taker sleeps and how the dead are noticed.

A lease has a token, random for each take: who lost a lease finds no row with its token.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ... import engine as contract
from ... import messenger as contract_of_messages
from ...engine import EngineState, Lease, Outcome, Parcel, Plan, Sink
from ...errors import UsageError
from ...traits import Traits
from ..url import Url
from . import sweeping, taking
from .board import ALL, SLOTS, TAKER, Member, mask_of
from .joined import LOOK
from .managing import Managing
from .messenger import Messenger
from .place import Place

LEASE = 30.0  # seconds
KEEP_BURIED = 7 * 86400.0  # seconds
MOST_BURIED = 10_000
LARGEST = 64 << 20  # bytes of a body
INLINE = 4096  # bytes of a body that stands in its task's row
LONGEST_DELAY = 10 * 365 * 86400.0  # seconds
BATCH = 500
_STATES: tuple[EngineState, ...] = ("queued", "queued", "running", "queued")

_INSERT = (
    "INSERT INTO task(number, ns, id, queue, name, key, rank, stage, due, since, deliveries, token, holder, body) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, '', ?) ON CONFLICT DO NOTHING"
)
_LEASE = "UPDATE task SET stage = 2, deliveries = deliveries + 1, token = ?, due = ?, holder = ? WHERE number = ?"
_DONE = "DELETE FROM task WHERE number = ? AND token = ? AND stage <> 1"
_EXTEND = "UPDATE task SET stage = 2, due = ?, holder = ? WHERE number = ? AND token = ? AND stage <> 1"
_RELEASE = (
    "UPDATE task SET number = (SELECT max(number) + 1 FROM task), stage = ?, due = ?, since = ?, token = 0, "
    "deliveries = deliveries - ? WHERE number = ? AND token = ? AND stage <> 1 RETURNING number"
)


class Queue(Managing, contract.Queue):
    """Tasks in a file, for workers on this machine. Every method may be called from any thread.

    A call waits up to `timeout` for another program's lock, and raises `Unreachable` then. `lease`: seconds until a
    task that was taken and not extended goes to somebody else; what a dead process held goes within about a second.
    """

    traits = Traits(
        summary="tasks in an SQLite file, for the workers of one machine",
        durable=True,
        delays=True,
        priorities=True,
        manages=True,
        max_bytes=LARGEST,
        max_wait=3600.0,
        messenger="sqlite://",
    )
    _kind = TAKER

    def __init__(
        self, place: Place, *, lease: float = LEASE, keep_buried: float = KEEP_BURIED, most_buried: int = MOST_BURIED
    ) -> None:
        super().__init__(place)
        self.lease = self._lease_told = lease
        self._keep = (keep_buried, most_buried)
        self._holds = False  # it has taken something since it was opened

    @classmethod
    def from_url(cls, url: Url, **options: object) -> Queue:
        """`sqlite:///jobs.db?lease=30&keep_buried=604800&most_buried=10000`; for the rest see `place`. Raises
        `UsageError`."""
        place = Place.read(url, options)
        url = url.with_options(options)
        return cls(
            place,
            lease=url.number("lease", LEASE, least=0.05, most=86400.0),
            keep_buried=url.number("keep_buried", KEEP_BURIED, least=0.001, most=3650 * 86400.0),
            most_buried=url.whole("most_buried", MOST_BURIED, most=1_000_000),
        )

    def close(self) -> None:
        """Give back at once what was taken and not settled."""
        member = self._member
        if member is not None and self._pid == os.getpid() and (self._holds or self._introduced):
            self._holds, self._introduced = False, None
            try:
                with self._line.writing() as db:
                    freed = sweeping.give_back(db, [member.holder], self._line.clock.now())
                if freed:
                    member.ring(TAKER, ALL)
            except Exception:  # the leases end by themselves
                pass
        super().close()

    def _afresh(self) -> None:
        self._holds, self._introduced = False, None

    # ---- giving

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> Mapping[str, str]:
        """As the contract has it. A body may have 64 MiB. Raises `UsageError`, `Unreachable`, `Overloaded` (the disk
        is full)."""
        return self._submit(parcels, None, (), 0.0, 0)

    def submit_and_keep(
        self,
        parcels: Sequence[Parcel],
        sink: Sink,
        messenger: contract_of_messages.Messenger,
        channels: Sequence[str],
        *,
        seconds: float,
        cap: int,
    ) -> Mapping[str, str] | None:
        if not isinstance(messenger, Messenger) or messenger.place.path != self.place.path:
            return super().submit_and_keep(parcels, sink, messenger, channels, seconds=seconds, cap=cap)
        return self._submit(parcels, messenger, channels, seconds, cap)

    def _submit(
        self, parcels: Sequence[Parcel], messenger: Messenger | None, channels: Sequence[str], seconds: float, cap: int
    ) -> Mapping[str, str]:
        member = self._joined()
        for parcel in parcels:
            if len(parcel.body) > LARGEST:
                raise UsageError(
                    f"task {parcel.id} has {len(parcel.body):,} bytes, more than the {LARGEST:,} that go through "
                    "sqlite: put the data where workers can read it (a file) and pass its name"
                )
            if not parcel.delay <= LONGEST_DELAY:
                raise UsageError(f"a delay of {parcel.delay:g} s for task {parcel.id} is more than ten years")
        refused: dict[str, str] = {}
        with self._line.writing() as db:
            now = self._line.clock.now()
            if messenger is not None:
                messenger.keep_in(db, channels, now + seconds, cap, now)
            self._enter(db, parcels, now, refused)
        queues = {parcel.queue for parcel in parcels}
        late = any(parcel.delay > 0 for parcel in parcels)  # all are to know when: who is busy then cannot take it
        member.ring(TAKER, mask_of(self.place.namespace, queues), SLOTS if late else len(parcels))
        return refused

    def _enter(self, db: sqlite3.Connection, parcels: Sequence[Parcel], now: float, refused: dict[str, str]) -> None:
        """Take new tasks in; note those that are kept out by another one that holds their key."""
        ns = self.place.namespace
        first = (db.execute("SELECT max(number) FROM task").fetchone()[0] or 0) + 1
        if db.execute("SELECT EXISTS(SELECT 1 FROM buried)").fetchone()[0]:
            fresh = "SELECT 1 FROM task WHERE ns = ? AND id = ?"
            for parcel in parcels:
                if db.execute(fresh, (ns, parcel.id)).fetchone() is None:
                    db.execute("DELETE FROM buried WHERE ns = ? AND id = ?", (ns, parcel.id))
        plain: list[tuple[Any, ...]] = []
        for number, parcel in enumerate(parcels, first):
            delay = parcel.delay
            large = len(parcel.body) > INLINE
            row = (
                number,
                ns,
                parcel.id,
                parcel.queue,
                parcel.name,
                parcel.unique,
                -max(-9, min(9, parcel.priority)),
                1 if delay > 0 else 0,
                now + delay if delay > 0 else 0.0,
                now,
                None if large else bytes(parcel.body),
            )
            if parcel.unique is None and not large:
                plain.append(row)
                continue
            db.executemany(_INSERT, plain)
            plain.clear()
            if parcel.unique is not None:
                holder = db.execute("SELECT id FROM task WHERE ns = ? AND key = ?", (ns, parcel.unique)).fetchone()
                if holder is not None:
                    if holder[0] != parcel.id:
                        refused[parcel.id] = holder[0]
                    continue
            if db.execute(_INSERT, row).rowcount > 0 and large:
                db.execute("INSERT INTO large VALUES (?, ?)", (number, bytes(parcel.body)))
        db.executemany(_INSERT, plain)

    def fire(self, plan: Plan, next: float, parcel: Parcel | None) -> bool:
        member = self._joined()
        with self._line.writing() as db:
            sql = "UPDATE plan SET due = ? WHERE ns = ? AND key = ? AND due = ?"
            if not db.execute(sql, (float(next), self.place.namespace, plan.key, float(plan.due))).rowcount:
                return False
            if parcel is not None:
                self._enter(db, [parcel], self._line.clock.now(), {})
        if parcel is not None:
            member.ring(TAKER, mask_of(self.place.namespace, [parcel.queue]), 1)
        return True

    # ---- taking

    def take(self, queues: Sequence[str], *, limit: int, wait: float) -> Sequence[Lease]:
        return self._take((), queues, limit, wait)

    def settle_and_take(
        self, outcomes: Sequence[tuple[Lease, Outcome]], queues: Sequence[str], *, limit: int, wait: float
    ) -> Sequence[Lease]:
        return self._take(outcomes, queues, limit, wait)

    def _take(
        self, outcomes: Sequence[tuple[Lease, Outcome]], queues: Sequence[str], limit: int, wait: float
    ) -> Sequence[Lease]:
        deadline = time.monotonic() + wait
        mask = mask_of(self.place.namespace, queues)
        while True:
            member = self._joined()
            member.woken = self._woken
            if wait > 0:
                member.waits(mask)
            self._look_around(member)
            leases, due = self._find(member, outcomes, queues, limit)
            outcomes = ()
            left = deadline - time.monotonic()
            if leases or self._woken or left <= 0:
                self._woken = False
                member.rests()
                member.seen(self._line.clock.now())
                return leases
            member.wait(min(left, due - self._line.clock.now(), LOOK))

    def _find(
        self, member: Member, outcomes: Sequence[tuple[Lease, Outcome]], queues: Sequence[str], limit: int
    ) -> tuple[list[Lease], float]:
        """Leases, or when to look again at the latest."""
        if not outcomes:
            ns = self.place.namespace
            there, due = self._line.rows(_probe(len(queues)), [each for q in queues for each in (ns, q, ns, q)])[0]
            if not there and (due is None or due > self._line.clock.now()):
                return [], math.inf if due is None else due
        ring: list[tuple[int, int]] = []
        with self._line.writing() as db:
            now = self._line.clock.now()
            if outcomes:
                self._settle(db, outcomes, now, ring)
            ended = taking.tick(db, now)
            rooms = taking.Rooms(db, self.place.namespace, now)
            rows: list[tuple[Any, ...]] = []
            for queue in queues:
                if len(rows) < limit:
                    rows += taking.choose(db, rooms, queue, limit - len(rows))
            leases = self._leases(db, member, rows, now)
            due = min(rooms.later, taking.due_next(db))
        for mask, most in ring:
            member.ring(TAKER, mask, most)
        if ended > len(leases):
            member.ring(TAKER, ALL, ended)
        return leases, due

    def _leases(self, db: sqlite3.Connection, member: Member, rows: list[tuple[Any, ...]], now: float) -> list[Lease]:
        if not rows:
            return []
        self._holds = True
        token = int.from_bytes(os.urandom(8)) >> 1 or 1
        until = now + self.lease
        db.executemany(_LEASE, [(token, until, member.holder, row[1]) for row in rows])
        leases = []
        for _, number, id, body, queue, deliveries, _ in rows:
            large = body is None
            if large:
                body = db.execute("SELECT body FROM large WHERE number = ?", (number,)).fetchone()[0]
            leases.append(Lease(id, body, queue, deliveries + 1, (number, token, large)))
        return leases

    def extend(self, leases: Sequence[Lease]) -> None:
        member = self._joined()
        with self._line.writing() as db:
            now = self._line.clock.now()
            db.executemany(_EXTEND, [(now + self.lease, member.holder, *lease.token[:2]) for lease in leases])
        member.seen(now)

    def settle(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> None:
        member = self._joined()
        ring: list[tuple[int, int]] = []
        with self._line.writing() as db:
            now = self._line.clock.now()
            self._settle(db, outcomes, now, ring)
        member.seen(now)
        for mask, most in ring:
            member.ring(TAKER, mask, most)

    def _settle(
        self,
        db: sqlite3.Connection,
        outcomes: Sequence[tuple[Lease, Outcome]],
        now: float,
        ring: list[tuple[int, int]],
    ) -> None:
        """Inside a transaction that writes. `ring` gets whom to ring after it: a mask, and how many."""
        done: list[tuple[int, int]] = []
        for lease, outcome in outcomes:
            number, token, large = lease.token
            if outcome.kind == "done" and not large:
                done.append((number, token))
            elif outcome.kind == "release":
                delay = max(0.0, outcome.delay)
                row = (1 if delay > 0 else 0, now + delay, now, 0 if outcome.counted else 1, number, token)
                moved = db.execute(_RELEASE, row).fetchone()
                if moved is not None and large:
                    db.execute("UPDATE large SET number = ? WHERE number = ?", (*moved, number))
                ring.append((mask_of(self.place.namespace, [lease.queue]), 1))
            else:
                if outcome.kind == "bury":
                    self._bury(db, lease, outcome.reason, now)
                if db.execute(_DONE, (number, token)).rowcount and large:
                    db.execute("DELETE FROM large WHERE number = ?", (number,))
        db.executemany(_DONE, done)
        limited = "SELECT EXISTS(SELECT 1 FROM rule WHERE ns = ? AND concurrency IS NOT NULL)"
        if db.execute(limited, (self.place.namespace,)).fetchone()[0]:
            ring.append((ALL, len(outcomes)))  # there may be room for others

    def _bury(self, db: sqlite3.Connection, lease: Lease, reason: str, now: float) -> None:
        number, token, _ = lease.token
        row = db.execute(
            "SELECT name, deliveries FROM task WHERE number = ? AND token = ? AND stage <> 1", (number, token)
        ).fetchone()
        if row is None:
            return
        ns = self.place.namespace
        db.execute(
            "INSERT OR REPLACE INTO buried(ns, id, queue, name, deliveries, reason, at, unix, body) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (ns, lease.id, lease.queue, *row, reason, now, time.time(), lease.body),
        )
        self._clear_buried(db, now)

    # ---- asking

    def state(self, ids: Iterable[str]) -> Mapping[str, EngineState]:
        self._joined()
        wanted = list(ids)
        states: dict[str, EngineState] = dict.fromkeys(wanted, "unknown")
        for at in range(0, len(wanted), BATCH):
            part = wanted[at : at + BATCH]
            sql = f"SELECT id, stage FROM task WHERE ns = ? AND id IN ({','.join('?' * len(part))})"
            for id, stage in self._line.rows(sql, (self.place.namespace, *part)):
                states[id] = _STATES[stage]
        return states

    def cancel(self, task_id: str) -> bool:
        self._joined()
        with self._line.writing() as db:
            return self._take_out(db, task_id) is not None


_probes: dict[int, str] = {}


def _probe(count: int) -> str:
    """Whether so many queues have anything, and when the next delay or lease ends: no more than looks at indices."""
    sql = _probes.get(count)
    if sql is None:
        # A stage each: the indices are of one stage each.
        looks = [f"EXISTS(SELECT 1 FROM task WHERE stage = {stage} AND ns = ? AND queue = ?)" for stage in (0, 3)]
        there = " OR ".join(looks * count)
        dues = [f"(SELECT min(due) FROM task WHERE stage = {stage})" for stage in (1, 2)]
        first, second = dues
        soonest = f"min(ifnull({first}, 9e99), ifnull({second}, 9e99))"
        sql = _probes[count] = f"SELECT {there or 0}, {soonest}"
    return sql
