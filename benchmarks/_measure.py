"""Ours and the peer in turn, the ratio of each round, and the table of it all."""

from __future__ import annotations

import gc
import operator
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

_COMPARE = {">=": operator.ge, "<=": operator.le}


@dataclass
class Line:
    """One line of the table. `goal` is for the ratio ours / peer, or for `ours` itself where there is no peer."""

    row: str
    what: str
    unit: str
    ours: list[float]
    peer: list[float] = field(default_factory=list)
    goal: tuple[str, float] | None = None
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.peer, strict=True)] if self.peer else []

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        sign, bound = self.goal
        return bool(_COMPARE[sign](statistics.median(self.ratios or self.ours), bound))

    def cells(self) -> tuple[str, ...]:
        ratios = self.ratios
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}…{max(ratios):.2f})" if ratios else "–"
        goal = f"{self.goal[0]} {self.goal[1]:g}{'' if ratios else ' ' + self.unit}" if self.goal else "–"
        return (
            self.row,
            self.what,
            f"{_number(statistics.median(self.ours))} {self.unit}",
            f"{_number(statistics.median(self.peer))} {self.unit}" if self.peer else "–",
            spread,
            goal,
            {True: "yes", False: "NO", None: "–"}[self.met],
        )

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratios": self.ratios, "met": self.met}


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


QUIET = 0.2  # CPUs that others may keep busy in a round that counts
patience = 0.0  # seconds that a comparison may spend on repeating disturbed rounds


def in_turn(rounds: int, *measures: Callable[[], Any]) -> list[list[Any]]:
    """A B C A B C …: what each measured, round by round. Disturbed rounds are repeated while `patience` lasts."""
    found: list[list[Any]] = [[] for _ in measures]
    deadline = time.monotonic() + patience
    while len(found[0]) < rounds:
        with quietness() as seen:
            values = []
            for measure in measures:
                gc.collect()
                values.append(measure())
        if seen["others"] > QUIET and time.monotonic() < deadline:
            time.sleep(1)
            continue
        for kept, value in zip(found, values, strict=True):
            kept.append(value)
        _others.append(seen["others"])
    return found


_others: list[float] = []


def disturbance() -> float | None:
    """CPUs that others kept busy in the rounds that counted since the last call, median."""
    found = statistics.median(_others) if _others else None
    _others.clear()
    return found


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def table(lines: list[Line], markdown: bool = False) -> str:
    head = ("row", "what", "ours", "peer", "ratio median (min…max)", "goal", "met")
    rows = [head, *(line.cells() for line in lines)]
    if markdown:
        rows.insert(1, ("---",) * len(head))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    text.insert(1, "  ".join("-" * width for width in widths))
    text += [f"{line.row}: {line.note}" for line in lines if line.note]
    return "\n".join(text)


def children_of(pid: int) -> list[int]:
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
            found += [int(each) for each in file.read().split()]
    return found


def _live(pid: int) -> int:
    """Ticks that the living descendants of a process have used, and their ended children."""
    total = 0
    for child in children_of(pid):
        try:
            with open(f"/proc/{child}/stat", encoding="utf-8") as file:
                total += sum(int(each) for each in file.read().rpartition(")")[2].split()[11:15])
            total += _live(child)
        except OSError:  # it has just ended
            continue
    return total


def _busy() -> tuple[float, float]:
    """CPU seconds that all processes of this machine have used, and those that we and our descendants have."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(each) for each in file.readline().split()[1:]]
    ticks = os.sysconf("SC_CLK_TCK")
    own = sum(os.times()[:4]) + _live(os.getpid()) / ticks
    return (sum(fields[:3]) + sum(fields[5:8])) / ticks, own


@contextmanager
def quietness() -> Iterator[dict[str, float]]:
    """How busy others kept the machine meanwhile: `others` is the CPUs' worth of it."""
    found: dict[str, float] = {}
    all_before, own_before = _busy()
    start = time.monotonic()
    yield found
    took = time.monotonic() - start
    all_after, own_after = _busy()
    found["load"] = os.getloadavg()[0]
    found["others"] = max(0.0, (all_after - all_before - (own_after - own_before)) / took)
