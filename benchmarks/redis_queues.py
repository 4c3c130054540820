"""Tasks on Redis beside Huey and BullMQ, the quickest of the field at enqueueing (one by one, in bulk) and at draining.

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
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import _measure
import _queue_peers
import _work
from _measure import Line, disturbance, in_turn, percentile, table
from remote import Crew

from revolve_assistant import Client
from revolve_assistant.testing.servers import Redis

TASKS = 20_000
PEERS = 5_000


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


class Place:
    def __init__(self, server: Redis) -> None:
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
                yield Line("latency", f"submit to result p{share * 100:.0f}{what}; {peer.name}", "µs", mine, his)


ROWS: dict[str, Callable[[Place], Iterator[Line]]] = {
    "enqueue": enqueue, "bulk": bulk, "drain": drain, "latency": latency,
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
    names = [f"{each} {version(each)}" for each in ("huey", "bullmq", "hiredis") if _queue_peers.there(each)]
    print(f"CPython {platform.python_version()}, {os.cpu_count()} CPUs, {', '.join(names)}, {ROUNDS} rounds")
    print(table(lines, given.markdown))


if __name__ == "__main__":
    main()
