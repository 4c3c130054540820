"""The fork engine beside `multiprocessing`: `python benchmarks/fork.py [--tasks 300] [--rounds 7] [--heap MiB]`.

One process for each task, its result over a pipe, in turn (A B A B …); the ratio of each pair of rounds, their median.
`bare` is what `os.fork`, one byte over a pipe and `waitpid` take: nobody can be faster. `--heap` fills the caller with
so much memory of small objects first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
from collections.abc import Callable
from time import perf_counter

from revolve_assistant import Client

FORK = multiprocessing.get_context("fork")


def work(number: int) -> int:
    return number


def send(connection: multiprocessing.connection.Connection, number: int) -> None:
    connection.send(work(number))
    connection.close()


def bare(count: int) -> None:
    for _ in range(count):
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(write, b"x")
            os._exit(0)
        os.close(write)
        os.read(read, 1)
        os.waitpid(pid, 0)
        os.close(read)


def peer(count: int, at_once: int) -> None:
    live: list[tuple[multiprocessing.connection.Connection, multiprocessing.process.BaseProcess]] = []

    def settle() -> None:
        read, process = live.pop(0)
        read.recv()
        process.join()
        read.close()

    for number in range(count):
        if len(live) == at_once:
            settle()
        read, write = FORK.Pipe(False)
        process = FORK.Process(target=send, args=(write, number))
        process.start()
        write.close()
        live.append((read, process))
    while live:
        settle()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--heap", type=int, default=0)
    flags = parser.parse_args()
    count = flags.tasks
    heap = [[index] for index in range(flags.heap * (1 << 20) // 100)]

    with Client("fork://", max_workers=2) as client:

        def one() -> None:
            for number in range(count):
                assert client.submit(work, number).result() == number

        def many() -> None:
            tasks = [client.submit(work, number) for number in range(count)]
            assert [task.result() for task in tasks] == list(range(count))

        rows: list[tuple[str, Callable[[], None], Callable[[], None]]] = [
            ("one at a time: multiprocessing.Process", one, lambda: peer(count, 1)),
            ("two at a time: multiprocessing.Process", many, lambda: peer(count, 2)),
            ("one at a time: bare os.fork", one, lambda: bare(count)),
        ]
        for name, ours, theirs in rows:
            pairs = [(seconds(ours) / count, seconds(theirs) / count) for _ in range(flags.rounds)]
            ratios = sorted(mine / other for mine, other in pairs)
            mine, other = (statistics.median(each) * 1e3 for each in zip(*pairs, strict=True))
            print(
                f"{name:42} ours {mine:6.2f} ms, peer {other:6.2f} ms, "
                f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})"
            )
    del heap


def seconds(call: Callable[[], None]) -> float:
    began = perf_counter()
    call()
    return perf_counter() - began


if __name__ == "__main__":
    main()
