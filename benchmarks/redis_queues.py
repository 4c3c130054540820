"""Tasks on Redis beside Huey and BullMQ, the quickest of the field at enqueueing (one by one, in bulk), draining and
latency, and Celery, which most people have.

    python benchmarks/redis_queues.py [row …] [--rounds N] [--quiet SECONDS] [--markdown]

No-op tasks, two worker processes of each system, one Redis server, started here and emptied before each measurement;
ours and the peers in turn in one run. Ours keeps a log for each task (history, `attach`) as it does by default, and
without it (`history=False`), which is what the peers do.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import _measure
import _queue_peers
import _work
from _measure import Line, disturbance, in_turn, percentile, table
from remote import Crew, cpu

from revolve_assistant import Client
from revolve_assistant.testing.servers import Redis

TASKS = 20_000
PEERS = 5_000  # tasks or events of a slower peer
EVENTS = 100_000
IDLE = 10.0  # seconds
FINISHED = 100_000
WATCHED = 1_000


class Ours:
    def __init__(self, server: Redis, **options: Any) -> None:
        self.url = server.url
        self.server = server
        self.options = options

    def clear(self) -> None:
        self.server.ask("FLUSHALL")

    def one(self, count: int) -> float:
        with Client(self.url) as client:
            configured = client.options(**self.options)
            configured.submit(_work.noop).queued(60)
            began = time.perf_counter()
            for task in [configured.submit(_work.noop) for _ in range(count)]:
                task.queued(60)
            return count / (time.perf_counter() - began)

    def drain(self, count: int) -> float:
        with Client(self.url) as client:
            configured = client.options(**self.options)
            tasks = [configured.submit(_work.noop) for _ in range(count)]
            for task in tasks:
                task.queued(60)
            with Crew(self.url):
                tasks[0].result(60)
                began = time.perf_counter()
                left = [task for task in tasks if not task.done()]
                for task in left:
                    task.result(60)
                return len(left) / (time.perf_counter() - began)

    def map(self, count: int) -> float:
        with Client(self.url) as client:
            configured = client.options(**self.options)
            configured.submit(_work.noop).queued(60)
            began = time.perf_counter()
            results = configured.map(_work.noop, range(count), chunksize=100)
            for task in list(client._tasks.values()):
                task.queued(60)
            rate = count / (time.perf_counter() - began)
            del results
            return rate

    def latency(self) -> list[float]:
        with Crew(self.url), Client(self.url) as client:
            configured = client.options(**self.options)
            found = []
            for number in range(_queue_peers.LATENCY + 20):
                began = time.perf_counter()
                configured.submit(_work.noop).result(60)
                if number >= 20:
                    found.append((time.perf_counter() - began) * 1e6)
            return found

    def events(self, count: int) -> float:
        with Crew(self.url, children=1), Client(self.url) as client:
            configured = client.options(**self.options)
            configured.submit(_work.noop).result(60)
            seen, began = 0, time.perf_counter()
            for event in configured.submit(_work.pour, count).events():
                seen += event.name == "tick"
            rate = count / (time.perf_counter() - began)
            assert seen == count, f"{seen:,} events of {count:,} came"
            return rate

    def paced(self) -> list[float]:
        with Crew(self.url, children=1), Client(self.url) as client:
            found = []
            task = client.options(**self.options).submit(_work.paced, _queue_peers.PACED, _queue_peers.PAUSE)
            for event in task.events():
                if event.name == "ready":
                    task.send("go")
                elif event.name == "stamp":
                    found.append((time.monotonic_ns() - event.args[0]) / 1e3)
            return found[20:]


class Place:
    def __init__(self, server: Redis) -> None:
        self.server = server
        self.logged = Ours(server)
        self.bare = Ours(server, history=False)
        self.peers = []
        for name, kind in _queue_peers.PEERS.items():
            if _queue_peers.there(name):
                self.peers.append(kind(server.url))
            else:
                print(f"{name} is left out: pip install {name}", file=sys.stderr)

    def fresh(self, call: Callable[[], Any]) -> Callable[[], Any]:
        def measure() -> Any:
            self.logged.clear()
            return call()

        return measure

    def rates(self, row: str, what: str, ours: Callable[[Ours], float], theirs: str, count: int) -> Iterator[Line]:
        peers = [peer for peer in self.peers if getattr(peer, theirs) is not None]
        calls = [lambda: ours(self.logged), lambda: ours(self.bare)]
        calls += [lambda peer=peer: getattr(peer, theirs)(count) for peer in peers]
        logged, bare, *others = in_turn(ROUNDS, *map(self.fresh, calls))
        for peer, values in zip(peers, others, strict=True):
            yield Line(row, f"{what}; {peer.name}", "/s", logged, values, (">=", 2))
            yield Line(row, f"{what}, no history; {peer.name}", "/s", bare, values)


ROUNDS = 3


def enqueue(at: Place) -> Iterator[Line]:
    yield from at.rates("enqueue", "one by one, all acknowledged", lambda it: it.one(TASKS), "one", PEERS)


def bulk(at: Place) -> Iterator[Line]:
    yield from at.rates("bulk", "at once, all acknowledged", lambda it: it.one(TASKS), "bulk", TASKS)
    yield from at.rates("bulk", "map, 100 items a task, all acknowledged", lambda it: it.map(TASKS), "bulk", TASKS)


def drain(at: Place) -> Iterator[Line]:
    yield from at.rates("drain", f"{TASKS:,} queued no-ops", lambda it: it.drain(TASKS), "drain", TASKS)


def latency(at: Place) -> Iterator[Line]:
    peers = [peer for peer in at.peers if peer.latency is not None]
    calls = [at.logged.latency, at.bare.latency, *(peer.latency for peer in peers)]
    logged, bare, *others = in_turn(ROUNDS, *map(at.fresh, calls))
    for peer, values in zip(peers, others, strict=True):
        for what, ours in (("", logged), (", no history", bare)):
            for share in (0.5, 0.99):
                mine = [percentile(each, share) for each in ours]
                his = [percentile(each, share) for each in values]
                goal = ("<=", 1) if peer.name == "BullMQ" and not what else None
                what_of = f"submit to result p{share * 100:.0f}{what}; {peer.name}"
                yield Line("latency", what_of, "µs", mine, his, goal)


def events(at: Place) -> Iterator[Line]:
    peers = [peer for peer in at.peers if peer.events is not None]
    calls = [lambda: at.logged.events(EVENTS), *(lambda peer=peer: peer.events(PEERS) for peer in peers)]
    ours, *others = in_turn(ROUNDS, *map(at.fresh, calls))
    for peer, values in zip(peers, others, strict=True):
        yield Line("events", f"of one task to a listener, none lost; {peer.name}", "/s", ours, values, (">=", 10))
    paced, *others = in_turn(ROUNDS, *map(at.fresh, [at.logged.paced, *(peer.paced for peer in peers)]))
    for peer, values in zip(peers, others, strict=True):
        for share in (0.5, 0.99):
            mine, his = ([percentile(each, share) for each in found] for found in (paced, values))
            what = f"one every {_queue_peers.PAUSE * 1000:g} ms, emit to listener p{share * 100:.0f}; {peer.name}"
            yield Line("events", what, "µs", mine, his, ("<=", 1) if share == 0.5 else None)


def idle(at: Place) -> Iterator[Line]:
    """Two processes that run tasks, and what they need beside, once they have run some."""

    def measure(pids: list[int]) -> tuple[float, float]:
        time.sleep(2)
        before = sum(map(cpu, pids))
        time.sleep(IDLE)
        used = max(0.05, (sum(map(cpu, pids)) - before) / IDLE * 100)  # half a tick: what cannot be seen is not nothing
        return used, sum(_work.memory_of(pid)["Pss"] for pid in pids) / 1e6

    def ours() -> tuple[float, float]:
        with Crew(at.logged.url) as crew:
            with Client(at.logged.url) as client:
                for task in [client.submit(_work.noop) for _ in range(100)]:
                    task.result(60)
            return measure(crew.pids)

    def theirs(peer: Any) -> tuple[float, float]:
        with peer.idle() as pids:
            return measure(pids)

    peers = [peer for peer in at.peers if peer.idle is not None]
    calls = [ours, *(lambda peer=peer: theirs(peer) for peer in peers)]
    mine, *others = in_turn(max(1, ROUNDS // 3), *map(at.fresh, calls))
    for peer, values in zip(peers, others, strict=True):
        for number, what, unit in ((0, "CPU", "% of a core"), (1, "memory (Pss)", "MB")):
            his = [each[number] for each in values]
            yield Line("idle", f"{what}, all processes; {peer.name}", unit, [each[number] for each in mine], his)


def memory(at: Place) -> Iterator[Line]:
    """What the server keeps of a task that has ended, until its retention is over."""

    def used() -> int:
        found = str(at.server.ask("INFO", "memory"))
        return int(found.partition("used_memory:")[2].split()[0])

    for ours, what in ((at.logged, "with its history"), (at.bare, "without history")):
        ours.clear()
        with Crew(ours.url), Client(ours.url) as client:
            configured = client.options(**ours.options)
            configured.submit(_work.noop).result(60)
            before = used()
            for _ in range(FINISHED // TASKS):
                for task in [configured.submit(_work.noop) for _ in range(TASKS)]:
                    task.result(120)
            del task
            yield Line("memory", f"a finished task {what}", "bytes", [(used() - before) / FINISHED])
        ours.clear()


def watchers(at: Place) -> Iterator[Line]:
    """One process that watches many tasks by their ids."""
    at.logged.clear()
    with Client(at.logged.url) as client:
        tasks = [client.submit(_work.noop) for _ in range(WATCHED)]
        for task in tasks:
            task.queued(60)
        ids = [task.id for task in tasks]
    others = connections(at.server)
    with Client(at.logged.url) as client:
        watched = [iter(client.attach(each).events()) for each in ids]
        with Crew(at.logged.url) as _:
            for events in watched:
                assert [event.name for event in events][-1] == "succeeded"
        yield Line("watchers", f"connections for {WATCHED:,} attached tasks", "", [connections(at.server) - others])
        pumps = [each.name for each in threading.enumerate() if each is not threading.main_thread()]
        yield Line("watchers", "threads beside the main one", "", [len(pumps)], note=", ".join(pumps))


def connections(server: Redis) -> int:
    return str(server.ask("CLIENT", "LIST")).count("id=")


ROWS: dict[str, Callable[[Place], Iterator[Line]]] = {
    "enqueue": enqueue, "bulk": bulk, "drain": drain, "latency": latency, "events": events, "idle": idle,
    "memory": memory, "watchers": watchers,
}  # fmt: skip


def main() -> None:
    global ROUNDS
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="row", help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quiet", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    unknown = set(given.rows) - set(ROWS)
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}: there are {', '.join(ROWS)}")
    ROUNDS, _measure.patience = given.rounds, given.quiet
    lines: list[Line] = []
    with Redis() as server:
        at = Place(server)
        for row in given.rows or ROWS:
            lines += ROWS[row](at)
            print(f"{row}: others kept {disturbance() or 0:.1f} CPUs busy", file=sys.stderr)
    names = [f"{each} {version(each)}" for each in ("huey", "bullmq", "celery", "hiredis") if _queue_peers.there(each)]
    print(f"CPython {platform.python_version()}, {os.cpu_count()} CPUs, {', '.join(names)}, {ROUNDS} rounds")
    print(table(lines, given.markdown))


if __name__ == "__main__":
    main()
