"""IronMQ: requests for each message, and time, beside httpx loops written by hand against the same stand-in.

    python benchmarks/ironmq.py [events] [tasks] [whole] [flat] [paced] [--rounds N] [--markdown]

The stand-in (`revolve_assistant.testing.iron`) runs in a process of its own. Times are those of this machine and of a
server in Python: what counts at the service is the number of requests, which it bills and of which each takes a round
trip. The raw loops: `batched` posts, reserves and deletes by the API's most (100), `plain` one message at a time.
"""

from __future__ import annotations

import argparse
import base64
import os
import platform
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
from _measure import Line, in_turn, percentile, quietness, seconds, table

from revolve_assistant import Client, Worker
from revolve_assistant.engine import Outcome, Parcel
from revolve_assistant.providers import registry
from revolve_assistant.testing.iron import IronServer

FRAME = os.urandom(200)
TEXT = base64.b64encode(FRAME).decode()
DONE = Outcome("done")


class Stand:
    """The stand-in in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = int(self._line())
        self.known = IronServer()  # its names; it is not started
        self.known.port = self.port
        self.names = 0

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def requests(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self._line())

    def fresh(self) -> str:
        self.names += 1
        return f"bench{self.names}"

    def url(self, namespace: str) -> str:
        return self.known.url(namespace)

    def close(self) -> None:
        self.known.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    """Print the port, then for each line read the number of requests so far."""
    with IronServer() as iron:
        print(iron.port, flush=True)
        for _ in sys.stdin:
            print(iron.counts["all"], flush=True)


class Raw:
    """By hand."""

    def __init__(self, stand: Stand, queue: str) -> None:
        base = f"http://127.0.0.1:{stand.port}/3/projects/{stand.known.project}/queues/{queue}"
        self.client = httpx.Client(headers={"Authorization": f"OAuth {stand.known.token}"}, timeout=60.0, verify=False)
        self.base = base
        self.client.put(base, json={})

    def post(self, texts: list[str]) -> None:
        self.client.post(f"{self.base}/messages", json={"messages": [{"body": text} for text in texts]})

    def take(self, count: int, wait: int = 0) -> list[dict[str, Any]]:
        answer = self.client.post(f"{self.base}/reservations", json={"n": count, "timeout": 60, "wait": wait})
        return answer.json()["messages"]

    def delete(self, messages: list[dict[str, Any]]) -> None:
        ids = [{"id": each["id"], "reservation_id": each["reservation_id"]} for each in messages]
        self.client.request("DELETE", f"{self.base}/messages", json={"ids": ids})

    def loop(self, count: int, batch: int) -> None:
        for _ in range(count // batch):
            self.post([TEXT] * batch)
        for _ in range(count // batch):
            self.delete(self.take(batch))


def spent(stand: Stand, call: Callable[[], object]) -> tuple[float, int]:
    before = stand.requests()
    took = seconds(call)
    return took, stand.requests() - before


def raw(stand: Stand, count: int, batch: int) -> tuple[float, float]:
    one = Raw(stand, stand.fresh())
    try:
        took, requests = spent(stand, lambda: one.loop(count, batch))
    finally:
        one.client.close()
    return count / took, 100 * requests / count


def our_events(stand: Stand, count: int) -> tuple[float, float]:
    messenger = registry.messenger(stand.url(stand.fresh()))
    messenger.open()
    messenger.keep(["c"], seconds=300, cap=1 << 26)

    def run() -> None:
        for _ in range(count // 100):
            messenger.write([("c", FRAME)] * 100)
        cursor, found, left = b"", 0, 0
        while found < count:
            messages = messenger.read({"c": cursor}, limit=1000, wait=1.0).messages
            cursor, found, left = messages[-1].cursor, found + len(messages), left + len(messages)
            if left >= 200:  # as a client does
                messenger.forget("c", cursor)
                left = 0
        messenger.forget("c", cursor)

    try:
        took, requests = spent(stand, run)
    finally:
        messenger.close()
    return count / took, 100 * requests / count


def our_tasks(stand: Stand, count: int) -> tuple[float, float]:
    queue = registry.engine(stand.url(stand.fresh()))
    queue.open()

    def run() -> None:
        for start in range(0, count, 500):
            queue.submit([Parcel(f"{n}", body=FRAME) for n in range(start, start + 500)], None)
        settled = 0
        while settled < count:
            leases = queue.take(["default"], limit=100, wait=1.0)
            queue.settle([(lease, DONE) for lease in leases])
            settled += len(leases)

    try:
        took, requests = spent(stand, run)
    finally:
        queue.close()
    return count / took, 100 * requests / count


def compared(row: str, what: str, rounds: int, stand: Stand, ours: Callable[[], Any], count: int) -> Iterator[Line]:
    batched, plain = partial(raw, stand, count, 100), partial(raw, stand, count // 10, 1)
    found = in_turn(rounds, ours, batched, plain)
    for name, peer in zip(("raw, batched", "raw, one at a time"), found[1:], strict=True):
        rates = [[pair[0] for pair in each] for each in (found[0], peer)]
        asked = [[pair[1] for pair in each] for each in (found[0], peer)]
        yield Line(row, f"{what}; {name}", "/s", *rates)
        yield Line(row, f"requests for 100 of them; {name}", "requests", *asked, goal=("<=", 1.05))


def events(rounds: int, stand: Stand) -> Iterator[Line]:
    yield from compared("events", "5,000 frames, 200 bytes", rounds, stand, partial(our_events, stand, 5000), 5000)


def tasks(rounds: int, stand: Stand) -> Iterator[Line]:
    yield from compared("tasks", "2,000 bodies, 200 bytes", rounds, stand, partial(our_tasks, stand, 2000), 2000)


def nothing() -> None:
    pass


def whole(rounds: int, stand: Stand) -> Iterator[Line]:
    """Client, queue, worker, events and all."""

    def run(count: int) -> tuple[float, float]:
        url = stand.url(stand.fresh())
        with Client(url) as client, Worker(url, concurrency=2, pool="thread", grace=2.0) as worker:
            client.submit(nothing).result(30)
            worker.wait_ready(30)

            def ask() -> None:
                for task in [client.submit(nothing) for _ in range(count)]:
                    task.result(60)

            took, requests = spent(stand, ask)
        return count / took, requests / count

    found = in_turn(rounds, partial(run, 500), partial(run, 5))
    yield Line("whole", "no-ops through client and worker, 500 at once; 5", "/s", *[[a for a, _ in e] for e in found])
    yield Line("whole", "requests of both sides for each task, 500 at once; 5", "requests",
               *[[b for _, b in each] for each in found])  # fmt: skip


def flat(rounds: int, stand: Stand) -> Iterator[Line]:
    """What a client asks for while it waits, by how many tasks are in flight."""

    def run(count: int) -> float:
        url = stand.url(stand.fresh())
        with Client(url) as client:
            waiting = [client.submit(nothing) for _ in range(count)]
            for task in waiting:
                task.queued(30)
            time.sleep(1.0)
            before = stand.requests()
            time.sleep(40.0)  # a long poll takes 30
            return stand.requests() - before

    for number, (count, found) in enumerate(zip((1, 500), in_turn(1, partial(run, 1), partial(run, 500)), strict=True)):
        yield Line("flat", f"requests in 40 s of a client that waits for {count} task{'s' * number}", "requests", found)


def paced(rounds: int, stand: Stand) -> Iterator[Line]:
    """From writing to having read, one message every 20 ms on average."""

    def ours() -> list[float]:
        messenger, writer = (registry.messenger(stand.url("paced")) for _ in range(2))
        messenger.open()
        writer.open()
        messenger.keep(["c"], seconds=300, cap=1 << 20)
        found: list[float] = []
        thread = threading.Thread(target=write, args=(lambda text: writer.write([("c", text.encode())]),))
        thread.start()
        cursor = b""
        while len(found) < 100:
            messages = messenger.read({"c": cursor}, limit=100, wait=10.0).messages
            found += [(time.monotonic_ns() - int(message.frame)) / 1e6 for message in messages]
            cursor = messages[-1].cursor if messages else cursor
            if messages:
                messenger.forget("c", cursor)
        thread.join()
        messenger.close()
        writer.close()
        return found

    def by_hand() -> list[float]:
        reader = Raw(stand, "paced-raw")
        writer = Raw(stand, "paced-raw")
        found: list[float] = []
        thread = threading.Thread(target=write, args=(lambda text: writer.post([text]),))
        thread.start()
        while len(found) < 100:
            messages = reader.take(100, 10)
            found += [(time.monotonic_ns() - int(message["body"])) / 1e6 for message in messages]
            if messages:
                reader.delete(messages)
        thread.join()
        reader.client.close()
        writer.client.close()
        return found

    found = in_turn(rounds, ours, by_hand)
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        yield Line(
            "paced", f"write to read, {name}; raw", "ms", *[[percentile(each, share) for each in e] for e in found]
        )


def write(say: Callable[[str], object]) -> None:
    for _ in range(100):
        time.sleep(random.uniform(0.01, 0.03))
        say(str(time.monotonic_ns()))


ROWS = {"events": events, "tasks": tasks, "whole": whole, "flat": flat, "paced": paced}


def main() -> int:
    if sys.argv[1:] == ["--serve"]:
        serve()
        return 0
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="row", help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    lines: list[Line] = []
    stand = Stand()
    try:
        with quietness() as quiet:
            for row in options.rows or ROWS:
                print(f"{row} …", file=sys.stderr, flush=True)
                lines += ROWS[row](options.rounds, stand)
    finally:
        stand.close()
    print(time.strftime("%Y-%m-%d %H:%M"), platform.python_version(), f"httpx {httpx.__version__}", sep=", ")
    print(table(lines, options.markdown))
    print(f"{options.rounds} rounds; CPUs that others kept busy meanwhile: {quiet['others']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
