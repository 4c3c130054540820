"""The tables, and how a file gets them.

    task      one that is not over. stage 0 ready, 1 delayed, 2 leased, 3 parked (a rule keeps its function back).
              number is its place in line, due the end of a delay or lease, holder the slot of who has it (see `board`)
    large     bodies beyond 4 KB, by the task's number: a lease is renewed without writing them again
    buried    what came to a bad end
    rule, started, plan, worker        as the contract has them; started: takes of functions with a rate
    channel   a log; its number is never used again, and so tells it from a later one of the same name
    message   frames, by their number, which only grows, over all channels
    gone      channels that are no more and whose messages are still to be removed, a few at a time

Each index serves one walk and holds only the rows of it: to take is to read the first entries of `task_ready`.
"""

from __future__ import annotations

import sqlite3

from ...errors import ProviderError
from .place import Place

VERSION = 1
APPLICATION = 0x52764173  # "RvAs"

TABLES = """
CREATE TABLE clock(boot TEXT NOT NULL, offset REAL NOT NULL);
CREATE TABLE task(
    number INTEGER PRIMARY KEY, ns TEXT NOT NULL, id TEXT NOT NULL, queue TEXT NOT NULL, name TEXT NOT NULL,
    key TEXT, rank INTEGER NOT NULL, stage INTEGER NOT NULL, due REAL NOT NULL, since REAL NOT NULL,
    deliveries INTEGER NOT NULL, token INTEGER NOT NULL, holder TEXT NOT NULL, body BLOB);
CREATE UNIQUE INDEX task_id ON task(ns, id);
CREATE UNIQUE INDEX task_key ON task(ns, key) WHERE key IS NOT NULL;
CREATE INDEX task_ready ON task(ns, queue, rank) WHERE stage = 0;
CREATE INDEX task_delayed ON task(due) WHERE stage = 1;
CREATE INDEX task_leased ON task(due) WHERE stage = 2;
CREATE INDEX task_parked ON task(ns, queue, name, rank) WHERE stage = 3;
CREATE TABLE large(number INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE buried(
    number INTEGER PRIMARY KEY AUTOINCREMENT, ns TEXT NOT NULL, id TEXT NOT NULL, queue TEXT NOT NULL,
    name TEXT NOT NULL, deliveries INTEGER NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL, unix REAL NOT NULL,
    body BLOB NOT NULL);
CREATE UNIQUE INDEX buried_id ON buried(ns, id);
CREATE INDEX buried_queue ON buried(ns, queue);
CREATE TABLE rule(
    ns TEXT NOT NULL, name TEXT NOT NULL, paused INTEGER NOT NULL, concurrency INTEGER, rate INTEGER,
    per REAL NOT NULL, PRIMARY KEY(ns, name)) WITHOUT ROWID;
CREATE TABLE started(ns TEXT NOT NULL, name TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX started_at ON started(ns, name, at);
CREATE TABLE plan(
    ns TEXT NOT NULL, key TEXT NOT NULL, spec BLOB NOT NULL, due REAL NOT NULL, PRIMARY KEY(ns, key)) WITHOUT ROWID;
CREATE TABLE worker(
    holder TEXT PRIMARY KEY, ns TEXT NOT NULL, worker TEXT NOT NULL, about BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE channel(
    number INTEGER PRIMARY KEY AUTOINCREMENT, ns TEXT NOT NULL, name TEXT NOT NULL, expires REAL NOT NULL,
    cap INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE UNIQUE INDEX channel_name ON channel(ns, name);
CREATE INDEX channel_expires ON channel(expires);
CREATE TABLE message(number INTEGER PRIMARY KEY AUTOINCREMENT, channel INTEGER NOT NULL, frame BLOB NOT NULL);
CREATE INDEX message_channel ON message(channel);
CREATE TABLE gone(channel INTEGER PRIMARY KEY);
CREATE TRIGGER channel_gone AFTER DELETE ON channel BEGIN INSERT INTO gone VALUES (old.number); END;
"""


def version(db: sqlite3.Connection, place: Place) -> int:
    """The version of its tables; 0: it is empty. Raises `ProviderError` for what is not ours, or of a newer release."""
    found = int(db.execute("PRAGMA user_version").fetchone()[0])
    if db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION:
        if found > VERSION:
            raise ProviderError(
                f"{place.path} was made by a newer release (version {found} of its tables, {VERSION} is known here): "
                "update revolve-assistant, or name another file"
            )
        return found
    if found or db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        raise ProviderError(f"{place.path} is a database of another program: name a file of its own")
    return 0


def make(db: sqlite3.Connection) -> None:
    """The tables. Inside a transaction that writes."""
    for statement in TABLES.split(";\n"):
        if statement.strip():
            db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION}")
    db.execute(f"PRAGMA user_version = {VERSION}")
