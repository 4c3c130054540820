"""The pages of `revolve top`: which rows each has, and what stands in them. Pure: what a feed told and a time go in."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...event import ENDS
from ..board import QueueState, TaskState
from ..escape import printable
from ..queues import span

if TYPE_CHECKING:
    from ...engine import Rule
    from ...wire.about import About
    from ..feed import View

RATED = 10.0  # seconds over which ends are counted
BAR = 12  # columns
STYLES = {
    "waiting": "yellow",
    "retrying": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "paused": "yellow",
    "succeeded": "green",
    "failed": "red",
    "lost": "red",
    "buried": "red",
    "cancelled": "dim",
}


class Column(NamedTuple):
    """`width` columns, and `share` parts of what is left; `from_width`: only on screens as wide as that."""

    head: str
    width: int
    share: int = 0
    right: bool = False
    from_width: int = 0


class FunctionState(NamedTuple):
    """A function, as far as its tasks are known."""

    name: str
    running: int
    waiting: int
    ended: int
    failed: int
    rate: float
    rule: Rule | None


class Page:
    """What all pages have: a title, columns, and what to say where there is no row."""

    title = ""
    none = ""
    columns: Sequence[Column] = ()

    def key(self, item: Any) -> str:
        """What the cursor holds on to."""
        return str(item.id)

    def words(self, item: Any) -> str:
        """What a search looks through, in small letters."""
        raise NotImplementedError

    def cells(self, item: Any, now: float) -> Sequence[str]:
        """A text for each column, not yet escaped."""
        raise NotImplementedError

    def state(self, item: Any) -> str:
        """What gives the row its colour."""
        return ""

    def function(self, item: Any) -> str:
        """The function that the row is about, "": none."""
        return ""


class Tasks(Page):
    title = "Tasks"
    none = "no task is known: the ones that workers run from now on appear here"
    columns = (
        Column("STATE", 9),
        Column("FUNCTION", 10, 2),
        Column("PROGRESS", BAR),
        Column("", 4, right=True),
        Column("", 6, 3),
        Column("FOR", 7, right=True),
        Column("TRY", 3, right=True),
        Column("WORKER", 8, 1),
        Column("ID", 32, from_width=132),
    )

    def words(self, item: TaskState) -> str:
        message = item.progress.message or "" if item.progress is not None else ""
        return f"{item.state} {item.name} {message} {item.queue} {item.worker} {item.id}".lower()

    def cells(self, item: TaskState, now: float) -> Sequence[str]:
        fraction, note = measures(item)
        runs = item.state == "running"
        until = item.ended or now
        return (
            item.state,
            short(item.name) or "?",
            bar(fraction, now, BAR) if runs else "",
            f"{fraction:.0%}" if fraction is not None and (runs or item.state in ENDS) else "",
            note,
            span(until - item.started) if item.started and (runs or item.state in ENDS) else "",
            str(item.attempt or ""),
            item.worker,
            item.id,
        )

    def state(self, item: TaskState) -> str:
        return item.state

    def function(self, item: TaskState) -> str:
        return item.name


class Functions(Page):
    title = "Functions"
    none = "no worker has run a function yet"
    columns = (
        Column("FUNCTION", 20, 2),
        Column("RUNNING", 7, right=True),
        Column("WAITING", 7, right=True),
        Column("ENDED", 6, right=True),
        Column("FAILED", 6, right=True),
        Column("EACH S", 6, right=True),
        Column("RULE", 10, 1),
    )

    def key(self, item: FunctionState) -> str:
        return item.name

    def words(self, item: FunctionState) -> str:
        return f"{item.name} {self.state(item)}".lower()

    def cells(self, item: FunctionState, now: float) -> Sequence[str]:
        from ...cli.limit import words

        numbers = (f"{each:,}" if each else "" for each in (item.running, item.waiting, item.ended, item.failed))
        rate = f"{item.rate:.1f}" if item.rate else ""
        return (item.name, *numbers, rate, words(item.rule) if item.rule is not None else "")

    def state(self, item: FunctionState) -> str:
        return "paused" if item.rule is not None and item.rule.paused else ""

    def function(self, item: FunctionState) -> str:
        return item.name


class Queues(Page):
    title = "Queues"
    none = "no task, and nobody who takes"
    columns = (
        Column("QUEUE", 8, 1),
        Column("PENDING", 7, right=True),
        Column("DELAYED", 7, right=True),
        Column("BLOCKED", 7, right=True),
        Column("TAKEN", 6, right=True),
        Column("RUNNING", 7, right=True),
        Column("BURIED", 6, right=True),
        Column("OLDEST", 7, right=True),
        Column("EACH S", 6, right=True),
        Column("WORKERS", 7, right=True),
    )

    def __init__(self) -> None:
        self.rates: Mapping[str, float] = {}

    def key(self, item: QueueState) -> str:
        return item.queue

    def words(self, item: QueueState) -> str:
        return item.queue.lower()

    def cells(self, item: QueueState, now: float) -> Sequence[str]:
        numbers = (item.pending, item.delayed, item.blocked, item.leased, item.running, item.buried)
        return (
            item.queue,
            *(f"{number:,}" for number in numbers),
            span(item.oldest) if item.oldest else "",
            f"{self.rates.get(item.queue, 0.0):.1f}",
            str(item.workers),
        )


class Workers(Page):
    title = "Workers"
    none = "no worker: start one with revolve worker"
    columns = (
        Column("WORKER", 14, 2),
        Column("STATE", 8),
        Column("RUNS", 4, right=True),
        Column("OF", 4, right=True),
        Column("EACH S", 6, right=True),
        Column("ENDED", 8, right=True),
        Column("UP", 7, right=True),
        Column("QUEUES", 8, 1),
        Column("VERSION", 8, from_width=90),
    )

    def key(self, item: About) -> str:
        return item.key or item.name

    def words(self, item: About) -> str:
        return f"{item.name} {item.state} {' '.join(item.queues)} {item.version}".lower()

    def cells(self, item: About, now: float) -> Sequence[str]:
        return (
            item.name,
            item.state or "?",
            str(sum(item.busy.values())),
            str(item.concurrency),
            f"{item.rate:.1f}",
            f"{item.settled:,}",
            span(now - item.started) if item.started else "?",
            ",".join(item.queues),
            item.version,
        )

    def state(self, item: About) -> str:
        return item.state


class Failures(Page):
    title = "Failures"
    none = "no task has come to a bad end"
    columns = (
        Column("WHEN", 11),
        Column("STATE", 6),
        Column("FUNCTION", 12, 1),
        Column("TRY", 3, right=True),
        Column("WHY", 20, 3),
        Column("ID", 32, from_width=132),
    )

    def words(self, item: TaskState) -> str:
        return f"{self.state(item)} {item.name} {item.reason} {item.queue} {item.id}".lower()

    def cells(self, item: TaskState, now: float) -> Sequence[str]:
        form = "%H:%M:%S" if now - item.ended < 43200 else "%m-%d %H:%M"
        lines = item.reason.strip().splitlines()
        return (
            time.strftime(form, time.localtime(item.ended)),
            self.state(item),
            short(item.name) or "?",
            str(item.attempt or ""),
            lines[0] if lines else "",
            item.id,
        )

    def state(self, item: TaskState) -> str:
        return "buried" if item.buried else item.state

    def function(self, item: TaskState) -> str:
        return item.name


# ---------------------------------------------------------------- which rows there are


def functions(
    tasks: Iterable[TaskState], workers: Iterable[About], rules: Mapping[str, Rule], now: float
) -> list[FunctionState]:
    """Those of which a task or a rule is known, or that a worker says it has run, by name."""
    running: Counter[str] = Counter()
    waiting: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    recent: Counter[str] = Counter()
    for task in tasks:
        if not task.name:
            continue
        if task.state in ENDS:
            ended[task.name] += 1
            failed[task.name] += task.state in ("failed", "lost")
            recent[task.name] += now - task.ended <= RATED
        elif task.state == "running":
            running[task.name] += 1
        else:
            waiting[task.name] += 1
    names = {name for worker in workers for name in worker.functions}
    return [
        FunctionState(
            name, running[name], waiting[name], ended[name], failed[name], recent[name] / RATED, rules.get(name)
        )
        for name in sorted({*names, *rules, *running, *waiting, *ended})
    ]


def queue_rates(tasks: Iterable[TaskState], now: float) -> dict[str, float]:
    """Tasks of each queue that ended, a second, in the last ten seconds."""
    ended = Counter(task.queue for task in tasks if task.state in ENDS and now - task.ended <= RATED)
    return {queue: number / RATED for queue, number in ended.items()}


def failures(tasks: Iterable[TaskState]) -> list[TaskState]:
    """Those that failed or are lost, the latest first."""
    return sorted((task for task in tasks if task.state in ("failed", "lost")), key=lambda task: -task.ended)


def rate(view: View) -> float:
    """Tasks that end, a second: in the last ten, or as workers say."""
    seen = sum(sum(each) for each in view.rates[-int(RATED) - 1 : -1]) / RATED
    return seen or sum(each.rate for each in view.workers)


def searched(page: Page, items: Sequence[Any], text: str) -> Sequence[Any]:
    """Those in which every word of `text` occurs."""
    wanted = text.lower().split()
    if not wanted:
        return items
    return [item for item in items if all(word in words for words in (page.words(item),) for word in wanted)]


# ---------------------------------------------------------------- what stands in a cell


def short(name: str) -> str:
    """A function's name without its module."""
    return name.rpartition(":")[2]


def measures(task: TaskState) -> tuple[float | None, str]:
    """Fraction, and count with message. What succeeded is done, whatever it said last."""
    progress = task.progress
    if progress is None:
        return None, ""
    fraction = 1.0 if task.state == "succeeded" else progress.fraction
    if fraction is None and progress.done is not None and progress.total:
        fraction = progress.done / progress.total
    if fraction is not None:
        fraction = min(1.0, max(0.0, fraction))
    count = "" if progress.done is None else f"{progress.done:.12g}"
    if count and progress.total is not None:
        count += f"/{progress.total:.12g}"
    return fraction, " ".join(filter(None, (count, progress.message or "")))


def bar(fraction: float | None, now: float, width: int) -> str:
    """A bar; without a fraction something that moves."""
    if fraction is None:
        at = int(now * 2) % width
        return "─" * at + "━" + "─" * (width - at - 1)
    full = int(fraction * width)
    return "━" * full + "─" * (width - full)


def widths(columns: Sequence[Column], width: int) -> list[int]:
    """Of each column on a screen of that width, 0: it is not shown. A space stands between two."""
    shown = [column.width if width >= column.from_width else 0 for column in columns]
    left = width - sum(shown) - sum(map(bool, shown)) + 1
    shares = sum(column.share for column, each in zip(columns, shown, strict=True) if each)
    for at, column in enumerate(columns):
        if left > 0 and shown[at] and column.share:
            part = left * column.share // shares
            shown[at], left, shares = shown[at] + part, left - part, shares - column.share
    return shown


def line(columns: Sequence[Column], sizes: Sequence[int], cells: Sequence[str]) -> str:
    """The cells as one line of exactly these widths, escaped."""
    from rich.cells import cell_len, set_cell_size

    parts = []
    for column, size, cell in zip(columns, sizes, cells, strict=True):
        if not size:
            continue
        text = printable(cell)
        length = cell_len(text)
        if length > size:
            parts.append(set_cell_size(text, size - 1) + "…")
        else:
            pad = " " * (size - length)
            parts.append(pad + text if column.right else text + pad)
    return " ".join(parts)
