"""The Gearman client against the C tool and whichever old Python client is installed, in turn in one run; then the
provider (Queue and Messenger) against a raw socket that is fed the same number of ready-made packets.

Needs gearmand and the `gearman` tool; peers: pip install python3-gearman gearman3
"""

from __future__ import annotations

import argparse
import importlib
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from types import ModuleType

from _measure import Line, in_turn, percentile, quietness, seconds, table

from revolve_assistant.engine import Outcome, Parcel
from revolve_assistant.protocols.gearman import GearmanClient, GearmanWorker, Kind, Packet, encode
from revolve_assistant.providers import registry
from revolve_assistant.testing.servers import Gearmand

sys.path.pop(0)  # this folder, where a peer's name is this file's

PEERS = {"python3-gearman": "python3_gearman", "gearman3": "gearman"}
WORKLOAD = b"x" * 100
TEXT = WORKLOAD.decode()  # all that the old clients take
WORKER = """
import sys
from revolve_assistant.protocols.gearman import GearmanWorker
with GearmanWorker([("127.0.0.1", int(sys.argv[1]))]) as worker:
    worker.register("same", lambda job: job.workload)
    worker.work()
"""


class Bench:
    def __init__(self, server: Gearmand, count: int) -> None:
        self.server = server
        self.count = count
        self.tool = shutil.which("gearman")
        self.address = [f"{server.host}:{server.port}"]

    # ---- how many a second

    def fill(self, submit: Callable[[], object]) -> float:
        """Submit into an empty queue, which is emptied again."""
        rate = self.count / seconds(submit)
        self.empty()
        return rate

    def drained(self, drain: Callable[[], object]) -> float:
        with GearmanClient(self.server.address) as client:
            client.submit_many(("job", WORKLOAD) for _ in range(self.count))
        return self.count / seconds(drain)

    def empty(self) -> None:
        self.ours_drain(prefetch=50)

    # ---- ours

    def ours_one_by_one(self) -> None:
        with GearmanClient(self.server.address) as client:
            for _ in range(self.count):
                client.submit("job", WORKLOAD, background=True)

    def ours_bulk(self) -> None:
        with GearmanClient(self.server.address) as client:
            client.submit_many(("job", WORKLOAD) for _ in range(self.count))

    def ours_drain(self, prefetch: int = 0) -> None:
        with GearmanWorker(self.server.address, prefetch=prefetch) as worker:
            worker.register("job", lambda _: b"")
            worker.work(max_jobs=self.count)

    def ours_round_trips(self) -> None:
        with GearmanClient(self.server.address) as client:
            for _ in range(self.count):
                client.submit("same", WORKLOAD).result(10)

    # ---- the C tool: a job for each line of its input

    def tool_submit(self, *args: str) -> None:
        command = [self.tool, "-h", self.server.host, "-p", str(self.server.port), "-N", *args]
        subprocess.run(command, input=(WORKLOAD + b"\n") * self.count, stdout=subprocess.DEVNULL, check=True)

    def tool_drain(self) -> None:
        command = [self.tool, "-h", self.server.host, "-p", str(self.server.port), "-w", "-f", "job"]
        subprocess.run([*command, "-c", str(self.count)], stdout=subprocess.DEVNULL, check=False)

    # ---- python-gearman and its forks share one interface

    def peer_one_by_one(self, peer: ModuleType) -> None:
        client = peer.GearmanClient(self.address)
        for _ in range(self.count):
            client.submit_job("job", TEXT, background=True, wait_until_complete=False)
        client.shutdown()

    def peer_bulk(self, peer: ModuleType) -> None:
        client = peer.GearmanClient(self.address)
        for _ in range(self.count // 1000):
            jobs = [{"task": "job", "data": TEXT} for _ in range(1000)]
            client.submit_multiple_jobs(jobs, background=True, wait_until_complete=False)
        client.shutdown()

    def peer_drain(self, peer: ModuleType) -> None:
        left = [self.count]

        class Worker(peer.GearmanWorker):  # type: ignore[name-defined,misc]
            def on_job_complete(self, *args: object) -> object:
                left[0] -= 1
                return super().on_job_complete(*args)

            def after_poll(self, _any: object) -> bool:
                return left[0] > 0

        worker = Worker(self.address)
        worker.register_task("job", lambda _worker, _job: "")
        worker.work()
        worker.shutdown()

    def peer_round_trips(self, peer: ModuleType) -> None:
        client = peer.GearmanClient(self.address)
        for _ in range(self.count):
            client.submit_job("same", TEXT)
        client.shutdown()


class Provider:
    """The Queue and the Messenger of one gearmand."""

    def __init__(self, server: Gearmand, count: int) -> None:
        self.server, self.count = server, count
        url = f"gearman://{server.host}:{server.port}/bench"
        self.queue = registry.engine(url)
        self.writer, self.reader = registry.messenger(url), registry.messenger(url)
        for one in (self.queue, self.writer, self.reader):
            one.open()
        self.cursors = {"inbox": b""}

    def close(self) -> None:
        for one in (self.queue, self.writer, self.reader):
            one.close()

    # ---- tasks

    def parcels(self) -> list[Parcel]:
        return [Parcel(f"task{n}", body=WORKLOAD) for n in range(self.count)]

    def one_by_one(self) -> float:
        took = seconds(lambda: [self.queue.submit([parcel], None) for parcel in self.parcels()])
        self.empty(100)
        return self.count / took

    def bulk(self) -> float:
        took = seconds(lambda: self.queue.submit(self.parcels(), None))
        self.empty(100)
        return self.count / took

    def drain(self, limit: int) -> float:
        self.queue.submit(self.parcels(), None)
        return self.count / seconds(lambda: self.empty(limit))

    def empty(self, limit: int) -> None:
        left = self.count
        while left:
            leases = self.queue.take(["default"], limit=limit, wait=5)
            self.queue.settle([(lease, Outcome()) for lease in leases])
            left -= len(leases)

    # ---- messages

    def frames(self, batch: int) -> float:
        """Frames a second, from the first write to the last one read and forgotten."""
        reading = threading.Thread(target=self.read, args=(self.count,))

        def both() -> None:
            reading.start()
            for _ in range(0, self.count, batch):
                self.writer.write([("inbox", WORKLOAD)] * batch)
            reading.join()

        return self.count // batch * batch / seconds(both)

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

    def paced(self, count: int = 300) -> float:
        """Median delay of a frame, in microseconds, when one is written every 2 ms."""
        late: list[float] = []
        reading = threading.Thread(target=lambda: late.extend(self.read(count)))
        reading.start()
        for _ in range(count):
            self.writer.write([("inbox", b"%.9f" % time.perf_counter())])
            time.sleep(0.002)
        reading.join()
        return percentile(late, 0.5) * 1e6

    # ---- a raw socket, and packets that are made before

    def raw(self, packets: bytes, answer: Kind, count: int) -> float:
        """Answers a second to packets sent at once."""
        with socket.create_connection(self.server.address) as one:
            one.sendall(encode(Packet(Kind.CAN_DO, (b"raw",))))

            def exchange() -> None:
                sending = threading.Thread(target=one.sendall, args=(packets,))
                sending.start()
                marker = b"\0RES" + int(answer).to_bytes(4, "big")
                got, rest = 0, b""
                while got < count:
                    data = rest + one.recv(1 << 16)
                    got += data.count(marker)
                    rest = data[-7:] if data[-7:].count(marker) == 0 else b""
                sending.join()

            return count / seconds(exchange)

    def raw_submit(self) -> float:
        sent = (encode(Packet(Kind.SUBMIT_JOB_BG, (b"raw", b"u%d" % n, WORKLOAD))) for n in range(self.count))
        rate = self.raw(b"".join(sent), Kind.JOB_CREATED, self.count)
        self.raw_drain(fill=False)
        return rate

    def raw_drain(self, fill: bool = True) -> float:
        if fill:
            with GearmanClient(self.server.address) as client:
                client.submit_many(("raw", WORKLOAD) for _ in range(self.count))
        rate = self.raw(encode(Packet(Kind.GRAB_JOB_UNIQ)) * self.count, Kind.JOB_ASSIGN_UNIQ, self.count)
        with GearmanWorker(self.server.address, prefetch=50) as worker:  # what the raw one took came back
            worker.register("raw", lambda _: b"")
            worker.work(max_jobs=self.count)
        return rate


def peers(bench: Bench) -> dict[str, ModuleType]:
    """Those that are installed, and can submit and take a job on this Python at all."""
    found = {}
    for name, module in PEERS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                peer = importlib.import_module(module)
                small = Bench(bench.server, 1)
                small.peer_one_by_one(peer)
                small.peer_drain(peer)
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
            bench.server.restart()
        else:
            found[name] = peer
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=5000, help="jobs in a measurement (default 5000)")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines: list[Line] = []
    with Gearmand() as server, quietness() as quiet:
        bench = Bench(server, options.count)
        pythons = peers(bench)

        def row(what: str, ours: Callable[[], float], others: dict[str, Callable[[], float]]) -> None:
            print(f"{what} …", file=sys.stderr, flush=True)
            values = in_turn(options.rounds, ours, *others.values())
            for name, peer in zip(others, values[1:], strict=True):
                lines.append(Line("gearman", f"{what}; {name}", "/s", values[0], peer))

        def all_peers(
            tool: Callable[[], float], python: Callable[[ModuleType], float]
        ) -> dict[str, Callable[[], float]]:
            found = {"C tool": tool} if bench.tool else {}
            for name, peer in pythons.items():
                found[name] = lambda peer=peer: python(peer)
            return found

        def tool_background() -> float:
            return bench.fill(lambda: bench.tool_submit("-b", "-f", "job"))

        row(
            "background, one by one",
            lambda: bench.fill(bench.ours_one_by_one),
            all_peers(tool_background, lambda peer: bench.fill(lambda: bench.peer_one_by_one(peer))),
        )
        row(
            "background, in bulk",
            lambda: bench.fill(bench.ours_bulk),
            all_peers(tool_background, lambda peer: bench.fill(lambda: bench.peer_bulk(peer))),
        )
        drains = all_peers(
            lambda: bench.drained(bench.tool_drain), lambda peer: bench.drained(lambda: bench.peer_drain(peer))
        )
        row("drain", lambda: bench.drained(bench.ours_drain), drains)
        row("drain, prefetch=50", lambda: bench.drained(lambda: bench.ours_drain(50)), drains)
        with subprocess.Popen([sys.executable, "-c", WORKER, str(server.port)]) as worker:
            try:
                row(
                    "submit to result, our worker",
                    lambda: options.count / seconds(bench.ours_round_trips),
                    all_peers(
                        lambda: options.count / seconds(lambda: bench.tool_submit("-f", "same")),
                        lambda peer: options.count / seconds(lambda: bench.peer_round_trips(peer)),
                    ),
                )
            finally:
                worker.terminate()
        provider = Provider(server, options.count)
        try:
            row("provider: submit one by one", provider.one_by_one, {"raw socket, pipelined": provider.raw_submit})
            row("provider: submit in bulk", provider.bulk, {"raw socket, pipelined": provider.raw_submit})
            row("provider: take and settle by 1", lambda: provider.drain(1), {"raw socket, grabs": provider.raw_drain})
            row(
                "provider: take and settle by 100",
                lambda: provider.drain(100),
                {"raw socket, grabs": provider.raw_drain},
            )
            row("provider: frames through", lambda: provider.frames(50), {"raw socket, pipelined": provider.raw_submit})
            print("provider: paced frames …", file=sys.stderr, flush=True)
            paced = sorted(provider.paced() for _ in range(options.rounds))
        finally:
            provider.close()
    print(f"a frame written every 2 ms arrives after {paced[len(paced) // 2]:.0f} µs (median)")
    print(time.strftime("%Y-%m-%d %H:%M"), platform.python_version(), f"{options.count} jobs", sep=", ")
    print(table(lines, options.markdown))
    print(f"{options.rounds} rounds; CPUs that others kept busy meanwhile: {quiet['others']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
