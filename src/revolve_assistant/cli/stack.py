"""`revolve stack ID`: where a running task is, line by line."""

from __future__ import annotations

import sys

from .flags import Command


def main(argv: list[str]) -> int:
    """Print the live stacks of one task's process. 1 when no such task runs here."""
    parser = Command("stack", "Show the live stacks of a running task: of any process of this user on this machine.")
    parser.add_argument("id", metavar="ID", help="the task's id, as `task.id` and `revolve run --json` show it")
    args = parser.read(argv)
    from ..pool.stacks import find_and_dump

    try:
        text = find_and_dump(args.id)
    except LookupError as error:
        print(f"revolve stack: {error.args[0] if error.args else error}", file=sys.stderr)
        return 1
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    return 0
