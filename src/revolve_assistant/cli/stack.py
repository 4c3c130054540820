"""`revolve stack ID`: where a running task is, line by line."""

from __future__ import annotations

import argparse
import os
import sys

from .flags import Command, seconds
from .reach import LOST, add_flags, complain, ends, interrupts, open_client, unknown


def main(argv: list[str]) -> int:
    """Print the live stacks of one task's process. 1 when it does not run, 4 when nobody knows it."""
    command = Command(
        "stack",
        "Show the live stacks of a running task: of any process of this user on this machine, or by its queue.",
        epilog="It is looked for on this machine first; then, if a queue is named, its worker is asked.\n\n"
        "exit codes: 0 shown, 1 no such task runs, 2 the call was wrong, 4 the queue knows no such task.",
    )
    command.add_argument("id", metavar="ID", help="the task's id, as `task.id` and `revolve run --json` show it")
    command.flag(
        "--timeout", type=seconds, default=10.0, metavar="S", help="seconds to wait for it to run (default: 10)"
    )
    add_flags(command)
    found = command.read(argv)
    from ..pool.stacks import find_and_dump

    try:
        text = find_and_dump(found.id)
    except LookupError as error:
        if not (found.url or os.environ.get("REVOLVE_URL")):
            complain("stack", f"{error.args[0]}; say --url to ask the worker that has it elsewhere")
            return 1
        return _ask(found)
    _print(text)
    return 0


def _ask(found: argparse.Namespace) -> int:
    with interrupts(), open_client(found) as client:
        task = client.attach(found.id)
        state = ends(client, task, found.timeout, "running")
        if why := unknown(task):
            complain("stack", why)
            return LOST
        if state != "running":
            complain("stack", f"task {task.id} does not run: it {_how(state)}")
            return 1
        try:
            text = client.stack(task)
        except LookupError as error:
            complain("stack", error.args[0])
            return 1
    _print(text)
    return 0


def _how(state: str) -> str:
    return {"pending": "waits", "lost": "was lost", "cancelled": "was cancelled"}.get(state, state)


def _print(text: str) -> None:
    from ..views.escape import printable

    text = printable(text, keep_newlines=True)
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
