"""The Redis Queue against what lists and streams give by themselves, over the same connection, in turn in one run.

    python benchmarks/redis_shapes.py [one] [bulk] [drain] [hop] [--rounds N] [--markdown]

Needs redis-server. The peers are what one writes by hand, with no priority, delay, key, rule, cancel or recovery:
`lists` LPUSH, BLMOVE to a list of its own, LREM; `streams` XADD, XREADGROUP, XACK with XDEL. Bodies of 400 bytes.
`server` lines are microseconds of the server's CPU for a task, of the whole of what the line before measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from _measure import Line, in_turn, percentile, quietness, table

from revolve_assistant.engine import Outcome, Parcel
from revolve_assistant.providers import registry
from revolve_assistant.providers.redis.address import Place
from revolve_assistant.providers.redis.connection import Connection
from revolve_assistant.providers.url import Url
from revolve_assistant.testing.servers import Redis

BODY = os.urandom(400)
BULK, AT_ONCE = 500, 100
DONE = Outcome("done")


class Ours:
    def __init__(self, url: str) -> None:
        self.giver: Any = registry.engine(url)
        self.taker: Any = registry.engine(url)
        self.giver.open()
        self.taker.open()
        self.number = 0

    def give(self, count: int) -> None:
        self.number += count
        parcels = [Parcel(f"{n:032x}", body=BODY, name="module:work") for n in range(self.number, self.number + count)]
        self.giver.submit(parcels, None)

    def take(self, count: int) -> int:
        leases = self.taker.take(["default"], limit=count, wait=10.0)
        self.settle = [(lease, DONE) for lease in leases]
        return len(leases)

    def end(self) -> None:
        self.taker.settle(self.settle)

    def close(self) -> None:
        self.giver.close()
        self.taker.close()


class Lists:
    def __init__(self, url: str) -> None:
        place = Place.read(Url.parse(url))
        self.giver, self.taker = Connection(place), Connection(place)
        self.got: list[bytes] = []

    def give(self, count: int) -> None:
        self.giver.call("LPUSH", "list", *[os.urandom(16) + BODY for _ in range(count)])

    def take(self, count: int) -> int:
        self.got = [self.taker.call("BLMOVE", "list", "mine", "RIGHT", "LEFT", 10, wait=10.0)]
        if count > 1:
            more = [("LMOVE", "list", "mine", "RIGHT", "LEFT")] * (count - 1)
            self.got += [each for each in self.taker.exchange(more) if each is not None]
        return len(self.got)

    def end(self) -> None:
        self.taker.exchange([("LREM", "mine", -1, each) for each in self.got])

    def close(self) -> None:
        self.giver.close()
        self.taker.close()


class Streams(Lists):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.giver.exchange([("XGROUP", "CREATE", "stream", "workers", "0", "MKSTREAM")])

    def give(self, count: int) -> None:
        self.giver.exchange([("XADD", "stream", "*", "b", os.urandom(16) + BODY)] * count)

    def take(self, count: int) -> int:
        asked = ("XREADGROUP", "GROUP", "workers", "me", "COUNT", count, "BLOCK", 10_000, "STREAMS", "stream", ">")
        answer: Any = self.taker.call(*asked, wait=10.0)
        entries = answer[b"stream"] if isinstance(answer, dict) else answer[0][1]
        self.got = [entry[0] for entry in entries]
        return len(self.got)

    def end(self) -> None:
        self.taker.exchange([("XACK", "stream", "workers", *self.got), ("XDEL", "stream", *self.got)])


def busy(server: Redis) -> float:
    """CPU seconds that the server has used."""
    assert server.process is not None
    with open(f"/proc/{server.process.pid}/stat", encoding="utf-8") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    def __init__(self, server: Redis) -> None:
        self.server = server

    def of(self, kind: Callable[[str], Any], measure: Callable[[Any], tuple[float, int]]) -> tuple[float, float]:
        """What is measured, on an emptied server, and microseconds of the server for a task."""
        self.server.ask("FLUSHALL")
        one = kind(self.server.url)
        try:
            before = busy(self.server)
            value, tasks = measure(one)
            return value, (busy(self.server) - before) / tasks * 1e6
        finally:
            one.close()


def one_by_one(one: Any, count: int = 8000) -> tuple[float, int]:
    began = time.perf_counter()
    for _ in range(count):
        one.give(1)
    return count / (time.perf_counter() - began), count


def bulk(one: Any, count: int = 100_000) -> tuple[float, int]:
    began = time.perf_counter()
    for _ in range(count // BULK):
        one.give(BULK)
    return count / (time.perf_counter() - began), count


def drain(one: Any, count: int = 40_000) -> tuple[float, int]:
    for _ in range(count // BULK):
        one.give(BULK)
    taken = 0
    began = time.perf_counter()
    while taken < count:
        taken += one.take(AT_ONCE)
        one.end()
    return count / (time.perf_counter() - began), count


def hop(one: Any, count: int = 3000) -> tuple[float, int]:
    """Microseconds from giving to a waiting taker's having it, p50."""
    found: list[float] = []
    sent = [0.0]
    got = threading.Event()

    def work() -> None:
        while len(found) < count:
            one.take(1)
            found.append(time.perf_counter() - sent[0])
            one.end()
            got.set()

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(count):
        got.clear()
        time.sleep(0.0005)  # until it waits
        sent[0] = time.perf_counter()
        one.give(1)
        got.wait()
    thread.join()
    return percentile(found, 0.5) * 1e6, count


ROWS: dict[str, tuple[Callable[[Any], tuple[float, int]], str, str]] = {
    "one": (one_by_one, "submitted one by one", "/s"),
    "bulk": (bulk, f"submitted {BULK} at once", "/s"),
    "drain": (drain, f"taken and settled {AT_ONCE} at once", "/s"),
    "hop": (hop, "to a waiting taker, p50", "us"),
}


def lines(bench: Bench, rows: list[str], rounds: int) -> Iterator[Line]:
    for row in rows:
        measure, what, unit = ROWS[row]
        kinds = (Ours, Lists, Streams)
        ours, lists, streams = in_turn(rounds, *[lambda k=k, m=measure: bench.of(k, m) for k in kinds])
        for name, theirs in (("lists", lists), ("streams", streams)):
            yield Line(row, f"{what}: {name}", unit, [a for a, _ in ours], [b for b, _ in theirs])
            yield Line(row, f"server: {name}", "us", [a for _, a in ours], [max(b, 0.01) for _, b in theirs])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], metavar="row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        server = stack.enter_context(Redis())
        with quietness() as seen:
            found = list(lines(Bench(server), options.rows or list(ROWS), options.rounds))
    print(table(found, markdown=options.markdown))
    print(f"\nCPython {platform.python_version()}; CPUs that others kept busy: {seen['others']:.2f}")


if __name__ == "__main__":
    main()
