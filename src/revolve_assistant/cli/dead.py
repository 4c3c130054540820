"""`revolve dead`: the buried tasks."""

from __future__ import annotations

import json
import time

from .flags import Command, count
from .reach import add_flags, complain, open_client


def main(argv: list[str]) -> int:
    """List them, the latest first."""
    command = Command(
        "dead",
        "List tasks that came to a bad end and are kept: they failed, killed their workers, or were refused.",
        epilog="`revolve retry ID` runs one again, `revolve purge QUEUE --buried` removes them.",
    )
    command.flag(
        "--limit", type=count, default=100, metavar="N", help="at most so many, the latest first (default: 100)"
    )
    command.flag("--json", action="store_true", help="print one JSON object a line: "
                 "id, function, queue, deliveries, reason, time")  # fmt: skip
    add_flags(command)
    found = command.read(argv)
    with open_client(found) as client:
        dead = client.buried(limit=found.limit)
    if found.json:
        for each in dead:
            fields = {
                "id": each.id,
                "function": each.name,
                "queue": each.queue,
                "deliveries": each.deliveries,
                "reason": each.reason,
                "time": round(each.when, 3),
            }
            print(json.dumps(fields))
        return 0
    if not dead:
        complain("dead", "no task is buried")
        return 0
    from ..views.escape import printable

    rows = [("ID", "WHEN", "QUEUE", "FUNCTION", "TIMES", "WHY")]
    for each in dead:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.when))
        reason = (each.reason.strip().splitlines() or [""])[0]
        rows.append((each.id, when, each.queue, each.name or "?", str(each.deliveries), reason))
    rows = [tuple(map(printable, row)) for row in rows]  # type: ignore[misc]
    widths = [max(len(row[at]) for row in rows) for at in range(5)]
    for row in rows:
        print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[5]]).rstrip())
    if len(dead) == found.limit:
        complain("dead", f"there may be more than {found.limit}: say --limit")
    return 0
