"""`revolve doctor [URL]`: what is wrong with this address, in one sentence that says what to do."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import TYPE_CHECKING

from .flags import Command

if TYPE_CHECKING:
    from ..providers.checking import Checked
    from ..providers.diagnosis import Finding

WIDTH = 24  # of the longest name of a check, about
_MARKS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


def main(argv: list[str]) -> int:
    """Print what was found. 0: all is well, 1: something is wrong, 2: the call was."""
    command = Command(
        "doctor",
        "Look at an address: is it right, does its server answer, does somebody take what waits there?",
        epilog="It connects, asks and changes nothing. --check runs the conformance kit instead: what every Queue and\n"
        "Messenger must do. It has a namespace of its own, removes what it made, and takes about half a minute.\n\n"
        "exit codes: 0 all is well, 1 something is wrong (with --check: a check failed, or no server answers),\n"
        "2 the call was wrong.",
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
    from ..providers.checking import check, plan

    planned = plan(url)
    if as_json:
        results = check(planned)
        _print_json([each._asdict() for each in results])
    else:
        where = f"in a namespace of its own, {planned.namespace}" if planned.namespace else "under names of its own"
        print(f"{planned.url}: {' and '.join(planned.kinds)}, {where}", flush=True)
        results = check(planned, _tell)
        _sum(results)
    return 1 if any(each.outcome.startswith("FAILED") for each in results) else 0


def _tell(each: Checked) -> None:
    """A line for a check; of one that failed also what it promises and what was found."""
    from ..views.escape import printable

    word, _, why = each.outcome.partition(": ")
    print(f"{each.kind:<9}  {each.check:<{WIDTH}}  {word:<7}  {printable('' if word == 'FAILED' else why)}".rstrip())
    if word == "FAILED":
        print(f"           promised: {printable(each.promise)}\n           found:    {printable(why)}")
    sys.stdout.flush()


def _sum(results: list[Checked]) -> None:
    words = {"ok": "ok", "skipped": "skipped", "FAILED": "failed"}
    for kind in dict.fromkeys(each.kind for each in results):
        counts = Counter(each.outcome.partition(":")[0] for each in results if each.kind == kind)
        seconds = sum(each.seconds for each in results if each.kind == kind)
        print(f"{kind}: {', '.join(f'{counts[word]} {shown}' for word, shown in words.items())}, in {seconds:.0f} s")


def _print_json(value: object) -> None:
    import json

    from msgspec import to_builtins

    print(json.dumps(to_builtins(value), indent=2))  # in ASCII: names on a server may be no text at all
