"""The peer of the SQLite benchmark: Huey on a file, tuned for speed (it asks for no flush to the disk at all)."""

from __future__ import annotations

import os

from huey import SqliteHuey

huey = SqliteHuey(filename=os.environ["BENCH_HUEY"], fsync=False, timeout=30)


@huey.task()
def noop() -> None:
    pass


@huey.task()
def echo(value: int) -> int:
    return value
