"""The memcached Messenger against a plain pymemcache loop, and the clients it was chosen from, in turn in one run.

    python benchmarks/memcached.py [frames] [paced] [idle] [clients] [--rounds N] [--markdown]

Needs memcached; peers: pip install pymemcache pylibmc. The plain loop is what one would write by hand: `incr` a counter
and `add` a slot for each frame; `get` the counter, and `get_many` what is new, every 8 ms. It knows of no loss.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

from _measure import Line, in_turn, percentile, quietness, seconds, table

from revolve_assistant.providers.memcached import Messenger, codec
from revolve_assistant.testing.servers import Memcached

HERE = sys.path.pop(0)  # this folder, where a peer's name may be this file's

FRAME = os.urandom(200)
TTL = 600
CAP = 256 << 20
POLL = 0.008  # seconds between two looks of the plain loop


class Ours:
    def __init__(self, port: int, channel: str) -> None:
        self.messenger = Messenger([("127.0.0.1", port)])
        self.messenger.open()
        self.channel, self.cursor = channel, b""

    def make(self) -> None:
        self.messenger.forget(self.channel)
        self.messenger.keep([self.channel], seconds=TTL, cap=CAP)
        self.cursor = b""

    def write(self, frames: list[bytes]) -> None:
        self.messenger.write([(self.channel, frame) for frame in frames])

    def read(self) -> list[bytes]:
        batch = self.messenger.read({self.channel: self.cursor}, limit=1000, wait=1.0)
        assert not batch.lost
        if batch.messages:
            self.cursor = batch.messages[-1].cursor
        return [message.frame for message in batch.messages]

    def close(self) -> None:
        self.messenger.close()


class Plain:
    """The loop by hand."""

    def __init__(self, port: int, channel: str) -> None:
        from pymemcache.client.base import Client

        self.client = Client(("127.0.0.1", port), default_noreply=False, timeout=5, connect_timeout=5, no_delay=True)
        self.channel, self.next = channel, 1

    def make(self) -> None:
        for start in range(1, int(self.client.get(self.channel) or 0) + 1, 1000):
            self.client.delete_many([f"{self.channel}{n}" for n in range(start, start + 1000)])
        self.client.set(self.channel, b"0", TTL)
        self.next = 1

    def write(self, frames: list[bytes]) -> None:
        for frame in frames:
            self.client.add(f"{self.channel}{self.client.incr(self.channel, 1)}", frame, TTL)

    def read(self) -> list[bytes]:
        while (head := int(self.client.get(self.channel))) < self.next:
            time.sleep(POLL)
        keys = [f"{self.channel}{n}" for n in range(self.next, min(head + 1, self.next + 500))]
        found = self.client.get_many(keys)
        values = []
        for key in keys:
            if key not in found:
                break
            values.append(found[key])
        self.next += len(values)
        return values

    def close(self) -> None:
        self.client.close()


WAYS = {"ours": Ours, "plain": Plain}


def writer(way: str, port: int, channel: str) -> None:
    """A process that writes as it is told on its standard input: `COUNT BATCH PAUSE`, until that ends."""
    member = WAYS[way](port, channel)
    print("ready", flush=True)
    for line in sys.stdin:
        count, batch, pause = (float(word) for word in line.split())
        for _ in range(int(count / batch)):
            if pause:
                time.sleep(random.uniform(0.5, 1.5) * pause)
                member.write([b"%d" % time.monotonic_ns()] * int(batch))
            else:
                member.write([FRAME] * int(batch))
    member.close()


class Pair:
    """A reader here, and a writer in a process of its own."""

    def __init__(self, way: str, port: int) -> None:
        self.reader = WAYS[way](port, way)
        self.reader.make()
        command = [sys.executable, __file__, "--write", way, str(port), way]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def run(self, count: int, batch: int, pause: float = 0.0) -> list[bytes]:
        self.reader.make()
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count} {batch} {pause}\n")
        self.process.stdin.flush()
        found: list[bytes] = []
        while len(found) < count:
            found += self.reader.read()
        return found

    def late(self, count: int, pause: float) -> list[float]:
        """Milliseconds from writing to having read, of single frames."""
        self.reader.make()
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count} 1 {pause}\n")
        self.process.stdin.flush()
        found: list[float] = []
        while len(found) < count:
            frames = self.reader.read()
            now = time.monotonic_ns()
            found += [(now - int(frame)) / 1e6 for frame in frames]
        return found

    def close(self) -> None:
        self.process.communicate()
        self.reader.close()


def rate(count: float, call: Callable[..., object], *args: object) -> float:
    """How many a second, if the call does `count`."""
    return count / seconds(lambda: call(*args))


def moved(pair: Pair, count: int, batch: int) -> float:
    return rate(count, pair.run, count, batch)


def filled(pair: Pair, count: int, batch: int) -> float:
    """Read what lies there."""
    pair.reader.make()
    for _ in range(count // batch):
        pair.reader.write([FRAME] * batch)

    def read() -> None:
        left = count
        while left > 0:
            left -= len(pair.reader.read())

    return rate(count, read)


def frames(rounds: int, server: Memcached, ours: Pair, plain: Pair) -> Iterator[Line]:
    """From one process to another, frames of 200 bytes."""
    for batch, count, peers in ((1, 6_000, 6_000), (64, 25_600, 6_400), (500, 50_000, 6_000)):
        found = in_turn(rounds, partial(moved, ours, count, batch), partial(moved, plain, peers, batch))
        yield Line("frames", f"written {batch} at a time; plain loop", "/s", *found)
        if batch > 1:
            yield Line("frames", f"written {batch} at a time", "/s", found[0], goal=(">=", 20_000))
    for batch, count in ((1, 4_000), (500, 50_000)):
        found = in_turn(rounds, partial(filled, ours, count, batch), partial(filled, plain, min(count, 5_000), batch))
        yield Line("frames", f"{count:,} that lie there, written {batch} at a time, read; plain loop", "/s", *found)


def paced(rounds: int, server: Memcached, ours: Pair, plain: Pair) -> Iterator[Line]:
    for pause in (0.01, 0.1):
        count = int(2 / pause)
        found = in_turn(rounds, partial(ours.late, count, pause), partial(plain.late, count, pause))
        for share, goal in ((0.5, ("<=", 8.0)), (0.99, None)):
            a, b = ([percentile(each, share) for each in values] for values in found)
            what = f"one frame about every {pause * 1000:g} ms, p{share * 100:.0f}"
            yield Line("paced", what, "ms", a, goal=goal)
            yield Line("paced", what + "; plain loop", "ms", a, b)


def asked(server: Memcached) -> int:
    """How many commands a server has had."""
    with socket.create_connection(server.address) as one, one.makefile("rwb") as file:
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


def idle(rounds: int, server: Memcached, ours: Pair, plain: Pair) -> Iterator[Line]:
    member = Ours(server.port, "idle")
    member.make()

    def requests(wait: float) -> float:
        member.messenger.read({"idle": b""}, limit=1, wait=2.0)  # whatever went before is long ago
        before, began = asked(server), time.monotonic()
        while time.monotonic() < began + 2:
            member.messenger.read({"idle": b""}, limit=1, wait=wait)
        return (asked(server) - before) / (time.monotonic() - began)

    for wait in (0.5, 2.0):
        (found,) = in_turn(rounds, partial(requests, wait))
        yield Line("idle", f"requests of a reader that waits {wait:g} s", "/s", found)
    member.close()


# ---- clients


def clients(rounds: int, server: Memcached, ours: Pair, plain: Pair) -> Iterator[Line]:
    """Allocate and store in so many channels; fetch values of so many bytes."""
    import pylibmc
    from pymemcache.client.base import Client

    one = socket.create_connection(server.address)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    parser = codec.Parser()

    def ask(commands: list[bytes]) -> list[codec.Answer]:
        one.sendall(b"".join(commands))
        while parser.ready < len(commands):
            parser.feed(one.recv(1 << 18))
        return parser.take(len(commands))

    pure = Client(server.address, default_noreply=False, timeout=5, connect_timeout=5, no_delay=True)
    native = pylibmc.Client([f"127.0.0.1:{server.port}"], behaviors={"tcp_nodelay": True})

    def codec_write(channels: int) -> None:
        allocated = ask([codec.count(b"c%d" % n, 1) for n in range(channels)])
        ask([codec.put(b"o%d.%b" % (n, a.value), FRAME, ttl=TTL, add=True) for n, a in enumerate(allocated)])

    def pure_write(channels: int) -> None:
        for n in range(channels):
            pure.add(b"p%d.%d" % (n, pure.incr(b"c%d" % n, 1)), FRAME, TTL)

    def native_write(channels: int) -> None:
        native.add_multi({f"n{n}.{native.incr(f'c{n}', 1)}": FRAME for n in range(channels)}, TTL)

    def codec_read(keys: list[bytes]) -> None:
        ask([codec.get(key) for key in keys])

    def native_read(keys: list[bytes]) -> None:
        native.get_multi([key.decode() for key in keys])

    def repeat(call: Callable[[Any], object], value: object, times: int) -> None:
        for _ in range(times):
            call(value)

    for channels, times in ((1, 2000), (3, 1000), (20, 200)):
        ask([codec.put(b"c%d" % n, b"4611686018427387904", ttl=TTL) for n in range(channels)])
        writes = (codec_write, pure_write, native_write)
        found = in_turn(rounds, *(partial(rate, times, repeat, call, channels, times) for call in writes))
        for name, peer in zip(("pymemcache", "pylibmc"), found[1:], strict=True):
            yield Line("clients", f"a block to each of {channels} channels; {name}", "/s", found[0], peer)
    for size, number, times in ((200, 128, 200), (20_000, 64, 50), (1_000_000, 4, 20)):
        keys = [b"v%d" % n for n in range(number)]
        ask([codec.put(key, os.urandom(size), ttl=TTL) for key in keys])
        reads = (codec_read, pure.get_many, native_read)
        found = in_turn(rounds, *(partial(rate, times * number, repeat, call, keys, times) for call in reads))
        for name, peer in zip(("pymemcache", "pylibmc"), found[1:], strict=True):
            yield Line("clients", f"{number} values of {size:,} bytes; {name}", "/s", found[0], peer)
    one.close()
    pure.close()
    native.disconnect_all()


ROWS = {"frames": frames, "paced": paced, "idle": idle, "clients": clients}


def main() -> int:
    if sys.argv[1:2] == ["--write"]:
        writer(sys.argv[2], int(sys.argv[3]), sys.argv[4])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="row", help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    lines: list[Line] = []
    with Memcached("-m", "1024") as server, quietness() as quiet:
        ours, plain = Pair("ours", server.port), Pair("plain", server.port)
        try:
            for row in options.rows or ROWS:
                print(f"{row} …", file=sys.stderr, flush=True)
                lines += ROWS[row](options.rounds, server, ours, plain)
        finally:
            ours.close()
            plain.close()
    print(time.strftime("%Y-%m-%d %H:%M"), platform.python_version(), f"pymemcache {version('pymemcache')}", sep=", ")
    print(table(lines, options.markdown))
    print(f"{options.rounds} rounds; CPUs that others kept busy meanwhile: {quiet['others']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
