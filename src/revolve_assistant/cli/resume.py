"""`revolve resume NAME`: end a pause."""

from __future__ import annotations

from .flags import Command
from .limit import print_rule
from .reach import add_flags, open_client


def main(argv: list[str]) -> int:
    """Resume it."""
    command = Command("resume", "Have workers take tasks of a function again. Its limits stay.",
                      usage="revolve resume [flags] NAME")  # fmt: skip
    command.add_argument("name", metavar="NAME", help="of the function, as module:qualname, such as app:resize")
    add_flags(command)
    found = command.read(argv)
    with open_client(found) as client:
        print_rule(client.resume(found.name))
    return 0
