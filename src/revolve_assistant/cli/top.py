"""`revolve top`: what a queue holds, who takes from it, what runs; again every second."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

from ..errors import ProviderError
from ..views.bars import is_live
from ..views.board import Board
from .flags import Command, seconds
from .reach import add_flags, interrupts, open_client

if TYPE_CHECKING:
    from ..caller.client import Client

VERSION = 1  # of the JSON
EPILOG = """\
Workers introduce themselves every ten seconds, and a second after something changed. On a terminal it is a program of
its own (pip install 'revolve-assistant[top]'): ? shows its keys, q or Ctrl-C ends it.

exit codes: 0, 1 no server answers, 2 the call was wrong."""


def main(argv: list[str]) -> int:
    """Show it, once or until a signal."""
    command = Command("top", "Show what a queue holds, who takes from it and what runs, on all workers.",
                      usage="revolve top [flags] [URL]", epilog=EPILOG)  # fmt: skip
    command.add_argument("place", metavar="URL", nargs="?", help="the queue (default: --url, REVOLVE_URL)")
    command.flag("--once", action="store_true", help="show it once and end")
    command.flag("--json", action="store_true", help="print it as one JSON object a line (see docs/reference/cli.md)")
    command.flag("--every", type=seconds, default=1.0, metavar="S", help="seconds between two looks (default: 1)")
    add_flags(command)
    found = command.read(argv)
    if found.place:
        found.url = found.place
    with open_client(found) as client:
        if found.once:
            seen = look(client)
            if found.json:
                print(json.dumps(seen))
            else:
                _print(seen)
            return 0
        try:
            with interrupts():
                if found.json or not sys.stdout.isatty():
                    _write(client, found.every, found.json)
                elif not _is_attended():
                    _live(client, found.every)
                elif not _has_extra():
                    from ..views.top import EXTRA

                    _live(client, found.every, f"for the full screen: {EXTRA}")
                else:
                    from ..views.top import run

                    return run(client, found.every)
        except KeyboardInterrupt as stop:
            if stop.args:
                raise
        return 0


def _is_attended() -> bool:
    """Whether keys come from a terminal, and the screen, which textual writes to stderr, goes to one."""
    return all(file is not None and file.isatty() for file in (sys.__stdin__, sys.__stderr__)) and is_live()


def _has_extra() -> bool:
    from importlib.util import find_spec

    return find_spec("textual") is not None


def look(client: Client) -> dict[str, Any]:
    """What there is, as plain data. Raises `Unsupported`, `Unreachable`."""
    counts, workers, rules = client.counts(), client.workers(), client.rules()
    now = time.time()
    board = Board()
    board.counts(counts)
    board.introductions(workers)
    running = [
        {
            "id": each.id,
            "function": each.name,
            "queue": each.queue,
            "attempt": each.attempt,
            "seconds": round(max(0.0, now - each.since), 1),
            "worker": worker.name,
        }
        for worker in workers
        for each in worker.running
    ]
    return {
        "version": VERSION,
        "time": round(now, 3),
        "place": client._engine.place,
        "namespace": client._engine.namespace,
        "queues": [to_builtins(each) for each in board.queues],
        "workers": [_worker(each) for each in workers],
        "running": sorted(running, key=lambda each: -float(each["seconds"])),
        "rules": [rule._asdict() for rule in rules],
    }


def _worker(each: Any) -> dict[str, Any]:
    return {
        "name": each.name,
        "host": each.host,
        "pid": each.pid,
        "version": each.version,
        "state": each.state,
        "pool": each.pool,
        "queues": each.queues,
        "concurrency": each.concurrency,
        "running": sum(each.busy.values()),
        "settled": each.settled,
        "rate": each.rate,
        "started": each.started,
        "time": each.time,
        "keys": each.keys,
    }


def _write(client: Client, every: float, as_json: bool) -> None:
    while True:
        seen = look(client)
        if as_json:
            print(json.dumps(seen), flush=True)
        else:
            _print(seen)
            sys.stdout.flush()
        time.sleep(every)


def _print(seen: dict[str, Any]) -> None:
    from rich.console import Console

    from ..views.queues import render

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 1000  # nothing is cut in a file or pipe
    console.print(render(seen, 1_000_000))


def _live(client: Client, every: float, note: str = "") -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from ..views.escape import printable
    from ..views.queues import render

    console = Console(highlight=False, markup=False, emoji=False)
    lines = [Text(note, style="dim")] if note else []

    def seen() -> Any:
        return Group(*lines, render(look(client), console.height - len(lines)))

    with Live(seen(), console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.refresh()
            time.sleep(every)
            try:
                live.update(seen())
            except ProviderError as error:
                live.update(Text(f"{printable(str(error))}; trying again", style="red"))
