"""What `revolve top` sees, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .escape import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_WORKERS = 12  # of a terminal; the rest is a number


def render(seen: dict[str, Any], height: int) -> RenderableType:
    """`seen` is what `cli.top.look` found; at most `height` lines, about."""
    from rich.console import Group
    from rich.text import Text

    queues, workers, running, rules = seen["queues"], seen["workers"], seen["running"], seen["rules"]
    room = max(3, height - 10 - len(queues) - len(rules))
    most_workers = max(1, min(MOST_WORKERS, room // 2)) if height < 1000 else height
    parts: list[Any] = [
        Text(f"{printable(seen['place'])}, namespace {printable(seen['namespace'])}", style="bold"),
        Text(),
        _table(
            ("QUEUE", "PENDING", "DELAYED", "BLOCKED", "LEASED", "RUNNING", "BURIED", "OLDEST", "WORKERS"),
            [
                (
                    each["queue"],
                    *(f"{each[key]:,}" for key in ("pending", "delayed", "blocked", "leased", "running", "buried")),
                    span(each["oldest"]) if each["oldest"] else "",
                    str(each["workers"]),
                )
                for each in queues
            ],
            right=range(1, 9),
            none="no task, and nobody who takes",
        ),
        Text(),
        _table(
            ("WORKER", "STATE", "RUNS", "OF", "EACH S", "QUEUES", "UP", "VERSION"),
            [
                (
                    each["name"],
                    each["state"] or "?",
                    str(each["running"]),
                    str(each["concurrency"]),
                    f"{each['rate']:.1f}",
                    ",".join(each["queues"]),
                    span(seen["time"] - each["started"]) if each["started"] else "?",
                    each["version"],
                )
                for each in workers
            ],
            right=range(2, 5),
            most=most_workers,
            none="no worker: start one with revolve worker",
        ),
    ]
    left = room - min(len(workers), most_workers)
    if running:
        parts += [
            Text(),
            _table(
                ("RUNNING TASK", "FUNCTION", "FOR", "ATTEMPT", "WORKER"),
                [
                    (each["id"], each["function"], span(each["seconds"]), str(each["attempt"]), each["worker"])
                    for each in running
                ],
                right=(2, 3),
                most=max(1, left) if height < 1000 else height,
            ),
        ]
    if rules:
        from ..cli.limit import words
        from ..engine import Rule

        rows = [(each["name"], words(Rule(**each))) for each in rules]
        parts += [Text(), _table(("RULE FOR", "WHAT HOLDS"), rows)]
    return Group(*parts)


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], right: Iterable[int] = (), most: int = 1000, none: str = "none"
) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    numbers = set(right)
    for at, head in enumerate(heads):
        table.add_column(head, justify="right" if at in numbers else "left", no_wrap=True, overflow="ellipsis")
    for row in rows[:most]:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if len(rows) > most:
        table.add_row(Text(f"+{len(rows) - most} more", style="dim"))
    if not rows:
        return Text(none, style="dim")
    return table


def span(seconds: float) -> str:
    """A time span for eyes: 4.2 s, 3 min, 5 h, 2 d."""
    if seconds < 100:
        return f"{max(0.0, seconds):.1f} s"
    for size, unit in ((60.0, "min"), (3600.0, "h"), (86400.0, "d")):
        if seconds < 100 * size or unit == "d":
            return f"{seconds / size:.0f} {unit}"
    raise AssertionError(seconds)
