"""Client and Worker on a Gearman queue beside raw sockets, the C tool and python3-gearman.

    python benchmarks/remote.py [row …] [--rounds N] [--quiet SECONDS] [--json | --markdown]

Every row runs ours and the peers in turn, several rounds in one run, and judges the median of the rounds' ratios. CPU
time stands beside the wall figures, since on a shared machine those drift. The worker is a process of its own. Needs
gearmand and memcached; peers: the `gearman` tool, and pip install python3-gearman. Those that are missing are left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import _measure
import _raw
import _work
import gearman as plain
from _measure import Line, children_of, in_turn, percentile, quietness, seconds, table

from revolve_assistant import Client
from revolve_assistant.engine import Parcel
from revolve_assistant.protocols.gearman import GearmanAdmin
from revolve_assistant.providers.gearman import Queue
from revolve_assistant.providers.url import Url
from revolve_assistant.testing.servers import Gearmand, Memcached

FOLDER = Path(__file__).parent
TICK = 1 / os.sysconf("SC_CLK_TCK")
TASKS = 20_000
PEERS = 5_000  # jobs that a slower peer gets


# --- processes and what they cost


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used, all its threads."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return sum(int(each) for each in file.read().rpartition(")")[2].split()[11:13]) * TICK


class Crew:
    """A worker process, ready."""

    def __init__(self, url: str, pool: str = "process", children: int = 2, messenger: str | None = None) -> None:
        command = [sys.executable, "-m", "revolve_assistant.cli", "worker", url, "--pool", pool, "-c", str(children)]
        if messenger:
            command += ["--messenger", messenger]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=FOLDER)
        assert self.process.stderr is not None
        if not any("ready as" in line for line in self.process.stderr):
            raise RuntimeError(f"the worker ended with {self.process.wait()}")

    @property
    def pids(self) -> list[int]:
        return [self.process.pid, *children_of(self.process.pid)]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        self.process.communicate()


class Cost(NamedTuple):
    """CPU seconds of the caller, the worker's own process, its children, and gearmand."""

    client: float
    worker: float
    children: float
    server: float

    @classmethod
    def now(cls, crew: Crew, server: Gearmand) -> Cost:
        own, *rest = crew.pids
        assert server.process is not None
        return cls(time.process_time(), cpu(own), sum(map(cpu, rest)), cpu(server.process.pid))

    def since(self, before: Cost) -> Cost:
        return Cost(*(b - a for a, b in zip(before, self, strict=True)))


def cost_lines(row: str, what: str, costs: list[Cost], count: int) -> Iterator[Line]:
    for part in Cost._fields:
        yield Line(row, f"  CPU of the {part}, {what}", "µs", [getattr(each, part) / count * 1e6 for each in costs])


class Place:
    """gearmand, and the peers on it."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.gearmand = stack.enter_context(Gearmand())
        self.url = f"gearman://127.0.0.1:{self.gearmand.port}/bench"
        self.plain = plain.Bench(self.gearmand, PEERS)
        self.python: Any = None
        try:
            self.python = importlib.import_module("python3_gearman")
        except ImportError as error:
            print(f"python3-gearman is left out: {error}", file=sys.stderr)
        if not self.plain.tool:
            print("the C tool is left out: apt-get install gearman-tools", file=sys.stderr)

    def peers(
        self, tool: Callable[[], float], python: Callable[[Any], float], goals: tuple[float, float], sign: str = ">="
    ) -> list[tuple[str, Callable[[], float], tuple[str, float]]]:
        """Those that are there: name, measure, goal."""
        found = []
        if self.plain.tool:
            found.append(("C tool", tool, (sign, goals[0])))
        if self.python is not None:
            found.append(("python3-gearman", lambda: python(self.python), (sign, goals[1])))
        return found

    def fresh(self) -> None:
        """An empty server."""
        self.gearmand.restart()

    def waiting(self, admin: GearmanAdmin) -> int:
        """Tasks that wait in the queue or are held by a worker."""
        return sum(status.total for name, status in admin.status().items() if ".q." in name)


@contextmanager
def place() -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(stack)


# --- submit


def submit(rounds: int) -> Iterator[Line]:
    with place() as at:

        def ours(count: int, wait_each: bool) -> float:
            with Client(at.url) as client:
                client.submit(_work.noop).queued(60)
                began = time.perf_counter()
                if wait_each:
                    for _ in range(count):
                        client.submit(_work.noop).queued(60)
                else:
                    for task in [client.submit(_work.noop) for _ in range(count)]:
                        task.queued(60)
                rate = count / (time.perf_counter() - began)
            at.fresh()
            return rate

        def in_bulk() -> float:
            with Client(at.url) as client:
                client.submit(_work.noop).queued(60)
                began = time.perf_counter()
                results = client.map(_work.noop, range(TASKS), chunksize=100)
                for task in list(client._tasks.values()):
                    task.queued(60)
                rate = TASKS / (time.perf_counter() - began)
                del results
            at.fresh()
            return rate

        def provider() -> float:
            """The Queue alone, with tasks that are packed already."""
            queue = Queue.from_url(Url.parse(at.url))
            parcels = [Parcel(f"{number:032x}", body=b"x" * 300) for number in range(TASKS)]
            queue.open()
            took = seconds(
                lambda: [queue.submit(parcels[n : n + 500], None) for n in range(0, TASKS, 500)]  # type: ignore[arg-type]
            )
            queue.close()
            at.fresh()
            return TASKS / took

        def raw() -> float:
            took = seconds(lambda: _raw.submit_pipelined(at.gearmand.port, b"bench", b"x" * 300, TASKS))
            at.fresh()
            return TASKS / took

        peers = at.peers(
            lambda: at.plain.fill(lambda: at.plain.tool_submit("-b", "-f", "job")),
            lambda peer: at.plain.fill(lambda: at.plain.peer_one_by_one(peer)),
            (4, 4),
        )
        many, each, bulk, queue, sockets, *others = in_turn(
            rounds, lambda: ours(TASKS, False), lambda: ours(3000, True), in_bulk, provider, raw,
            *(call for _, call, _ in peers),
        )  # fmt: skip
        for (name, _, goal), values in zip(peers, others, strict=True):
            yield Line("submit", f"one by one, all acknowledged at the end; {name}", "/s", many, values, goal)
        for (name, _, _), values in zip(peers, others, strict=True):
            yield Line("submit", f"each acknowledged before the next; {name}", "/s", each, values)
        what = "in bulk: map, 100 items a task; raw pipelined sockets, a job each"
        yield Line("submit", what, "/s", bulk, sockets, (">=", 0.25))
        yield Line("submit", "all acknowledged at the end; raw pipelined sockets", "/s", many, sockets)
        yield Line("submit", "the Queue alone, packed tasks, 500 a call; raw", "/s", queue, sockets)


# --- latency


def latency(rounds: int) -> Iterator[Line]:
    count = 600

    def timed(call: Callable[[], object]) -> list[float]:
        found = []
        for number in range(count + 50):
            began = time.perf_counter()
            call()
            if number >= 50:
                found.append((time.perf_counter() - began) * 1e6)
        return found

    with place() as at:

        def ours(pool: str) -> tuple[list[float], Cost]:
            with Crew(at.url, pool) as crew, Client(at.url) as client:
                client.submit(_work.noop).result(60)
                before = Cost.now(crew, at.gearmand)
                found = timed(lambda: client.submit(_work.noop).result(60))
                return found, Cost.now(crew, at.gearmand).since(before)

        def raw() -> list[float]:
            command = [sys.executable, str(FOLDER / "_raw.py"), str(at.gearmand.port), "same"]
            with subprocess.Popen(command) as process:
                client = _raw.Foreground(at.gearmand.port, b"same")
                found = timed(lambda: client.ask(b"x" * 100))
                client.close()
                process.terminate()
            return found

        def python() -> list[float]:
            with subprocess.Popen([sys.executable, "-c", PYTHON_WORKER, str(at.gearmand.port)]) as process:
                client = at.python.GearmanClient(at.plain.address)
                found = timed(lambda: client.submit_job("upper", "x" * 100))
                client.shutdown()
                process.terminate()
            return found

        measures: list[Callable[[], Any]] = [lambda: ours("process"), lambda: ours("inline"), raw]
        if at.python is not None:
            measures.append(python)
        process, inline, sockets, *rest = in_turn(rounds, *measures)
        for pool, values in (("process", process), ("inline", inline)):
            for share, goal in ((0.5, ("<=", 2.0)), (0.99, None)):
                a, b = [percentile(each, share) for each, _ in values], [percentile(each, share) for each in sockets]
                what = f"submit to result p{share * 100:.0f}, {pool}; raw foreground"
                yield Line("latency", what, "µs", a, b, goal)
            for peer in rest:
                a, b = [percentile(each, 0.5) for each, _ in values], [percentile(each, 0.5) for each in peer]
                what = f"submit to result p50, {pool}; python3-gearman foreground"
                yield Line("latency", what, "µs", a, b, ("<=", 1.0) if pool == "inline" else None)
            yield from cost_lines("latency", f"a task, {pool}", [cost for _, cost in values], count + 50)


PYTHON_WORKER = """
import sys, python3_gearman
worker = python3_gearman.GearmanWorker([f"127.0.0.1:{sys.argv[1]}"])
worker.register_task("upper", lambda _worker, job: job.data)
worker.work()
"""


# --- drain


def drain(rounds: int) -> Iterator[Line]:
    with place() as at:

        def ours() -> tuple[float, Cost]:
            with Client(at.url) as client:
                tasks = [client.submit(_work.noop) for _ in range(TASKS)]
                for task in tasks:
                    task.queued(60)
                with Crew(at.url) as crew:
                    tasks[0].result(60)
                    before, began = Cost.now(crew, at.gearmand), time.perf_counter()
                    left = [task for task in tasks if not task.done()]
                    for task in left:
                        task.result(60)
                    took = time.perf_counter() - began
                    cost = Cost.now(crew, at.gearmand).since(before)
            at.fresh()
            return len(left) / took, Cost(*(each / len(left) for each in cost))

        def mapped() -> float:
            """The same as a map whose items share tasks, from the call to the last result."""
            with Crew(at.url), Client(at.url) as client:
                client.submit(_work.noop).result(60)
                took = seconds(lambda: list(client.map(_work.noop, range(TASKS), chunksize=100)))
            at.fresh()
            return TASKS / took

        def alone() -> float:
            """Nobody reads the results meanwhile."""
            with Client(at.url) as client:
                for task in [client.submit(_work.noop) for _ in range(TASKS)]:
                    task.queued(60)
            with GearmanAdmin(at.gearmand.address) as admin:
                first = last = at.waiting(admin)
                assert first == TASKS, admin.status()
                with Crew(at.url):
                    while last == first:
                        last = at.waiting(admin)
                    began, first = time.perf_counter(), last
                    while last:
                        time.sleep(0.005)
                        last = at.waiting(admin)
                    took = time.perf_counter() - began
            at.fresh()
            return first / took

        peers = at.peers(
            lambda: at.plain.drained(at.plain.tool_drain),
            lambda peer: at.plain.drained(lambda: at.plain.peer_drain(peer)),
            (4, 8),
        )
        with_client, chunks, without, *others = in_turn(rounds, ours, mapped, alone, *(call for _, call, _ in peers))
        rates = [rate for rate, _ in with_client]
        for (name, _, goal), values in zip(peers, others, strict=True):
            yield Line("drain", f"{TASKS:,} no-ops, to the last result; {name}", "/s", rates, values, goal)
            yield Line("drain", f"no client, until the queue is empty; {name}", "/s", without, values, goal)
            yield Line("drain", f"map, 100 items a task, to the last result; {name}", "/s", chunks, values)
        costs = [cost for _, cost in with_client]
        yield from cost_lines("drain", "a task", costs, 1)
        per_second = [1 / each.worker for each in costs]
        yield Line("drain", "tasks for each second of the worker's own process", "/s", per_second)


# --- events


@contextmanager
def messengers() -> Iterator[Callable[[str], str | None]]:
    """Addresses of messengers, by their kinds."""
    with Memcached("-m", "1024") as memcached, tempfile.TemporaryDirectory() as folder:
        addresses = {
            "gearman": None,
            "memcached": f"memcached://127.0.0.1:{memcached.port}/bench",
            "filesystem": f"file://{folder}/events",
        }
        yield addresses.__getitem__


EVENTS = {"gearman": (100_000.0, None), "memcached": (20_000.0, 8.0), "filesystem": (50_000.0, 2.0)}


def events(rounds: int) -> Iterator[Line]:
    count = 100_000
    with place() as at, messengers() as address:

        def many(messenger: str | None) -> tuple[float, Cost]:
            with Crew(at.url, "process", 1, messenger) as crew, Client(at.url, messenger=messenger) as client:
                client.submit(_work.pour, 10).result(60)
                before, began = Cost.now(crew, at.gearmand), time.perf_counter()
                seen = 0
                for event in client.submit(_work.pour, count).events():
                    seen += event.name == "tick"
                rate = count / (time.perf_counter() - began)
                assert seen == count, f"{seen:,} events of {count:,} came through {messenger}"
                return rate, Cost.now(crew, at.gearmand).since(before)

        def slow(messenger: str | None) -> list[float]:
            found = []
            with Crew(at.url, "process", 1, messenger), Client(at.url, messenger=messenger) as client:
                task = client.submit(_work.paced, 300, 0.005)
                for event in task.events():
                    if event.name == "ready":
                        task.send("go")
                    elif event.name == "stamp":
                        found.append((time.monotonic_ns() - event.args[0]) / 1e6)
            return found[20:]

        for kind, (least, most) in EVENTS.items():
            messenger = address(kind)
            fast, paced = in_turn(
                rounds, lambda messenger=messenger: many(messenger), lambda messenger=messenger: slow(messenger)
            )
            rates = [rate for rate, _ in fast]
            yield Line("events", f"{count:,} of one task through {kind}", "/s", rates, goal=(">=", least))
            costs = [cost for _, cost in fast]
            yield from cost_lines("events", f"1,000 events through {kind}", costs, count // 1000)
            per_second = [count / cost.worker for cost in costs]
            yield Line("events", f"events for each second of the worker's own process, {kind}", "/s", per_second)
            goal = ("<=", most) if most else None
            for share in (0.5, 0.99):
                values = [percentile(each, share) for each in paced]
                what = f"one every 5 ms through {kind}, emit to iterator p{share * 100:.0f}"
                yield Line("events", what, "ms", values, goal=goal if share == 0.5 else None)


# --- flat


def asked(address: tuple[str, int]) -> int:
    """How many commands a memcached has had."""
    with socket.create_connection(address) as one, one.makefile("rwb") as file:
        file.write(b"stats\r\n")
        file.flush()
        total = 0
        for line in file:
            words = line.split()
            if words[0] == b"END":
                break
            if words[1] in (b"cmd_get", b"cmd_set", b"cmd_meta", b"cmd_touch"):
                total += int(words[2])
        return total


def flat(rounds: int) -> Iterator[Line]:
    """What a client asks memcached while tasks are under way."""
    with place() as at, Memcached("-m", "1024") as memcached:
        messenger = f"memcached://127.0.0.1:{memcached.port}/bench"

        def requests(count: int) -> tuple[float, float]:
            with Client(at.url, messenger=messenger) as client:
                for task in [client.submit(_work.noop) for _ in range(count)]:
                    task.queued(60)
                time.sleep(2)
                before, began, used = asked(memcached.address), time.monotonic(), time.process_time()
                time.sleep(5)
                took = time.monotonic() - began
                found = (asked(memcached.address) - before) / took, (time.process_time() - used) / took * 100
            at.fresh()
            return found

        many, one = in_turn(rounds, lambda: requests(10_000), lambda: requests(1))
        a, b = ([rate for rate, _ in values] for values in (many, one))
        yield Line("flat", "requests to memcached, 10,000 tasks in flight; 1 task", "/s", a, b, ("<=", 1.05))
        a, b = ([used for _, used in values] for values in (many, one))
        yield Line("flat", "CPU of the client meanwhile, 10,000; 1", "%", a, b)


# --- idle


def idle(rounds: int) -> Iterator[Line]:
    span = 10.0
    with place() as at, messengers() as address:
        for kind in EVENTS:
            with Crew(at.url, "process", 1, address(kind)) as crew, Client(at.url, messenger=address(kind)) as client:
                for _ in range(100):
                    client.submit(_work.noop).result(60)
                client.shutdown()
                time.sleep(2)

                def used(crew: Crew = crew) -> float:
                    before = sum(map(cpu, crew.pids))
                    time.sleep(span)
                    return (sum(map(cpu, crew.pids)) - before) / span * 100

                (shares,) = in_turn(max(1, rounds // 3), used)
                yield Line("idle", f"CPU of worker and child, {kind}", "% of a core", shares, goal=("<=", 0.5))
                memory = [_work.memory_of(pid) for pid in crew.pids]
                for what, goal in (("Rss", ("<=", 60.0)), ("Pss", None)):
                    total = sum(each[what] for each in memory) / 1e6
                    yield Line("idle", f"{what} of worker and one child, {kind}", "MB", [total], goal=goal)


ROWS: dict[str, Callable[[int], Iterator[Line]]] = {
    "submit": submit,
    "latency": latency,
    "drain": drain,
    "events": events,
    "flat": flat,
    "idle": idle,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(ROWS)}; all when none is given")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default 5)")
    parser.add_argument(
        "--quiet",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="how long a comparison may repeat rounds that other programs disturbed (default 0: all rounds count)",
    )
    parser.add_argument("--json", action="store_true", help="every single figure, as JSON")
    parser.add_argument("--markdown", action="store_true", help="the table as it stands in README.md")
    options = parser.parse_args()
    rows = options.rows or list(ROWS)
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"unknown row {unknown[0]!r}: choose from {', '.join(ROWS)}")
    os.environ.pop("REVOLVE_URL", None)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    warnings.simplefilter("ignore")  # of the peers
    _measure.patience = options.quiet
    lines: list[Line] = []
    machine: dict[str, Any] = {}
    for row in rows:
        print(f"{row} …", file=sys.stderr, flush=True)
        with quietness() as found:
            lines += ROWS[row](options.rounds)
        counted = _measure.disturbance()
        if counted is not None:
            found["others"] = counted
        machine[row] = found
    if options.json:
        print(json.dumps({"lines": [line.as_dict() for line in lines], "machine": machine}, indent=1))
        return 0
    print(time.strftime("%Y-%m-%d %H:%M"), platform.python_version(), f"revolve {version('revolve-assistant')}")
    print(table(lines, options.markdown))
    busy = ", ".join(f"{row} {each['others']:.1f}" for row, each in machine.items())
    print(f"{options.rounds} rounds; CPUs of {os.cpu_count()} that others kept busy in those that count: {busy}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
