"""beanstalkd as Queue and as Messenger against bare sockets and `greenstalk`, in turn in one run.

The raw loop is as little as the protocol allows: commands made one by one and sent in bulk, answers cut out of what
comes; no priorities, no count of deliveries, no fail-over. `greenstalk` is used as its page shows it: one command, one
answer. What a client and a worker do on top is measured by remote.py.

    apt-get install beanstalkd; pip install greenstalk
    python benchmarks/beanstalkd.py [--rounds 5] [--count 20000] [--markdown]
"""

from __future__ import annotations

import argparse
import platform
import select
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable

import _measure
from _measure import Line, disturbance, in_turn, percentile, seconds, table

from revolve_assistant.engine import Outcome, Parcel
from revolve_assistant.protocols.beanstalkd import BeanstalkdClient
from revolve_assistant.protocols.beanstalkd import commands as ask
from revolve_assistant.providers import registry
from revolve_assistant.testing.servers import Beanstalkd

sys.path.pop(0)  # this folder, where a peer's name may be a file's

import greenstalk  # type: ignore[import-untyped,unused-ignore]

BODY = b"x" * 400  # about what a task of no arguments has
DONE = Outcome()
BATCH = 100


class Raw:
    """Bare sockets."""

    def __init__(self, server: Beanstalkd) -> None:
        self.server = server

    def exchange(self, commands: list[bytes], answers: Callable[[bytes], tuple[int, int]], count: int) -> None:
        """Send all, until so many answers have come; `answers(data)` says how many there are, and up to where."""
        with socket.create_connection(self.server.address) as one:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setblocking(False)
            at, out, rest, got = 0, b"", b"", 0
            while got < count:
                while at < len(commands) and len(out) < 1 << 18:
                    out += b"".join(commands[at : at + 500])
                    at += 500
                _, writable, _ = select.select([one], [one] if out else [], [])
                if writable:
                    out = out[one.send(out) :]
                try:
                    rest += one.recv(1 << 18)
                except BlockingIOError:
                    continue
                found, end = answers(rest)
                got += found
                rest = rest[end:]

    def submit(self, count: int) -> None:
        puts = [b"put %d 0 30 %d\r\n%b\r\n" % (9 << 16, len(BODY), BODY) for _ in range(count)]
        self.exchange([b"use raw\r\n", *puts], _lines, count + 1)

    def drain(self, count: int) -> None:
        """Reserves in batches, then the deletions of what came, in one more."""
        with socket.create_connection(self.server.address) as one, one.makefile("rb", 1 << 18) as file:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.sendall(b"watch raw\r\n")
            file.readline()
            done = 0
            deletes = b""
            while done < count:
                one.sendall(deletes + b"reserve-with-timeout 0\r\n" * BATCH)
                for _ in range(deletes.count(b"\r\n")):
                    file.readline()
                jobs = []
                for _ in range(BATCH):
                    word, *numbers = file.readline().split()
                    if word == b"RESERVED":
                        file.read(int(numbers[1]) + 2)
                        jobs.append(numbers[0])
                done += len(jobs)
                deletes = b"".join([b"delete %b\r\n" % job for job in jobs])
            one.sendall(deletes)
            for _ in range(deletes.count(b"\r\n")):
                file.readline()


def _lines(data: bytes) -> tuple[int, int]:
    end = data.rfind(b"\r\n") + 2
    return data.count(b"\r\n", 0, end), end if end > 1 else 0


class Greenstalk:
    """The peer, used plainly."""

    def __init__(self, server: Beanstalkd) -> None:
        self.address = server.address

    def submit(self, count: int) -> None:
        with greenstalk.Client(self.address, encoding=None, use="green") as client:
            for _ in range(count):
                client.put(BODY)

    def drain(self, count: int) -> None:
        with greenstalk.Client(self.address, encoding=None, watch="green") as client:
            for _ in range(count):
                client.delete(client.reserve(5))

    def events(self, count: int) -> None:
        reading = threading.Thread(target=self.drain, args=(count,))
        reading.start()
        self.submit(count)
        reading.join()


class Ours:
    """The Queue and the Messenger."""

    def __init__(self, server: Beanstalkd) -> None:
        url = f"{server.url}/bench"
        self.queue, self.taker = registry.engine(url), registry.engine(url)
        self.writer, self.reader = registry.messenger(url), registry.messenger(url)
        for one in (self.queue, self.taker, self.writer, self.reader):
            one.open()
        self.cursors = {"inbox": b""}
        self.number = 0

    def close(self) -> None:
        for one in (self.queue, self.taker, self.writer, self.reader):
            one.close()

    def parcels(self, count: int) -> list[Parcel]:
        self.number += 1
        return [Parcel(f"{self.number}.{n}", body=BODY) for n in range(count)]

    def submit(self, count: int) -> float:
        """Submits a second, in one batch; the queue is emptied afterwards."""
        parcels = self.parcels(count)
        took = seconds(lambda: self.queue.submit(parcels, None))
        self.empty(count, 500)
        return count / took

    def drain(self, count: int, limit: int = BATCH) -> float:
        self.queue.submit(self.parcels(count), None)
        return count / seconds(lambda: self.empty(count, limit))

    def empty(self, left: int, limit: int) -> None:
        outcomes: list[tuple[object, Outcome]] = []
        while left:
            leases = self.taker.settle_and_take(outcomes, ["default"], limit=limit, wait=5)
            outcomes = [(lease, DONE) for lease in leases]
            left -= len(leases)
        self.taker.settle(outcomes)

    # ---- messages

    def events(self, count: int, batch: int) -> float:
        """Frames a second, from the first write to the last one read and forgotten."""
        reading = threading.Thread(target=self.read, args=(count,))

        def both() -> None:
            reading.start()
            for _ in range(0, count, batch):
                self.writer.write([("inbox", BODY[:100])] * batch)
            reading.join()

        return count / seconds(both)

    def read(self, count: int) -> list[float]:
        """Reads so many frames; how long after the time that each names."""
        late: list[float] = []
        while len(late) < count:
            messages = self.reader.read(self.cursors, limit=1000, wait=5).messages
            now = time.perf_counter()
            for message in messages:
                late.append(now - float(message.frame) if message.frame[:1].isdigit() else 0.0)
                self.cursors["inbox"] = message.cursor
            self.reader.forget("inbox", self.cursors["inbox"])
        return late

    def paced(self, count: int = 500) -> float:
        """Median milliseconds from write to read, of one frame every 2 ms."""
        late: list[float] = []
        reading = threading.Thread(target=lambda: late.extend(self.read(count)))
        reading.start()
        for _ in range(count):
            self.writer.write([("inbox", b"%.9f" % time.perf_counter())])
            time.sleep(0.002)
        reading.join()
        return percentile(late, 0.5) * 1e3


def touches(server: Beanstalkd, count: int = 200) -> tuple[float, float]:
    """Median milliseconds until a job is touched while the same connection waits in a reserve: ours, and a connection
    of greenstalk's that looks in every second, as it must (asked at times that are spread evenly)."""
    with BeanstalkdClient(server.address) as client:
        client.put([BODY], "held")
        client.ask(ask.watch("held"))
        held = client.reserve(5)
        assert held is not None
        waiting = threading.Thread(target=client.reserve, args=(600,))
        waiting.start()
        ours = []
        for _ in range(count):
            time.sleep(0.001)
            ours.append(seconds(lambda: client.touch(held.number)))
        client.wake()
        waiting.join()
        client.delete(held.number)
    lock = threading.Lock()
    stop = threading.Event()
    theirs = []
    with greenstalk.Client(server.address, encoding=None, use="held", watch="held") as peer:
        peer.put(BODY)
        job = peer.reserve(1)

        def wait() -> None:
            while not stop.is_set():
                with lock:
                    try:
                        peer.reserve(1)
                    except greenstalk.Error:
                        pass
                time.sleep(0)  # so that somebody else gets the lock

        waiting = threading.Thread(target=wait)
        waiting.start()
        for n in range(10):
            time.sleep(0.1 * n)
            began = time.perf_counter()
            with lock:
                peer.touch(job)
            theirs.append(time.perf_counter() - began)
        stop.set()
        waiting.join()
        peer.delete(job)
    return statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=20_000, help="jobs in a measurement (default 20000)")
    parser.add_argument("--quiet", type=float, default=0.0, help="seconds to spend on repeating disturbed rounds")
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    _measure.patience = given.quiet
    count, lines = given.count, []
    with Beanstalkd() as server:
        raw, peer, ours = Raw(server), Greenstalk(server), Ours(server)

        def rate(fill: Callable[[int], object] | None, measure: Callable[[int], object],
                 empty: Callable[[int], object] | None, many: int) -> float:  # fmt: skip
            if fill is not None:
                fill(many)
            took = seconds(lambda: measure(many))
            if empty is not None:
                empty(many)
            return many / took

        few = count // 4  # of the peer, which takes longer
        try:
            mine, bare, theirs = in_turn(
                given.rounds,
                lambda: ours.submit(count),
                lambda: rate(None, raw.submit, raw.drain, count),
                lambda: rate(None, peer.submit, peer.drain, few),
            )
            lines += [
                Line("submit", "in bulk; raw socket, pipelined", "/s", mine, bare, (">=", 0.5)),
                Line("submit", "in bulk; greenstalk", "/s", mine, theirs, (">=", 3)),
            ]
            mine, bare, theirs = in_turn(
                given.rounds,
                lambda: ours.drain(count),
                lambda: rate(raw.submit, raw.drain, None, count),
                lambda: rate(peer.submit, peer.drain, None, few),
            )
            lines += [
                Line("drain", f"by {BATCH}; raw socket, by {BATCH}", "/s", mine, bare, (">=", 0.5)),
                Line("drain", f"by {BATCH}; greenstalk", "/s", mine, theirs, (">=", 3)),
            ]
            single, theirs = in_turn(
                given.rounds, lambda: ours.drain(few, 1), lambda: rate(peer.submit, peer.drain, None, few)
            )
            lines.append(Line("drain", "one by one; greenstalk", "/s", single, theirs))
            fifty, one, theirs = in_turn(
                given.rounds,
                lambda: ours.events(count, 50),
                lambda: ours.events(few, 1),
                lambda: rate(None, peer.events, None, few),
            )
            lines += [
                Line("events", "100 bytes, 50 at once, write to forgotten", "/s", fifty, goal=(">=", 20_000)),
                Line("events", "one at once; greenstalk, put to delete", "/s", one, theirs),
            ]
            (paced,) = in_turn(given.rounds, ours.paced)
            lines.append(Line("paced", "a frame every 2 ms, write to read, p50", "ms", paced, goal=("<=", 1)))
            (both,) = in_turn(given.rounds, lambda: touches(server))
            mine, theirs = ([each[at] for each in both] for at in (0, 1))
            lines.append(Line("touch", "while a reserve waits, p50; greenstalk with reserve(1)", "ms", mine, theirs))
        finally:
            ours.close()
    others = disturbance()
    print(time.strftime("%Y-%m-%d %H:%M"), platform.python_version(), f"{count:,} jobs", f"{given.rounds} rounds",
          f"CPUs that others kept busy: {others:.1f}" if others is not None else "", sep=", ")  # fmt: skip
    print(table(lines, given.markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
