"""`revolve cancel ID …`: stop tasks of any process, or take them out of the queue."""

from __future__ import annotations

from time import monotonic

from ..event import ENDS
from .flags import Command, seconds
from .reach import LOST, add_flags, complain, ends, interrupts, open_client, unknown

EPILOG = """\
A task that nobody has taken leaves the queue, one that runs is stopped: asked first, then by an exception in it, then
by signals. Whoever waits for it is told.

exit codes: 0 cancelled, 1 it ended otherwise, or not in time, 2 the call was wrong, 4 unknown; of several tasks
the highest."""


def main(argv: list[str]) -> int:
    """Cancel, and wait for the ends."""
    command = Command("cancel", "Cancel tasks, whoever submitted them, and say how they ended.",
                      usage="revolve cancel [flags] ID …", epilog=EPILOG)  # fmt: skip
    command.add_argument("ids", metavar="ID", nargs="+", help="the task's id")
    command.flag("--timeout", type=seconds, default=60.0, metavar="S", help="seconds to wait for the end (default: 60)")
    add_flags(command)
    found = command.read(argv)
    code = 0
    with interrupts(), open_client(found) as client:
        tasks = [client.attach(id) for id in dict.fromkeys([*found.ids, *found.tail])]
        for task in tasks:
            task.cancel()
        deadline = monotonic() + found.timeout
        for task in tasks:
            state = ends(client, task, max(0.0, deadline - monotonic()))
            if state == "cancelled":
                print(f"{task.id} cancelled")
            elif why := unknown(task):
                complain("cancel", why)
                code = LOST
            else:
                complain("cancel", f"task {task.id} {_how(state, found.timeout)}")
                code = max(code, 1)
    return code


def _how(state: str, seconds: float) -> str:
    if state in ENDS:
        return f"had {state}" if state in ("succeeded", "failed") else "was lost"
    if state == "running":
        return f"still runs after {seconds:g} s: it was told to stop"
    return f"could not be taken out of the queue within {seconds:g} s: try again once it runs"
