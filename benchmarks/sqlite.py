"""Client and Worker on an SQLite file beside Huey's SQLite backend.

    python benchmarks/sqlite.py [row …] [--rounds N] [--tasks N] [--quiet SECONDS] [--json | --markdown]

Rows: enqueue, bulk, drain, latency, idle. Ours and Huey in turn, several rounds in one run; the median of the rounds'
ratios is judged. Both have two worker processes and a file on the same disk. Ours is as it is by default (the log is
flushed when it goes into the file); Huey never flushes (fsync=False), keeps no history and sends no events, and its
consumer looks every millisecond, which costs it most of a core while idle. Needs: pip install huey
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import _measure
import _work
from _measure import Line, children_of, in_turn, percentile, seconds, table

from revolve_assistant import Client, ClientClosed
from revolve_assistant.providers import registry

FOLDER = Path(__file__).parent
TICK = 1 / os.sysconf("SC_CLK_TCK")
PAUSE = threading.Event()


class Bench:
    """A fresh file for each measure, so that nobody pays for what another left."""

    def __init__(self, folder: str, tasks: int) -> None:
        self.folder, self.tasks = folder, tasks
        self.count = 0

    def url(self) -> str:
        self.count += 1
        return f"sqlite:///{self.folder}/ours-{self.count}.db"

    def huey(self, fsync: str = "no") -> Any:
        self.count += 1
        os.environ["BENCH_FSYNC"] = fsync
        os.environ["BENCH_HUEY"] = f"{self.folder}/huey-{self.count}.db"
        sys.modules.pop("_huey", None)
        return importlib.import_module("_huey")

    # --- enqueue

    def enqueue(self, history: bool = False) -> float:
        with Client(self.url()) as client:
            client.submit(_work.noop).queued(30)

            def submit() -> None:
                give = client.options(history=history).submit
                tasks = [give(_work.noop) for _ in range(self.tasks)]
                tasks[-1].queued(60)

            return self.tasks / seconds(submit)

    def enqueue_each(self) -> float:
        count = self.tasks // 10
        with Client(self.url()) as client:
            client.submit(_work.noop).queued(30)

            def submit() -> None:
                for _ in range(count):
                    client.submit(_work.noop).queued(30)

            return count / seconds(submit)

    def bulk(self, size: int) -> float:
        """`map` with so many items a task, until the file has all."""
        with Client(self.url()) as client:
            client.submit(_work.noop).queued(30)

            def submit() -> Any:
                results = client.map(_work.noop, range(self.tasks), chunksize=size)
                for task in list(client._tasks.values()):
                    task.queued(60)
                return results

            return self.tasks / seconds(submit)

    def huey_enqueue(self, fsync: str = "no") -> float:
        peer = self.huey(fsync)
        count = self.tasks if fsync == "no" else self.tasks // 10
        return count / seconds(lambda: [peer.noop() for _ in range(count)])

    # --- drain

    def drain(self, history: bool = False) -> float:
        url = self.url()
        with Client(url) as client:
            submit = client.options(history=history).submit
            tasks = [submit(_work.noop) for _ in range(self.tasks)]
            tasks[-1].queued(60)
        queue = registry.engine(url)
        queue.open()
        with Crew([sys.executable, "-m", "revolve_assistant.cli", "worker", url, "-c", "2", "--log-level", "error"]):
            rate = _drained(lambda: sum(count.pending + count.leased for count in queue.counts()), self.tasks)
        queue.close()
        return rate

    def huey_drain(self) -> float:
        peer = self.huey()
        count = self.tasks // 4
        for _ in range(count):
            peer.noop()
        with Crew(_consumer()):
            return _drained(peer.huey.pending_count, count)

    # --- latency

    def latency(self) -> list[float]:
        url = self.url()
        with (
            Crew([sys.executable, "-m", "revolve_assistant.cli", "worker", url, "-c", "2", "--log-level", "error"]),
            Client(url) as client,
        ):
            client.submit(_work.echo, 0).result(30)
            return [seconds(lambda: client.submit(_work.echo, 1).result(30)) * 1e3 for _ in range(300)]

    def huey_latency(self) -> list[float]:
        peer = self.huey()
        with Crew(_consumer()):
            peer.echo(1).get(blocking=True, timeout=30, max_delay=0.001)
            return [
                seconds(lambda: peer.echo(1).get(blocking=True, timeout=30, max_delay=0.001)) * 1e3 for _ in range(300)
            ]

    # --- idle

    def idle(self) -> float:
        url = self.url()
        worker = [sys.executable, "-m", "revolve_assistant.cli", "worker", url, "-c", "2", "--log-level", "error"]
        with Crew(worker) as crew, Client(url) as client:
            client.submit(_work.echo, 0).result(30)
            return crew.busy()

    def huey_idle(self) -> float:
        peer = self.huey()
        with Crew(_consumer()) as crew:
            peer.echo(1).get(blocking=True, timeout=30, max_delay=0.001)
            return crew.busy()


class Crew:
    """A worker process and its children."""

    def __init__(self, command: list[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
        self.process = subprocess.Popen(
            command, cwd=FOLDER, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        for pid in children_of(self.process.pid):
            try:
                os.kill(pid, 9)
            except OSError:
                pass
        self.process.kill()
        self.process.wait()

    def busy(self) -> float:
        """Percent of a core that all of it uses in 5 s."""
        pids = [self.process.pid, *children_of(self.process.pid)]
        before = sum(map(_cpu, pids))
        PAUSE.wait(5)
        return (sum(map(_cpu, pids)) - before) / 5 * 100


def _cpu(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return sum(int(each) for each in file.read().rpartition(")")[2].split()[11:13]) * TICK


def _consumer() -> list[str]:
    words = "-w 2 -k process -d 0.001 -m 0.001 -b 1.0 -n -C -q"
    return [sys.executable, "-m", "huey.bin.huey_consumer", "_huey.huey", *words.split()]


def _first(results: Iterator[Any]) -> None:
    """Have a map begin; nobody runs it, and it ends with its client."""
    with suppress(ClientClosed):
        next(results)


def _drained(left: Callable[[], int], count: int) -> float:
    """Tasks a second, from when a tenth is over to when all are: starting up does not count."""
    while (now := left()) > count * 0.9:
        PAUSE.wait(0.01)
    began = time.perf_counter()
    first = now
    while (now := left()) > 0:
        PAUSE.wait(0.01)
    return first / (time.perf_counter() - began)


def row_enqueue(bench: Bench, rounds: int) -> list[Line]:
    flushing = lambda: bench.huey_enqueue("default")  # noqa: E731
    logged = lambda: bench.enqueue(True)  # noqa: E731
    ours, logs, each, peer, flushed = in_turn(
        rounds, bench.enqueue, logged, bench.enqueue_each, bench.huey_enqueue, flushing
    )
    return [
        Line("enqueue", "one by one, until all are safe; Huey, which never flushes", "/s", ours, peer, (">=", 2)),
        Line("enqueue", "the same; Huey as it comes, which flushes each", "/s", ours, flushed, (">=", 2)),
        Line("enqueue", "with a log for each task; Huey, which never flushes", "/s", logs, peer),
        Line("enqueue", "waiting for each (`queued`); Huey, which never flushes", "/s", each, peer),
    ]


def row_bulk(bench: Bench, rounds: int) -> list[Line]:
    one, many, peer = in_turn(rounds, lambda: bench.bulk(1), lambda: bench.bulk(100), bench.huey_enqueue)
    return [
        Line("bulk", "map, 100 items a task; Huey, which has no bulk", "/s", many, peer, (">=", 2)),
        Line("bulk", "map, a task for each item, with a log; Huey", "/s", one, peer),
    ]


def row_drain(bench: Bench, rounds: int) -> list[Line]:
    ours, kept, peer = in_turn(rounds, bench.drain, lambda: bench.drain(True), bench.huey_drain)
    return [
        Line("drain", "no client, 2 processes, history=False; Huey", "/s", ours, peer, (">=", 2)),
        Line("drain", "the same, with a log for each task, kept for a day; Huey", "/s", kept, peer),
    ]


def row_latency(bench: Bench, rounds: int) -> list[Line]:
    ours, peer = in_turn(rounds, bench.latency, bench.huey_latency)
    lines = []
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        mine, theirs = ([percentile(one, share) for one in found] for found in (ours, peer))
        lines.append(Line("latency", f"submit to result, {name}; Huey", "ms", mine, theirs, ("<=", 0.5)))
    return lines


def row_idle(bench: Bench, rounds: int) -> list[Line]:
    ours, peer = in_turn(rounds, bench.idle, bench.huey_idle)
    return [Line("idle", "CPU of an idle worker, all processes; Huey", "% of a core", ours, peer)]


ROWS: dict[str, Callable[[Bench, int], list[Line]]] = {
    "enqueue": row_enqueue,
    "bulk": row_bulk,
    "drain": row_drain,
    "latency": row_latency,
    "idle": row_idle,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--quiet", type=float, default=0.0, help="seconds to spend on repeating disturbed rounds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    _measure.patience = given.quiet
    lines: list[Line] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        for row in given.rows or ROWS:
            lines += ROWS[row](Bench(tempfile.mkdtemp(dir=folder), given.tasks), given.rounds)
            if not given.json:
                print(row, *(f"{statistics.median(line.ours):.4g} {line.unit}" for line in lines if line.row == row),
                      file=sys.stderr)  # fmt: skip
    print(json.dumps([line.as_dict() for line in lines], indent=2) if given.json else table(lines, given.markdown))


if __name__ == "__main__":
    main()
