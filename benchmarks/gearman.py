"""The Gearman client against the C tool and whichever old Python client is installed, in turn in one run.

Needs gearmand and the `gearman` tool; peers: pip install python3-gearman gearman3
"""

from __future__ import annotations

import argparse
import importlib
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from types import ModuleType

from _measure import Line, in_turn, quietness, seconds, table

from revolve_assistant.protocols.gearman import GearmanClient, GearmanWorker
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
    print(time.strftime("%Y-%m-%d %H:%M"), platform.python_version(), f"{options.count} jobs", sep=", ")
    print(table(lines, options.markdown))
    print(f"{options.rounds} rounds; CPUs that others kept busy meanwhile: {quiet['others']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
