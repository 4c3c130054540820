"""`revolve emit ID NAME [ARG …]`: an event from a shell script, a cron job, any program that can start another."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from .flags import Command, seconds

if TYPE_CHECKING:
    import argparse

TIMEOUT = 2.0  # seconds that the messenger may take
EPILOG = """\
  revolve emit nightly-7 --start backup
  revolve emit nightly-7 --progress 3/8 "copying /home"
  revolve emit nightly-7 copied '{"path": "/home", "bytes": 7340032}'
  revolve emit nightly-7 --done '"8 folders"'        or: --failed "disk full"

Who watches `client.attach("nightly-7")` or `revolve watch nightly-7` hears each. An ARG that is JSON is its value, any
other is text. An id has 1 to 60 of A-Z, a-z, 0-9, ".", "_", "-". To have output and exit code of one command told, and
its death noticed, use `revolve report`.

exit codes: 0, also if the messenger does not answer (one warning: your script goes on); 1 if it does not and --strict
is given; 2 the call was wrong."""


def main(argv: list[str]) -> int:
    """Write it, and wait until it is stored."""
    command = Command("emit", "Say an event of what runs under an id: of a shell script, a cron job, any program.",
                      usage="revolve emit [flags] ID [NAME] [ARG …]", epilog=EPILOG)  # fmt: skip
    command.add_argument("id", metavar="ID", help="what it is watched by")
    command.add_argument("words", metavar="NAME [ARG …]", nargs="*", help="an event of any name; each ARG JSON or text")
    command.flag("--text", action="store_true", help="each ARG, RESULT and line is text, whatever it looks like")
    command.flag("--stdin", action="store_true", help="an event NAME for each line of stdin, as long as there are any")
    group = command.add_argument_group("instead of NAME")
    command.flag("--start", metavar="WHAT", nargs="?", const="", group=group,
                 help="it begins now; a run that was under this id before is over")  # fmt: skip
    command.flag("--progress", metavar="HOW_FAR", type=_progress, group=group,
                 help="0.25, 25%% or 2/8; an ARG is the message")  # fmt: skip
    command.flag("--done", metavar="RESULT", nargs="?", const="null", group=group, help="the end: it succeeded")
    command.flag("--failed", metavar="MESSAGE", group=group, help="the end: it failed")
    add_flags(command)
    command.flag("--timeout", metavar="S", type=seconds, default=TIMEOUT,
                 help=f"seconds that the messenger may take (default: {TIMEOUT:g})")  # fmt: skip
    command.flag("--strict", action="store_true", help="exit with 1 if the messenger does not answer")
    found = command.read(argv)
    words = [*found.words, *found.tail]
    instead = [name for name in ("start", "progress", "done", "failed") if getattr(found, name) is not None]
    if len(instead) > 1:
        command.error(f"--{instead[0]} and --{instead[1]} are two events: say one after the other")
    if not instead and not words:
        command.error("say the NAME of the event, or --start, --progress, --done or --failed")
    if found.stdin and instead:
        command.error(f"--stdin takes a NAME, not --{instead[0]}")
    if words and instead and instead != ["progress"]:
        command.error(f"one argument too many: {words[0]!r}")
    return _emit(found, instead[0] if instead else "", words)


def add_flags(command: Command) -> None:
    """Where what is reported goes. The secret comes from the environment alone: others can read command lines."""
    group = command.add_argument_group("the messenger", "The secret comes from REVOLVE_SECRET or REVOLVE_SECRET_FILE.")
    command.flag("--messenger", metavar="URL", group=group,
                 help="its address (default: REVOLVE_MESSENGER, else what REVOLVE_URL brings)")  # fmt: skip
    command.flag("--namespace", metavar="NAME", default="assistant", group=group, help="default: assistant")
    command.flag("--history", metavar="S", type=seconds, default=86400.0, group=group,
                 help="seconds that all is kept from the end on (default: 86400, a day)")  # fmt: skip


def _emit(found: argparse.Namespace, instead: str, words: list[str]) -> int:
    from ..caller.waiting import wait
    from ..errors import TaskError
    from ..event import Progress
    from ..running.report import failed, started, succeeded
    from ..running.reporting import check_id, open_report
    from ..running.running import check_name

    check_id(found.id)
    if not instead:
        check_name(words[0])
    _silence()
    value = str if found.text else value_of
    report = open_report(found.id, found.history, found.messenger, None, found.namespace, loose=True)
    running = report.running
    end = None
    if instead == "start":
        report.put(started(place(), "", found.start))
    elif instead == "progress":
        fraction, done, total = found.progress
        running.progress(Progress(fraction, done, total, " ".join(words) or None))
    elif instead == "done":
        end = succeeded(None if found.done == "null" else value(found.done))
    elif instead == "failed":
        end = failed(TaskError(found.failed))
    elif found.stdin:
        args = [value(word) for word in words[1:]]
        for line in sys.stdin:
            running.emit(words[0], *args, value(line.removesuffix("\n")))
    else:
        running.emit(words[0], *[value(word) for word in words[1:]])
    report.end(end)
    if wait(report.when_stored, found.timeout):
        return 0
    report.line.patience = 0.0  # nor at the exit
    print(f"revolve emit: the messenger does not answer within {found.timeout:g} s: what was said of {found.id} is "
          "lost", file=sys.stderr)  # fmt: skip
    return int(found.strict)


def place() -> str:
    """Who reports: this machine, and the process that asked us to."""
    return f"{os.uname().nodename}:{os.getppid()}"


def value_of(text: str) -> Any:
    """The value where it is JSON, else the text."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(word: str) -> NoReturn:
    raise ValueError(word)


def _progress(text: str) -> tuple[float, float | None, float | None]:
    from argparse import ArgumentTypeError

    number = re.fullmatch(r"(\d+(?:\.\d+)?)(%|/(\d+(?:\.\d+)?))?", text)
    if number is not None:
        first, rest, total = number.groups()
        if total is not None and float(total):
            return min(1.0, float(first) / float(total)), float(first), float(total)
        fraction = float(first) / (100 if rest == "%" else 1)
        if total is None and fraction <= 1:
            return fraction, None, None
    raise ArgumentTypeError(f"{text!r} is none of 0.25, 25% and 2/8")


def _silence() -> None:
    """The library warns of a messenger that is away; this command says so itself, at its end."""
    import logging

    logging.getLogger("revolve_assistant").addHandler(logging.NullHandler())
