"""What `revolve run` says of failures, at once and in the table at the end."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ..event import Event
from ..views.escape import printable
from .run_output import to_text

if TYPE_CHECKING:
    from .run_batch import Batch
    from .run_log import Done

BROKEN_PIPE = 128 + 13  # as the shell sees a program that SIGPIPE ended


class Failure(NamedTuple):
    """One line of the table at the end."""

    label: str
    what: str
    error: str


def short(error: BaseException) -> str:
    """`ValueError: what it says`, as the last line of a traceback."""
    text = to_text(error).strip()
    kind = getattr(error, "type_name", "") or type(error).__name__
    return f"{kind}: {text}" if text else kind


def first_line(text: object) -> str:
    """The first line of what an error says."""
    if isinstance(text, BaseException):
        text = short(text)
    lines = to_text(text).strip().splitlines()
    return printable(lines[0]) if lines else ""


def note(event: Event, error: BaseException | None) -> str:
    """What the line says of a task that did not succeed."""
    if error is None:
        return ""
    return f"by {to_text(event.args[0])}" if event.name == "cancelled" and event.args else first_line(error)


def what(state: str, error: BaseException) -> str:
    """What happened, in a word or two."""
    from ..errors import TaskLost, TaskStalled, TaskTimeout

    if isinstance(error, TaskTimeout):
        return "timed out"
    if isinstance(error, TaskStalled):
        return "stalled"
    if isinstance(error, TaskLost) or state == "lost":
        return "died"
    return "cancelled" if state == "cancelled" else "raised"


def traceback_of(error: BaseException) -> str:
    """The traceback in the worker process."""
    from ..wire.remote import remote_traceback

    remote = remote_traceback(error)
    if not remote:
        import traceback

        remote = "".join(traceback.format_exception(error))
    return remote if remote.endswith("\n") else remote + "\n"


def report(batch: Batch, done: Done | None) -> int:
    """Say on stderr how it went, as far as it did not go well; the exit code."""
    if isinstance(batch.broken, BrokenPipeError):
        return BROKEN_PIPE
    say: list[str] = []
    counts = batch.counts
    failed = counts["failed"] + counts["lost"]
    if done is not None and done.skipped:
        say.append(f"{done.skipped} skipped: they succeeded in the log")
    if batch.failures:
        say += _table(batch, failed)
    if batch.signal or batch.halted is not None or batch.broken is not None:
        said = [f"{counts['succeeded']} succeeded", f"{failed} failed", f"{counts['cancelled']} cancelled"]
        more = "" if batch.read_all else ", and what was not read"
        why = "stopped" if batch.halted is None else f"stopped at the failure of {batch.halted}"
        say.append(f"revolve run: {why}: {', '.join(said)}, {counts['not started']} not started{more}")
    if batch.broken is not None:
        say.append(f"revolve run: {_problem(batch.broken)}")
    if say:
        with suppress(OSError):  # the terminal is gone
            print("\n".join(say), file=sys.stderr, flush=True)
    if batch.signal:
        return 128 + batch.signal
    return 1 if batch.failures or batch.broken is not None else 0


def _problem(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot go on: {error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return f"{type(error).__name__}: {error}"


def _table(batch: Batch, failed: int) -> list[str]:
    total = sum(batch.counts[state] for state in ("succeeded", "failed", "lost", "cancelled"))
    width = max(60, shutil.get_terminal_size().columns) if os.isatty(2) else 0
    rows = [("ITEM", "WHAT", "ERROR"), *batch.failures]
    first = min(max(len(row[0]) for row in rows), width // 3 or 1 << 20)
    second = max(len(row[1]) for row in rows)
    out = [f"{max(failed, len(batch.failures))} of {total} failed:"]
    for label, what, error in rows:
        text = f"  {_middle(label, first):<{first}}  {what:<{second}}  {error}"
        out.append(text if not width or len(text) < width else f"{text[: width - 2]}…")
    hidden = failed - len(batch.failures)
    if hidden > 0:
        out.append(f"  … and {hidden} more; --log FILE keeps them all")
    return out


def _middle(text: str, width: int) -> str:
    """At most `width` characters; names of one folder differ at their ends, so the middle goes."""
    if len(text) <= width:
        return text
    half = (width - 1) // 2
    return f"{text[: width - 1 - half]}…{text[len(text) - half :]}"
