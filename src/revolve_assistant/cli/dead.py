"""`revolve dead [ID …]`: the buried tasks, or all that is known of some of them."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from ..errors import AssistantError
from ..event import ENDS
from .flags import Command, count
from .reach import LOST, add_flags, complain, ends, interrupts, open_client
from .run_report import first_line, traceback_of

if TYPE_CHECKING:
    from ..caller.client import Client
    from ..caller.steering import BuriedTask

HISTORY = 5.0  # seconds to wait for what a task said
EPILOG = """\
`revolve retry ID` runs one again, `revolve purge QUEUE --buried` removes them.

exit codes: 0, 1 no server answers, 2 the call was wrong, 4 no task of that ID is buried."""


def main(argv: list[str]) -> int:
    """List them, the latest first, or show those that are named."""
    command = Command(
        "dead",
        "List tasks that came to a bad end and are kept: they failed, killed their workers, or were refused. "
        "With IDs, show\nthese, each with its traceback.",
        usage="revolve dead [flags] [ID …]",
        epilog=EPILOG,
    )
    command.add_argument("ids", metavar="ID", nargs="*", help="of a buried task")
    command.flag(
        "--limit", type=_some, default=100, metavar="N", help="list at most so many, the latest first (default: 100)"
    )
    command.flag("--json", action="store_true", help="print one JSON object a line: id, function, queue, deliveries, "
                 "reason, time; with IDs also traceback")  # fmt: skip
    add_flags(command)
    found = command.read(argv)
    ids = list(dict.fromkeys([*found.ids, *found.tail]))
    with interrupts(), open_client(found) as client:
        return _show(client, ids, found.json) if ids else _list(client, found.limit, found.json)


def _list(client: Client, limit: int, as_json: bool) -> int:
    dead = client.buried(limit=limit)
    if as_json:
        for each in dead:
            print(json.dumps(_fields(each)))
        return 0
    if not dead:
        complain("dead", "no task is buried")
        return 0
    from ..views.escape import printable

    rows = [("ID", "WHEN", "QUEUE", "FUNCTION", "TIMES", "WHY")]
    rows += [
        (each.id, _when(each), each.queue, each.name or "?", str(each.deliveries), first_line(each.reason))
        for each in dead
    ]
    rows = [tuple(map(printable, row)) for row in rows]  # type: ignore[misc]
    widths = [max(len(row[at]) for row in rows) for at in range(5)]
    for row in rows:
        print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[5]]).rstrip())
    if len(dead) == limit:
        complain("dead", f"there may be more than {limit}: say --limit")
    return 0


def _show(client: Client, ids: list[str], as_json: bool) -> int:
    from ..views.escape import printable

    code, shown = 0, 0
    for id in ids:
        try:
            each = client.buried(task_id=id)[0]
        except LookupError as error:
            complain("dead", error.args[0])
            code = LOST
            continue
        traceback = _traceback(client, id)
        if as_json:
            print(json.dumps({**_fields(each), "traceback": traceback}))
            continue
        if shown:
            print()
        shown += 1
        times = f"taken {each.deliveries} time{'s' if each.deliveries != 1 else ''}"
        print(f"{printable(each.id)}  {printable(each.name or '?')}  queue {printable(each.queue)}  {times}")
        print(f"{_when(each)}  {printable(each.reason)}")
        if traceback:
            print("\n" + printable(traceback.rstrip("\n"), keep_newlines=True))
    return code


def _traceback(client: Client, id: str) -> str:
    """From what the task said, as long as that is kept; "" afterwards."""
    try:
        task = client.attach(id)
        if ends(client, task, HISTORY) not in ENDS:
            return ""
        error = task.exception(timeout=0)
    except (AssistantError, TimeoutError):
        return ""
    return "" if error is None or (isinstance(error, LookupError) and task.state == "lost") else traceback_of(error)


def _fields(each: BuriedTask) -> dict[str, Any]:
    return {
        "id": each.id,
        "function": each.name,
        "queue": each.queue,
        "deliveries": each.deliveries,
        "reason": each.reason,
        "time": round(each.when, 3),
    }


def _when(each: BuriedTask) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.when))


def _some(text: str) -> int:
    return max(1, count(text))
