"""The callables that the benchmarks run, importable by children. Nothing is imported before it is needed."""

from __future__ import annotations

import time
from typing import Any


def noop(_value: object = None) -> None:
    """What a system costs by itself."""


def echo(value: Any) -> Any:
    return value


def read_and_echo(array: Any) -> Any:
    """Read every page of an array, so that lazily mapped memory is paid for, and send it back."""
    array.sum()
    return array


# --- events: ours, then the peers' loops


def storm(count: int) -> None:
    """Say `ready`, wait to be told, then emit `count` events as fast as it goes."""
    from revolve_assistant import current_task, emit

    emit("ready")
    current_task().receive()
    for number in range(count):
        emit("tick", number)


def pour(count: int) -> None:
    """Emit `count` events at once."""
    from revolve_assistant import emit

    for number in range(count):
        emit("tick", number)


def paced(count: int, pause: float) -> None:
    """One event every `pause` seconds with the time of its departure."""
    from revolve_assistant import current_task, emit

    emit("ready")
    current_task().receive()
    for _ in range(count):
        time.sleep(pause)
        emit("stamp", time.monotonic_ns())


def pipe_peer(orders: Any, out: Any) -> None:
    """A process with a raw pipe: for each order `(count, pause)` send that many tuples."""
    while (order := orders.recv()) is not None:
        count, pause = order
        if pause:
            for _ in range(count):
                time.sleep(pause)
                out.send(("stamp", time.monotonic_ns()))
        else:
            for number in range(count):
                out.send(("tick", number))


def manager_peer(orders: Any, out: Any) -> None:
    """The same over a manager's queue."""
    while (order := orders.recv()) is not None:
        for number in range(order[0]):
            out.put(("tick", number))


# --- memory


def hold(array: Any, meet: int) -> dict[str, int]:
    """Read a shared array and stay until `meet` children have it; tells this process's memory meanwhile."""
    from revolve_assistant import current_task, emit

    array.sum()
    emit("has", meet)
    current_task().receive()
    return memory()


def memory() -> dict[str, int]:
    """Bytes of this process: `Rss`, `Pss`, `Anonymous` …"""
    return memory_of("self")


def memory_of(pid: int | str) -> dict[str, int]:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        next(file)
        return {name.rstrip(":"): int(size) * 1024 for name, size, _ in map(str.split, file)}
