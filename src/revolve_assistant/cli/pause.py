"""`revolve pause NAME`: have no worker take tasks of one function."""

from __future__ import annotations

from .flags import Command
from .limit import print_rule
from .reach import add_flags, open_client

EPILOG = """\
It holds at once and for all workers of the namespace, until `revolve resume NAME`. What runs goes on; what is submitted
waits (`blocked` in `revolve top`)."""


def main(argv: list[str]) -> int:
    """Pause it."""
    command = Command("pause", "Have no worker take tasks of a function.", usage="revolve pause [flags] NAME",
                      epilog=EPILOG)  # fmt: skip
    command.add_argument("name", metavar="NAME", help="of the function, as module:qualname, such as app:resize")
    add_flags(command)
    found = command.read(argv)
    with open_client(found) as client:
        print_rule(client.pause(found.name))
    return 0
