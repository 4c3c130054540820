"""`revolve send ID NAME [ARG …]`: say something to a running task, or answer its question."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from ..event import ENDS
from .flags import Command, seconds
from .reach import LOST, add_flags, complain, ends, interrupts, open_client, unknown

EPILOG = """\
An ARG that is JSON is sent as its value (3, true, null, "3", [1, 2], {"a": 1}), any other as text.
A question is answered with the name `answer`: revolve send ID answer yes

exit codes: 0 sent, 1 the task has ended, or not begun in time (nothing was sent), 2 the call was wrong, 4 unknown."""


def main(argv: list[str]) -> int:
    """Send, once the task runs."""
    command = Command("send", "Send a message to a task of any process: it hears it by `receive`, `on` or `ask`.",
                      usage="revolve send [flags] ID NAME [ARG …]", epilog=EPILOG)  # fmt: skip
    command.add_argument("id", metavar="ID", help="the task's id")
    command.add_argument("name", metavar="NAME", help="of the message; `answer` answers a question")
    command.add_argument("args", metavar="ARG", nargs="*", help="JSON, or text")
    command.flag("--timeout", type=seconds, default=60.0, metavar="S",
                 help="seconds to wait here for the task to begin (default: 60)")  # fmt: skip
    add_flags(command)
    found = command.read(argv)
    args = [_value(text) for text in [*found.args, *found.tail]]
    with interrupts(), open_client(found) as client:
        task = client.attach(found.id)
        state = ends(client, task, found.timeout, "running")
        if state == "running" and task.send(found.name, *args):
            return 0
        if why := unknown(task):
            complain("send", why)
            return LOST
        if task.state in ENDS:
            complain("send", f"task {task.id} has ended ({task.state}): nothing was sent")
        else:
            complain("send", f"task {task.id} has not begun within {found.timeout:g} s: nothing was sent")
        return 1


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(word: str) -> NoReturn:
    raise ValueError(word)
