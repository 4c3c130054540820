"""Questions of tasks, put to the person at the terminal while other tasks go on.

    question ──▶ open ──(nothing more of that task for a moment)──▶ prompt ──▶ a line ──▶ task.send("answer", line)
                  └── anything else of that task: it was answered, elsewhere or earlier (this is its history)

An answer says not which question it is for: one that came too late would answer the next one. So whatever a task says
after its question closes the prompt.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from ..event import Event
from .bars import is_live
from .escape import printable

if TYPE_CHECKING:
    from ..caller.task import Task
    from .bars import AnyBars

SETTLED = 0.2  # seconds after which a question that nothing followed counts as open
LOOK = 0.05  # seconds between two looks at the events while somebody types


class Question(NamedTuple):
    """What a task asks."""

    task: Task[Any]
    label: str
    since: float  # monotonic seconds


def is_attended() -> bool:
    """Whether somebody sits at the terminal who could answer."""
    try:
        return is_live() and sys.stdin is not None and sys.stdin.isatty()
    except ValueError:  # closed
        return False


class Asking:
    """The open questions of some tasks. One thread: the one that reads their events."""

    def __init__(self, bars: AnyBars) -> None:
        self._bars = bars
        self._open: dict[str, Question] = {}
        self.attended = is_attended()

    def __bool__(self) -> bool:
        """Whether a question waits for an answer that could be given here."""
        return self.attended and bool(self._open)

    def hear(self, event: Event, task: Task[Any], label: str) -> None:
        """Note what an event means for the questions."""
        if event.name == "question" and len(event.args) > 1:
            self._open.pop(event.task_id, None)  # the newest comes last
            self._open[event.task_id] = Question(task, label, monotonic())
        else:
            self._open.pop(event.task_id, None)

    @property
    def due(self) -> bool:
        """Whether it is time to put the first one."""
        return bool(self) and monotonic() - self._first.since >= SETTLED

    @property
    def _first(self) -> Question:
        return next(iter(self._open.values()))

    def put(self) -> Prompt:
        """The prompt for the first question, in place of the bars."""
        return Prompt(self, self._bars, self._first)

    def is_open(self, question: Question) -> bool:
        """Whether it still is what its task waits for."""
        return self._open.get(question.task.id) is question

    def closed(self, question: Question) -> None:
        """It needs no answer from here any more."""
        if self.is_open(question):
            del self._open[question.task.id]


class Prompt:
    """One question on the screen: `with asking.put() as prompt`, then `look` until it says that it is over."""

    def __init__(self, asking: Asking, bars: AnyBars, question: Question) -> None:
        self._asking = asking
        self._bars = bars
        self.question = question
        self._typed = b""
        self._shown = False  # the cursor stands behind it

    def __enter__(self) -> Prompt:
        self._bars.__exit__(None, None, None)
        self._shown = True
        try:
            sys.stderr.write(f"{printable(self.question.label)}, your answer: ")
            sys.stderr.flush()
        except BaseException:  # Ctrl-C at once
            self._leave("\n")
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:  # Ctrl-C: what is said next begins a line
            self._leave("\n")
        self._bars.__enter__()

    def look(self) -> bool:
        """Wait a moment for a line, and send it. True: the question is over."""
        question, asking = self.question, self._asking
        if not asking.is_open(question):
            _forget_typed()
            self._leave("\n(it waits for that answer no more)\n")
            return True
        ready, _, _ = select.select([sys.stdin], [], [], LOOK)
        if not ready:
            return False
        data = os.read(sys.stdin.fileno(), 4096)
        self._typed += data
        if not data:  # end of file: whoever sits here does not want to
            asking.attended = False
            self._leave(f"\n(to answer it later: revolve send {question.task.id} answer …)\n")
            return True
        if not self._typed.endswith(b"\n"):
            return False
        line = self._typed.decode(sys.stdin.encoding or "utf-8", "replace").rstrip("\r\n")
        asking.closed(question)
        self._leave("")
        if not question.task.send("answer", line):
            self._leave("(it has ended meanwhile)\n")
        return True

    def _leave(self, text: str) -> None:
        self._shown = False
        sys.stderr.write(text)
        sys.stderr.flush()


def _forget_typed() -> None:
    """What was typed for a question that is over is not for the next one, nor for the shell."""
    with contextlib.suppress(Exception):
        import termios

        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
