"""`revolve doctor [URL]`: what is wrong with this address, in one sentence that says what to do."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from .flags import Command

if TYPE_CHECKING:
    from ..providers.diagnosis import Finding

_MARKS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


def main(argv: list[str]) -> int:
    """Print what was found. 0: all is well, 1: something is wrong, 2: the call was."""
    command = Command(
        "doctor",
        "Look at an address: is it right, does its server answer, does somebody take what waits there?",
        epilog="It connects, asks and changes nothing. --check runs the conformance kit instead, under names of its\n"
        "own, for about half a minute.",
    )
    command.add_argument("url", nargs="?", metavar="URL", help="such as gearman://127.0.0.1 (default: REVOLVE_URL)")
    command.flag("--check", action="store_true", help="run the conformance kit against it, and print a table")
    command.flag("--json", action="store_true", help="print one JSON array")
    args = command.read(argv)
    url = args.url or os.environ.get("REVOLVE_URL")
    if not url:
        command.error("which address? give a URL, or set REVOLVE_URL")
    return _check(url, args.json) if args.check else _diagnose(url, args.json)


def _diagnose(url: str, as_json: bool) -> int:
    from ..providers.diagnosis import diagnose

    found = diagnose(url)
    if as_json:
        _print_json(found)
    else:
        _print(found)
    return 1 if any(each.level == "wrong" for each in found) else 0


def _print(found: list[Finding]) -> None:
    from ..views.escape import printable

    width = min(28, max(len(each.subject) for each in found))
    for each in found:
        print(f"{_MARKS[each.level]}  {printable(each.subject):<{width}}  {printable(each.text)}")
    wrong = [each for each in found if each.level == "wrong"]
    if wrong:
        rest = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        sys.stdout.flush()
        print(f"revolve doctor: {printable(wrong[0].subject)}: {printable(wrong[0].text)}{rest}", file=sys.stderr)


def _check(url: str, as_json: bool) -> int:
    from ..providers.diagnosis import check
    from ..views.escape import printable

    results = check(url)
    if as_json:
        _print_json([{"kind": kind, "check": name, "outcome": outcome} for kind, name, outcome in results])
    else:
        width = max(len(name) for _, name, _ in results)
        for kind, name, outcome in results:
            print(f"{kind:<9}  {name:<{width}}  {printable(outcome)}")
        failed = sum(outcome.startswith("FAILED") for *_, outcome in results)
        skipped = sum(outcome.startswith("skipped") for *_, outcome in results)
        print(f"{len(results) - failed - skipped} ok, {skipped} skipped, {failed} failed")
    return 1 if any(outcome.startswith("FAILED") for *_, outcome in results) else 0


def _print_json(value: object) -> None:
    import json

    from msgspec import to_builtins

    print(json.dumps(to_builtins(value), indent=2))  # in ASCII: names on a server may be no text at all
