"""The embedded engine beside its peers: `python benchmarks/local.py [row …] [--rounds N] [--json | --markdown]`.

Every row runs ours and the peer in turn, several rounds in one run, and judges the median of the rounds' ratios: on
a shared machine absolute times drift, ratios hardly. With several rows each gets a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any

import _measure
import _work
from _measure import Line, children_of, in_turn, percentile, quietness, seconds, table

from revolve_assistant import Client

SPAWN = multiprocessing.get_context("spawn")
MIB = 1 << 20
HEAVY = ("redis", "hiredis", "pymemcache", "greenstalk", "httpx", "watchfiles", "dask", "ray", "numpy", "rich",
         "cloudpickle", "asyncio", "trio")  # fmt: skip
COLD = str(Path(__file__).with_name("_cold.py"))


def here(_value: object = None) -> None:
    """A no-op of `__main__`: ours sends it by value, spawned peers import this file again."""


@contextmanager
def pools(workers: int = 2) -> Iterator[tuple[Client, ProcessPoolExecutor]]:
    """Ours and a ProcessPoolExecutor, both warm."""
    with Client(max_workers=workers) as client, ProcessPoolExecutor(workers, mp_context=SPAWN) as pool:
        for executor in (client, pool):
            for future in [executor.submit(_work.noop) for _ in range(500)]:
                future.result()
        yield client, pool


def gather(executor: Any, fn: Callable[..., Any], values: Any) -> None:
    for future in [executor.submit(fn, value) for value in values]:
        future.result()


def rates(count: float, times: list[float]) -> list[float]:
    return [count / each for each in times]


# --- 1 tasks, 2 map, 3 single, 4 cold


def tasks(rounds: int) -> Iterator[Line]:
    count = 10_000
    with pools() as (client, pool), SPAWN.Pool(2) as other:
        list(other.imap_unordered(_work.noop, range(500), 1))
        for fn, name in ((_work.noop, "no-ops"), (here, "no-ops of __main__")):
            ours, executor, unordered = in_turn(
                rounds,
                lambda fn=fn: seconds(lambda: gather(client, fn, range(count))),
                lambda fn=fn: seconds(lambda: gather(pool, fn, range(count))),
                lambda fn=fn: seconds(lambda: list(other.imap_unordered(fn, range(count), 1))),
            )
            rate = rates(count, ours)
            yield Line("tasks", f"{name}, submit each, gather; PPE", "/s", rate, rates(count, executor), (">=", 5))
            yield Line("tasks", f"{name}; Pool.imap_unordered", "/s", rate, rates(count, unordered), (">=", 1.3))


def map_(rounds: int) -> Iterator[Line]:
    from joblib import Parallel, delayed

    count = 100_000
    with Client(max_workers=2) as client, Parallel(n_jobs=2, backend="loky") as parallel:
        for fn, name in ((_work.noop, "no-ops"), (here, "no-ops of __main__")):
            for _ in range(2):  # both learn how long an item takes
                list(client.map(fn, range(count)))
                parallel(delayed(fn)(value) for value in range(count))
            ours, peer = in_turn(
                rounds,
                lambda fn=fn: seconds(lambda: list(client.map(fn, range(count)))),
                lambda fn=fn: seconds(lambda: parallel(delayed(fn)(value) for value in range(count))),
            )
            yield Line("map", f"100,000 {name}; joblib", "/s", rates(count, ours), rates(count, peer), (">=", 1))


def single(rounds: int) -> Iterator[Line]:
    count = max(600, -(-3000 // rounds))

    def one_at_a_time(executor: Any, fn: Callable[..., Any]) -> list[float]:
        found = []
        for _ in range(count):
            start = time.perf_counter()
            executor.submit(fn).result()
            found.append((time.perf_counter() - start) * 1e6)
        return found

    with pools() as (client, pool):
        for fn, name in ((_work.noop, "one task"), (here, "one task of __main__")):
            ours, peer = in_turn(rounds, lambda fn=fn: one_at_a_time(client, fn), lambda fn=fn: one_at_a_time(pool, fn))
            for share, bound in ((0.5, 0.6), (0.99, 1.0)):
                a, b = ([percentile(each, share) for each in values] for values in (ours, peer))
                yield Line("single", f"{name}, submit to result p{share * 100:.0f}; PPE", "µs", a, b, ("<=", bound))


def cold(rounds: int) -> Iterator[Line]:
    def program(who: str, where: str) -> tuple[float, float]:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, COLD, who, where], check=True, capture_output=True, text=True)
        return float(done.stdout), (time.perf_counter() - start) * 1e3

    for where in ("module", "main"):
        program("ours", where), program("peer", where)
        both = [lambda where=where, who=who: program(who, where) for who in ("ours", "peer")]
        found = in_turn(3 * rounds, *both)
        for part, what in enumerate(("first result of a cold pool", "the whole program, start to exit")):
            ours, peer = ([each[part] for each in values] for values in found)
            goal = ("<=", 1.2) if part == 0 else None
            yield Line("cold", f"{what}{'' if where == 'module' else ', __main__'}; PPE", "ms", ours, peer, goal)


# --- 5 events


@contextmanager
def peer_process(target: Callable[..., Any], out: Any) -> Iterator[Callable[[Any], None]]:
    """A process that waits for orders and answers to `out`; yields what sends it one."""
    near, far = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(far, out))
    process.start()
    yield near.send
    near.send(None)
    process.join()


def start_and_hear(client: Client, fn: Callable[..., Any], args: Any, name: str, hear: Callable[..., Any]) -> float:
    """Run a task that waits to be told, with a listener; seconds from the word to its end."""
    ready = threading.Event()
    task = client.submit(fn, *args)
    task.add_listener(name, hear)
    task.add_listener("ready", ready.set)
    ready.wait()
    start = time.perf_counter()
    task.send("go")
    task.result()
    return time.perf_counter() - start


def events(rounds: int) -> Iterator[Line]:
    count = 20_000
    incoming, outgoing = SPAWN.Pipe(duplex=False)
    with Client(max_workers=2) as client, SPAWN.Manager() as manager:
        managed = manager.Queue()
        with (
            peer_process(_work.pipe_peer, outgoing) as order,
            peer_process(_work.manager_peer, managed) as order_managed,
        ):

            def ours() -> float:
                heard: list[int] = []
                took = start_and_hear(client, _work.storm, (count,), "tick", heard.append)
                assert heard == list(range(count))
                return took

            def iterated() -> float:
                task = client.submit(_work.storm, count)
                stream = task.events("ready", "tick")
                next(stream)
                start = time.perf_counter()
                task.send("go")
                heard = [event.args[0] for event in stream if event.name == "tick"]
                assert len(heard) == count
                return time.perf_counter() - start

            def pipe() -> float:
                start = time.perf_counter()
                order((count, 0))
                heard = [incoming.recv() for _ in range(count)]
                del heard
                return time.perf_counter() - start

            def through_manager() -> float:
                start = time.perf_counter()
                order_managed((count, 0))
                heard = [managed.get() for _ in range(count)]
                del heard
                return time.perf_counter() - start

            for each in (ours, iterated, pipe):
                each()
            a, b, c = (rates(count, each) for each in in_turn(2 * rounds, ours, pipe, iterated))
            yield Line("events", "20,000 to a listener; Pipe", "/s", a, b, (">=", 1))
            yield Line("events", "20,000 to `for event in task.events()`; Pipe", "/s", c, b)
            a, b = (rates(count, each) for each in in_turn(rounds, ours, through_manager))
            yield Line("events", "20,000 to a listener; Manager().Queue", "/s", a, b, (">=", 10))


def paced(rounds: int) -> Iterator[Line]:
    count, pause = max(200, -(-1000 // rounds)), 0.002
    incoming, outgoing = SPAWN.Pipe(duplex=False)
    with Client(max_workers=2) as client, peer_process(_work.pipe_peer, outgoing) as order:

        def ours() -> list[float]:
            late: list[float] = []
            start_and_hear(
                client, _work.paced, (count, pause), "stamp", lambda sent: late.append(time.monotonic_ns() - sent)
            )
            return late

        def pipe() -> list[float]:
            order((count, pause))
            late = []
            for _ in range(count):
                _, sent = incoming.recv()
                late.append(time.monotonic_ns() - sent)
            return late

        def crossing() -> list[float]:
            """From one thread to another that waits, the cheapest way that the standard library has."""
            late: list[float] = []
            line: queue.SimpleQueue[int] = queue.SimpleQueue()

            def read() -> None:
                for _ in range(count):
                    sent = line.get()
                    late.append(time.monotonic_ns() - sent)

            reader = threading.Thread(target=read)
            reader.start()
            for _ in range(count):
                time.sleep(pause)
                line.put(time.monotonic_ns())
            reader.join()
            return late

        ours(), pipe(), crossing()
        found = in_turn(rounds, ours, pipe, crossing)
        for share in (0.5, 0.99):
            a, b, c = ([percentile(each, share) / 1e3 for each in values] for values in found)
            bound = [2 * one + other for one, other in zip(b, c, strict=True)]
            goal = ("<=", 1) if share == 0.5 else None
            what = f"emit to listener p{share * 100:.0f}; 2 Pipe + 1 thread crossing"
            note = f"p{share * 100:.0f}: Pipe {statistics.median(b):.0f} µs, crossing {statistics.median(c):.0f} µs"
            yield Line("paced", what, "µs", a, bound, goal, note)


# --- 6 large values


def bytes_(rounds: int) -> Iterator[Line]:
    data, count = os.urandom(MIB), 64
    with pools() as (client, pool):

        def one_by_one(executor: Any) -> float:
            return seconds(lambda: [executor.submit(_work.echo, data).result() for _ in range(count)])

        moved = 2 * count

        def one_at_a_time(when: str) -> Line:
            a, b = in_turn(rounds, lambda: one_by_one(client), lambda: one_by_one(pool))
            what = f"1 MiB in and out, one at a time, {when}; PPE"
            return Line("bytes", what, "MiB/s", rates(moved, a), rates(moved, b), (">=", 1))

        one_by_one(client), one_by_one(pool)
        yield one_at_a_time("at first")
        a, b = in_turn(
            rounds,
            lambda: seconds(lambda: gather(client, _work.echo, repeat(data, count))),
            lambda: seconds(lambda: gather(pool, _work.echo, repeat(data, count))),
        )
        yield Line("bytes", "1 MiB in and out, 64 at once; PPE", "MiB/s", rates(moved, a), rates(moved, b), (">=", 1))
        yield one_at_a_time("after that")


def arrays(rounds: int) -> Iterator[Line]:
    import numpy

    array = numpy.arange(64 * MIB // 8, dtype=numpy.int64)
    total = array.sum()
    with pools() as (client, pool):

        def plain(executor: Any) -> float:
            return 128 / seconds(lambda: executor.submit(_work.echo, array).result())

        def read(executor: Any) -> float:
            def call() -> None:
                assert executor.submit(_work.read_and_echo, array).result().sum() == total

            return 128 / seconds(call)

        for executor in (client, pool):
            plain(executor), plain(executor)
        for measure, name in ((plain, "64 MiB numpy in and out"), (read, "the same, read on both sides")):
            a, b = in_turn(2 * rounds, lambda m=measure: m(client), lambda m=measure: m(pool))
            yield Line("arrays", f"{name}; PPE", "MiB/s", a, b, (">=", 2))


def shared(_rounds: int) -> Iterator[Line]:
    import numpy

    workers, size = 4, 400_000_000
    array = numpy.ones(size // 8)
    with Client(max_workers=workers) as client:

        def all_hold(value: Any) -> tuple[int, list[int]]:
            """Sum of the children's Pss while every one of them has the value, and their pids."""
            there = threading.Semaphore(0)
            holding = [client.submit(_work.hold, value, number) for number in range(workers)]
            for task in holding:
                task.add_listener("has", lambda _number: there.release())
            for _ in range(workers):
                there.acquire()
            pids = children_of(os.getpid())
            pss = sum(_work.memory_of(pid)["Pss"] for pid in [*pids, os.getpid()])
            for task in holding:
                task.send("go")
            for task in holding:
                task.result()
            return pss, pids

        before, _ = all_hold(numpy.ones(8))
        after, pids = all_hold(client.share(array))
        copies = (after - before) / size
        yield Line("shared", "400 MB shared by 4 children, Pss of all", "copies", [copies], goal=("<=", 1.1))
        held = {}
        for pid in [os.getpid(), *pids]:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                try:
                    found = os.stat(f"/proc/{pid}/fd/{fd}")
                    if "memfd:revolve-buffers" in os.readlink(f"/proc/{pid}/fd/{fd}"):
                        held[found.st_ino] = found.st_blocks * 512
                except OSError:
                    continue
        yield Line("shared", "memory behind the descriptors still open", "copies", [sum(held.values()) / size])


# --- 7 memory, 8 import, 9 idle


def slow(_rounds: int) -> Iterator[Line]:
    count, page = 1_000_000, os.sysconf("SC_PAGE_SIZE")
    samples: list[float] = []

    def sample() -> None:
        """Every 2,000 events: how much we hold; then be slow."""
        with open("/proc/self/statm", encoding="ascii") as file:
            samples.append(int(file.read().split()[1]) * page / 1e6)
        time.sleep(0.005)

    heard = 0

    def hear(_number: int) -> None:
        nonlocal heard
        heard += 1
        if heard % 2000 == 0:
            sample()

    with Client(max_workers=2) as client:

        def iterate() -> None:
            seen = 0
            for event in client.submit(_work.pour, count).events("tick"):
                if event.name == "tick":
                    seen += 1
                    if seen % 2000 == 0:
                        sample()
            assert seen == count, seen

        def listen() -> None:
            nonlocal heard
            heard = 0
            task = client.submit(_work.pour, count)
            task.add_listener("tick", hear)
            task.result()
            assert heard == count, heard

        def ignore() -> None:
            task = client.submit(_work.pour, count)
            while not task.done():
                sample()
            task.result()

        for run, name in ((iterate, "a slow iterator"), (listen, "a slow listener"), (ignore, "nobody")):
            client.submit(_work.pour, 1000).result()
            samples.clear()
            sample()
            took = seconds(run)
            half = len(samples) // 2
            note = f"{name}: {count / took:,.0f} events/s"
            yield Line("slow", f"a million events to {name}: growth", "MB", [max(samples) - samples[0]], note=note)
            late = max(samples[half:]) - max(samples[:half])
            yield Line("slow", "  … of it in the second half", "MB", [late], goal=("<=", 4))


def import_(rounds: int) -> Iterator[Line]:
    def start(code: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True)) * 1e3

    for code in ("import revolve_assistant", "from revolve_assistant import Client"):
        start(code)
        bare, ours = in_turn(max(20, rounds), lambda: start("pass"), lambda code=code: start(code))
        over = [a - b for a, b in zip(ours, bare, strict=True)]
        yield Line("import", f"{code}, over bare python", "ms", over, goal=("<=", 40))
    code = (
        "import sys; from revolve_assistant import Client; "
        f"c = Client(max_workers=2); print(*(each for each in {HEAVY!r} if each in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    note = "loaded by a Client: " + (", ".join(found) or "none of " + ", ".join(HEAVY))
    yield Line("import", "libraries loaded that only some need", "", [len(found)], goal=("<=", 0), note=note)


def switches(pid: int) -> int:
    """How often the threads of a process gave up the CPU by themselves."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status", encoding="ascii") as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))
    return total


def idle(_rounds: int) -> Iterator[Line]:
    span = 10.0
    with Client(max_workers=2) as client:
        gather(client, _work.noop, range(2000))
        time.sleep(1.5)  # the watch over busy children ends by itself
        ours = children_of(os.getpid())
        before = [switches(pid) for pid in (os.getpid(), *ours)]
        time.sleep(span)
        counts = [switches(pid) - then for pid, then in zip((os.getpid(), *ours), before, strict=True)]
        counts[0] -= 1  # our own sleep
        yield Line("idle", "context switches of the parent", "/s", [counts[0] / span], goal=("<=", 0.1))
        yield Line("idle", "context switches of both children", "/s", [sum(counts[1:]) / span], goal=("<=", 0.1))
        with ProcessPoolExecutor(2, mp_context=SPAWN) as pool:
            gather(pool, _work.noop, range(2000))
            peers = [pid for pid in children_of(os.getpid()) if pid not in ours]
            peers = [pid for pid in peers if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text()]
            for kind, bound in (("Rss", 25), ("Anonymous", None), ("Pss", None)):
                a, b = ([_work.memory_of(pid)[kind] / 1e6 for pid in pids] for pids in (ours, peers))
                yield Line("idle", f"a child's {kind}; PPE spawn", "MB", a, b)
                if bound:
                    yield Line("idle", f"a child's {kind}", "MB", [statistics.median(a)], goal=("<=", bound))


ROWS: dict[str, Callable[[int], Iterator[Line]]] = {
    "tasks": tasks,
    "map": map_,
    "single": single,
    "cold": cold,
    "events": events,
    "paced": paced,
    "bytes": bytes_,
    "arrays": arrays,
    "shared": shared,
    "slow": slow,
    "import": import_,
    "idle": idle,
}


def run(row: str, rounds: int) -> tuple[list[Line], dict[str, float]]:
    with quietness() as found:
        lines = list(ROWS[row](rounds))
    counted = _measure.disturbance()
    if counted is not None:
        found["others"] = counted
    return lines, found


def in_own_process(row: str, rounds: int) -> tuple[list[Line], dict[str, float]]:
    command = [sys.executable, __file__, row, "--rounds", str(rounds), "--json", "--quiet", str(_measure.patience)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return [], {"load": os.getloadavg()[0], "others": 0.0, "failed": done.returncode}
    report = json.loads(done.stdout)
    lines = []
    for each in report["lines"]:
        each["goal"] = each["goal"] and tuple(each["goal"])
        lines.append(Line(**{name: each[name] for name in Line.__dataclass_fields__}))
    return lines, report["machine"][row]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(ROWS)}; all when none is given")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured (default 7)")
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
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # children are to find compiled modules, as those of a user do
    _measure.patience = options.quiet
    lines: list[Line] = []
    machine: dict[str, Any] = {}
    for row in rows:
        found, machine[row] = (run if len(rows) == 1 else in_own_process)(row, options.rounds)
        lines += found
        if not options.json and len(rows) > 1:
            print(f"{row} …", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({"lines": [line.as_dict() for line in lines], "machine": machine}, indent=1))
    else:
        names = ("revolve-assistant", "msgspec", "joblib", "loky", "numpy")
        versions = [f"{name} {version(name)}" for name in names]
        print(time.strftime("%Y-%m-%d %H:%M"), platform.python_version(), *versions, sep=", ")
        print(table(lines, options.markdown))
        busy = ", ".join(f"{row} {each['others']:.1f}" for row, each in machine.items())
        print(f"{options.rounds} rounds; CPUs of {os.cpu_count()} that others kept busy in those that count: {busy}")
        for row, each in machine.items():
            if "failed" in each:
                print(f"{row} FAILED with exit code {each['failed']}")
    return any("failed" in each for each in machine.values()) or 0


if __name__ == "__main__":
    sys.exit(main())
