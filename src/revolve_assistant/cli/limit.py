"""`revolve limit [NAME]`: how many tasks of one function may run, or start, on all workers together."""

from __future__ import annotations

import argparse
from typing import Any

from ..engine import Rule
from .flags import Command, count, seconds
from .reach import add_flags, complain, open_client

EPILOG = """\
Without NAME it lists what is paused and limited, with a NAME alone what holds for it.

  revolve limit app:fetch --concurrency 4 --rate 10/60    # 4 at once, 10 a minute
  revolve limit app:fetch --rate none                     # 4 at once"""


def main(argv: list[str]) -> int:
    """Set limits, or show what holds."""
    command = Command("limit", "Limit a function on all workers of the namespace together, at once.",
                      usage="revolve limit [flags] [NAME]", epilog=EPILOG)  # fmt: skip
    command.add_argument(
        "name", metavar="NAME", nargs="?", help="of the function, as module:qualname, such as app:fetch"
    )
    command.flag("--concurrency", type=_number, metavar="N", help="that may run at once; `none`: any number")
    command.flag(
        "--rate", type=_rate, metavar="N/SECONDS", help="that may start in so many seconds; `none`: any number"
    )
    add_flags(command)
    found = command.read(argv)
    changes: dict[str, Any] = {}
    if found.concurrency is not None:
        changes["concurrency"] = found.concurrency or None
    if found.rate is not None:
        number, per = found.rate
        changes |= {"rate": number or None, "per": per}
    if changes and not found.name:
        command.error("which function? say its NAME, such as app:fetch")
    with open_client(found) as client:
        if changes:
            print_rule(client.limit(found.name, **changes))
            return 0
        rules = [rule for rule in client.rules() if found.name in (None, rule.name)]
    for rule in rules:
        print_rule(rule)
    if not rules:
        complain("limit", f"nothing holds for {found.name}" if found.name else "nothing is paused or limited")
    return 0


def print_rule(rule: Rule) -> None:
    """One line on stdout."""
    from ..views.escape import printable

    print(f"{printable(rule.name)}: {words(rule)}")


def words(rule: Rule) -> str:
    """What holds, in words."""
    said = ["paused"] if rule.paused else []
    if rule.concurrency is not None:
        said.append(f"{rule.concurrency} at once")
    if rule.rate is not None:
        said.append(f"{rule.rate} in {rule.per:g} s")
    return ", ".join(said) or "no limits"


def _number(text: str) -> int:
    """From 1 on; 0 for `none`."""
    if text == "none":
        return 0
    number = count(text)
    if not number:
        raise argparse.ArgumentTypeError("0 would let none run: use `revolve pause`, or `none` for no limit")
    return number


def _rate(text: str) -> tuple[int, float]:
    if text == "none":
        return 0, 1.0
    number, mark, per = text.partition("/")
    if not mark:
        raise argparse.ArgumentTypeError(f"{text!r} is not N/SECONDS, such as 10/60 for ten a minute")
    return _number(number), seconds(per)
