"""How a command reaches a queue: the flags that say where it is, and the client that speaks to it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import Unreachable, Unsupported, Untrusted, UsageError
from ..event import ENDS, Event
from .flags import Command, say

if TYPE_CHECKING:
    from ..caller.client import Client
    from ..caller.task import Task

PATIENCE = 10.0  # seconds that a server may take to answer at first
FOUND = 1.5  # seconds in which a task is found, or found to be unknown
LOST = 4  # the exit code of a task that is lost, or that nobody knows
CODES = {"succeeded": 0, "failed": 1, "cancelled": 3, "lost": LOST}
"""Exit codes by how a task ended."""


def add_flags(command: Command) -> None:
    """Where the queue is. The secret comes from the environment alone: others can read command lines."""
    group = command.add_argument_group("the queue", "The secret comes from REVOLVE_SECRET or REVOLVE_SECRET_FILE.")
    command.flag("--url", metavar="URL", group=group, help="its address (default: REVOLVE_URL)")
    command.flag("--messenger", metavar="URL", group=group, help="what carries events (default: what the queue brings)")
    command.flag("--namespace", metavar="NAME", default="assistant", group=group, help="where the address does not say")


def open_client(found: argparse.Namespace) -> Client:
    """A client of the queue. Raises `UsageError`, `UnknownProvider`, `ProviderMissing`."""
    from ..caller.client import Client
    from ..providers.carriers import is_elsewhere

    url = found.url or os.environ.get("REVOLVE_URL")
    if not url:
        raise UsageError("which queue? say --url, such as redis://localhost, or set REVOLVE_URL")
    if not is_elsewhere(url):
        from ..providers.url import Url

        raise UsageError(f"{Url.parse(url)} is no queue that other programs could reach")
    _say_warnings(found.prog)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # results and errors may be of the application's classes
    return Client(url, messenger=found.messenger, namespace=found.namespace, patience=PATIENCE)


def _say_warnings(prog: str) -> None:
    """What the library warns of is a line as any other of the command."""
    logger = logging.getLogger("revolve_assistant")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"{prog}: %(message)s"))
        handler.setLevel(logging.WARNING)
        logger.addHandler(handler)


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """SIGTERM and SIGHUP are as Ctrl-C: a KeyboardInterrupt that holds the signal's number."""

    def heed(number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt(number)

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, heed)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ends(client: Client, task: Task[Any], seconds: float, *states: str) -> str:
    """Wait until the task has ended, or is in one of these states; its state then, or as it is after `seconds`.

    It takes a moment to find that nobody knows a task, however few the seconds. Raises `Unreachable` when no server
    answers, `Unsupported` where the task cannot be heard.
    """
    deadline = monotonic() + max(seconds, FOUND)
    with task.events() as events:
        while True:
            state = task.state
            if state in states or state in ENDS:
                break
            left = deadline - monotonic()
            if left <= 0:
                break
            try:
                event = events.next(min(left, 1.0))
            except StopIteration:
                continue
            if event is None:
                client._check_patience()
            elif event.name in ENDS:
                _refuse(task)
                return str(event.name)
    if state in ENDS:
        _refuse(task)
    elif client._engine.away_since:
        raise Unreachable(f"{client._engine.place} does not answer: {client._engine.trouble}")
    return state


def unknown(task: Task[Any]) -> str:
    """Why the task is one that nobody knows, or that cannot be understood here; "" if it is known."""
    if task.state != "lost":
        return ""
    error = task.exception(timeout=0)
    return str(error.args[0]) if isinstance(error, (LookupError, Untrusted)) and error.args else ""


def _refuse(task: Task[Any]) -> None:
    if task.state == "lost":
        error = task.exception(timeout=0)
        if isinstance(error, Unsupported):
            raise error


def complain(command: str, text: object) -> None:
    """One line on stderr, escaped."""
    from ..views.escape import printable

    say(f"revolve {command}: {printable(str(text))}")


def code_of(event: Event) -> int:
    """The exit code for an end."""
    return CODES[event.name]
