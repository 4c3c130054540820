"""`revolve retry ID …`: run buried tasks again."""

from __future__ import annotations

from .flags import Command
from .reach import LOST, add_flags, complain, interrupts, open_client

EPILOG = """\
Each task is queued once more, under a new id, which is printed; then the old one is no longer kept. Arguments, time
limits and retries are the same; its priority and its unique key are not kept. `revolve dead` lists what is buried.

exit codes: 0 queued (with --watch: as revolve watch), 1 it could not be, 2 the call was wrong, 4 no such task is
buried; of several the highest."""


def main(argv: list[str]) -> int:
    """Queue them again, and watch them if asked to."""
    command = Command("retry", "Run tasks again that came to a bad end.",
                      usage="revolve retry [flags] ID …", epilog=EPILOG)  # fmt: skip
    command.add_argument("ids", metavar="ID", nargs="+", help="of a buried task")
    command.flag("--watch", action="store_true", help="then watch the new ones until they end")
    add_flags(command)
    found = command.read(argv)
    code, tasks = 0, []
    with interrupts(), open_client(found) as client:
        for id in dict.fromkeys([*found.ids, *found.tail]):
            try:
                task = client.retry(id)
            except LookupError as error:
                complain("retry", error.args[0])
                code = LOST
            else:
                print(task.id, flush=True)
                tasks.append(task)
        if found.watch and tasks:
            from .watch import watch

            code = max(code, watch("retry", client, tasks))
    return code
