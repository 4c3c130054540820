"""Client and Worker on a queue, against raw Gearman sockets and the C tool, in turn in one run.

    python benchmarks/remote.py [--queue gearman] [--messenger gearman|memcached|filesystem|memory] [--pool process]

The worker is a process of its own with two children (or inline). Needs gearmand, and `gearman` (the C tool); peers:
pip install python3-gearman.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import Any

from _measure import seconds

from revolve_assistant import Client
from revolve_assistant.protocols.gearman import GearmanClient
from revolve_assistant.testing import servers

sys.path.pop(0)  # this folder, where a peer's name is this file's
WORKLOAD = b"x" * 100


def emits(count: int) -> int:
    """The task of the events' rows."""
    from revolve_assistant import emit

    for number in range(count):
        emit("tick", number)
    return count


def paced(count: int, pause: float) -> None:
    """Emits its own clock, unhurried."""
    from revolve_assistant import emit

    for _ in range(count):
        time.sleep(pause)
        emit("tick", time.time())


class Bench:
    def __init__(self, stack: ExitStack, args: Any) -> None:
        self.stack = stack
        self.gearmand = stack.enter_context(servers.Gearmand())
        self.url = f"gearman://127.0.0.1:{self.gearmand.port}/bench"
        self.count = args.count
        self.messenger: str | None = None
        if args.messenger == "memcached":
            server = stack.enter_context(servers.Memcached())
            self.messenger = f"memcached://127.0.0.1:{server.port}/bench"
        elif args.messenger == "filesystem":
            self.messenger = f"file://{stack.enter_context(tempfile.TemporaryDirectory())}/events"
        self.tool = shutil.which("gearman")

    def worker(self, pool: str, *flags: str) -> subprocess.Popen[str]:
        """A worker process, once it is ready."""
        command = [sys.executable, "-m", "revolve_assistant.cli", "worker", self.url, "--pool", pool, "-c", "2", *flags]
        if self.messenger:
            command += ["--messenger", self.messenger]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if "ready as" in line:
                break
        return process

    def client(self) -> Client:
        return Client(self.url, messenger=self.messenger)

    # ---- ours

    def submits(self) -> float:
        """One by one, until the last is acknowledged; no worker."""
        with self.client() as client:
            client.submit(abs, 1).queued(60)

            def run() -> None:
                for _ in range(self.count):
                    task = client.submit(abs, -1)
                task.queued(60)

            rate = self.count / seconds(run)
        self.empty()
        return rate

    def empty(self) -> None:
        with GearmanClient(self.gearmand.address):
            pass
        self.gearmand.restart()

    def drain(self, *flags: str) -> float:
        """From a full queue to the last result at the client."""
        with self.client() as client:
            tasks = [client.submit(abs, -1) for _ in range(self.count)]
            tasks[-1].queued(60)
            process = self.worker("process", *flags)
            tasks[0].result(60)
            first = time.perf_counter()
            for task in tasks:
                task.result(60)
            took = time.perf_counter() - first
            process.terminate()
            process.wait()
        return (self.count - 1) / took

    def latencies(self, pool: str, count: int = 1000) -> list[float]:
        process = self.worker(pool)
        found = []
        with self.client() as client:
            for _ in range(50):
                client.submit(abs, -1).result(60)
            for _ in range(count):
                began = time.perf_counter()
                client.submit(abs, -1).result(60)
                found.append(time.perf_counter() - began)
        process.terminate()
        process.wait()
        return found

    def events(self, count: int = 200_000) -> tuple[float, float]:
        """Events a second to an iterator, and the median of a paced one's way."""
        process = self.worker("process")
        with self.client() as client:
            client.submit(emits, 10).result(60)
            task = client.submit(emits, count)
            began = time.perf_counter()
            seen = sum(event.name == "tick" for event in task.events())
            rate = seen / (time.perf_counter() - began)
            assert seen == count, (seen, count)
            ways = [
                time.time() - event.args[0]
                for event in client.submit(paced, 500, 0.005).events("tick")
                if event.name == "tick"
            ]
        process.terminate()
        process.wait()
        return rate, statistics.median(ways)

    # ---- the peers

    def tool_submits(self) -> float:
        data = b"x\n" * self.count
        rate = self.count / seconds(
            lambda: subprocess.run(
                [str(self.tool), "-h", "127.0.0.1", "-p", str(self.gearmand.port), "-b", "-n", "-f", "bench"],
                input=data, stdout=subprocess.DEVNULL, check=True,
            )
        )  # fmt: skip
        self.empty()
        return rate

    def tool_drain(self) -> float:
        with GearmanClient(self.gearmand.address) as client:
            client.submit_many(("bench", WORKLOAD) for _ in range(self.count))
        return self.count / seconds(
            lambda: subprocess.run(
                [str(self.tool), "-h", "127.0.0.1", "-p", str(self.gearmand.port), "-w", "-c", str(self.count), "-f",
                 "bench"],
                stdout=subprocess.DEVNULL, check=True,
            )
        )  # fmt: skip

    def raw_latencies(self, count: int = 1000) -> list[float]:
        """The foreground round trip of raw sockets: ours, whose client and worker do nothing else."""
        code = (
            "import sys\nfrom revolve_assistant.protocols.gearman import GearmanWorker\n"
            "with GearmanWorker([('127.0.0.1', int(sys.argv[1]))]) as w:\n"
            "    w.register('same', lambda job: job.workload)\n    w.work()\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(self.gearmand.port)])
        found = []
        with GearmanClient(self.gearmand.address) as client:
            for number in range(count + 50):
                began = time.perf_counter()
                client.submit("same", WORKLOAD).result(10.0)
                if number >= 50:
                    found.append(time.perf_counter() - began)
        process.terminate()
        process.wait()
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messenger", default="gearman", choices=("gearman", "memcached", "filesystem"))
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="submit,drain,latency,events")
    args = parser.parse_args()
    only = args.only.split(",")
    for _ in range(args.rounds):
        with ExitStack() as stack:
            bench = Bench(stack, args)
            if "submit" in only:
                ours, tool = bench.submits(), bench.tool_submits()
                print(f"submit and acknowledged {ours:10,.0f}/s   C tool {tool:10,.0f}/s   {ours / tool:.2f} x")
            if "drain" in only:
                ours, tool = bench.drain(), bench.tool_drain()
                print(f"drain to the client     {ours:10,.0f}/s   C tool {tool:10,.0f}/s   {ours / tool:.2f} x")
            if "latency" in only:
                raw = statistics.median(bench.raw_latencies())
                for pool in ("process", "inline"):
                    found = statistics.median(bench.latencies(pool))
                    print(f"to result, {pool:8} {found * 1e6:4.0f} µs  raw {raw * 1e6:4.0f} µs  {found / raw:.2f} x")
            if "events" in only:
                rate, way = bench.events()
                print(f"events {rate:10,.0f}/s, paced p50 {way * 1e3:.2f} ms")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
