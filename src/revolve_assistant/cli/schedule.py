"""`revolve schedule list|remove`: what workers run again and again."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING

from .flags import Command, say

if TYPE_CHECKING:
    from ..caller.client import Client

EPILOG = """\
A program schedules with client.schedule(function, every=60), or cron="0 6 * * MON-FRI", tz="Europe/Berlin".

exit codes: 0, 1 no server answers, or no such key, 2 the call was wrong."""


def main(argv: list[str]) -> int:
    """List the schedules of a queue, or remove one."""
    command = Command(
        "schedule",
        "List what the workers of a queue run again and again, or remove one of it.",
        usage="revolve schedule list [flags] [URL]\n       revolve schedule remove [flags] [URL] KEY",
        epilog=EPILOG,
    )
    command.add_argument("action", nargs="?", metavar="list|remove", help="what to do")
    command.add_argument("words", nargs="*", metavar="URL KEY", help="the queue (default: REVOLVE_URL), and the key")
    command.flag("--json", action="store_true", help="print one JSON object a line")
    command.flag("--messenger", metavar="URL", help="what carries events (default: what the queue brings)")
    command.flag("--namespace", default="assistant", metavar="NAME", help="where the address does not say it")
    found = command.read(argv)
    words = [*found.words, *found.tail]
    if found.action not in ("list", "remove"):
        command.error(f"say list or remove, not {found.action!r}" if found.action else "say list or remove")
    url = words.pop(0) if words and "://" in words[0] else os.environ.get("REVOLVE_URL")
    if not url:
        command.error("which queue? give its URL, such as redis://localhost, or set REVOLVE_URL")
    if found.action == "remove" and not words:
        command.error("which key? `revolve schedule list` shows them")
    if len(words) > (found.action == "remove"):
        command.error(f"one argument too many: {words[-1]!r}")
    from ..caller.client import Client
    from ..providers.carriers import is_queue
    from ..providers.url import Url

    if not is_queue(url):
        command.error(f"{Url.parse(url)} keeps no schedules: it is no queue")
    with Client(url, messenger=found.messenger, namespace=found.namespace) as client:
        return _list(client, found.json) if found.action == "list" else _remove(client, words[0], found.json)


def _list(client: Client, as_json: bool) -> int:
    schedules = client.schedules()
    if as_json:
        for each in schedules:
            print(json.dumps(each._asdict()))
        return 0
    if not schedules:
        say("revolve schedule: nothing is scheduled")
        return 0
    from ..views.escape import printable

    rows = [("KEY", "FUNCTION", "TIMES", "NEXT", "LAST TASK")]
    for each in schedules:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.next))
        rows.append((each.key, each.name or "?", each.times or "?", when, each.last or "-"))
    rows = [tuple(map(printable, row)) for row in rows]  # type: ignore[misc]
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    for row in rows:
        print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip())
    for each in schedules:
        if each.trouble:
            say(f"revolve schedule: {printable(each.key)} cannot be read here: {printable(each.trouble)}")
    return 0


def _remove(client: Client, key: str, as_json: bool) -> int:
    removed = client.unschedule(key)
    if as_json:
        print(json.dumps({"key": key, "removed": removed}))
    elif removed:
        print(f"{key} is scheduled no more")
    if not removed:
        sys.stdout.flush()
        say(f"revolve schedule: no schedule {key!r}: `revolve schedule list` shows them")
    return 0 if removed else 1
