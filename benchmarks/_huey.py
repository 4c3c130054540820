"""The peer of the SQLite benchmark: Huey on a file, tuned for speed (no flush to the disk at all), or as it comes."""

from __future__ import annotations

import os

from huey import SqliteHuey

FSYNC = False if os.environ.get("BENCH_FSYNC", "no") == "no" else None
huey = SqliteHuey(filename=os.environ["BENCH_HUEY"], fsync=FSYNC, timeout=30)


@huey.task()
def noop() -> None:
    pass


@huey.task()
def echo(value: int) -> int:
    return value
