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


def in_turn(rounds: int, *measures: Callable[[], Any]) -> list[list[Any]]:
    """A B C A B C …: what each measured, round by round."""
    found: list[list[Any]] = [[] for _ in measures]
    for _ in range(rounds):
        for measure, values in zip(measures, found, strict=True):
            gc.collect()
            values.append(measure())
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


def _busy() -> tuple[float, float]:
    """CPU seconds that all processes of this machine have used, and those that we and our ended children have."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(each) for each in file.readline().split()[1:]]
    ticks = os.sysconf("SC_CLK_TCK")
    own = os.times()
    return (sum(fields[:3]) + sum(fields[5:8])) / ticks, sum(own[:4])


@contextmanager
def quietness() -> Iterator[dict[str, float]]:
    """How busy others kept the machine meanwhile: `others` is the CPUs' worth of it; children must have ended."""
    found: dict[str, float] = {}
    all_before, own_before = _busy()
    start = time.monotonic()
    yield found
    took = time.monotonic() - start
    all_after, own_after = _busy()
    found["load"] = os.getloadavg()[0]
    found["others"] = max(0.0, (all_after - all_before - (own_after - own_before)) / took)
