"""`revolve purge QUEUE`: throw away what waits in a queue, or what is buried there."""

from __future__ import annotations

import sys

from ..engine import Count
from .flags import Command
from .reach import add_flags, complain, interrupts, open_client


def main(argv: list[str]) -> int:
    """Ask, then remove; 1 if the answer was no."""
    command = Command(
        "purge",
        "Remove all tasks of a queue that nobody has taken, or its buried ones. What runs goes on.",
        usage="revolve purge [flags] QUEUE",
        epilog="Whoever waits for a removed task is told that it was cancelled.",
    )
    command.add_argument("queue", metavar="QUEUE", help="its name, such as default")
    command.flag("--buried", action="store_true", help="remove the buried tasks, not those that wait")
    command.flag("-y", "--yes", action="store_true", help="do not ask")
    add_flags(command)
    found = command.read(argv)
    asks = sys.stdin is not None and sys.stdin.isatty()
    if not found.yes and not asks:
        command.error("nobody can be asked here whether that is meant: say --yes")
    with interrupts(), open_client(found) as client:
        counts = {each.queue: each for each in client.counts()}
        there = counts.get(found.queue, Count(found.queue))
        number = there.buried if found.buried else there.pending + there.delayed + there.blocked
        if not number:
            others = ", ".join(sorted(counts)) or "none"
            complain(
                "purge", f"there is nothing to remove from queue {found.queue!r} (queues that hold tasks: {others})"
            )
            return 0
        if not found.yes and not _sure(found.queue, number, found.buried):
            complain("purge", "nothing was removed")
            return 1
        print(client.purge(found.queue, buried=found.buried))
    return 0


def _sure(queue: str, number: int, buried: bool) -> bool:
    from ..views.escape import printable

    what = "buried task" if buried else "waiting task"
    sys.stderr.write(f"Remove {number:,} {what}{'s' if number != 1 else ''} of queue {printable(queue)}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
