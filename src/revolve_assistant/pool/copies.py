"""Processes that a callable forks: copies of a child, which share its board and sockets and must not speak there."""

from __future__ import annotations

import os
import sys

from ..running import api

here = False  # this process was forked by a callable
_noticing = False


def notice() -> None:
    """From now on a process that a callable forks knows that it is one."""
    global _noticing  # noqa: PLW0603
    if not _noticing:
        _noticing = True
        os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    global here  # noqa: PLW0603 - a fact of this process
    here = True
    api.in_process = None


def disown() -> None:
    """After a fork of our own: this process is a child in its own right."""
    global here  # noqa: PLW0603
    here = False


def end(failed: bool) -> None:
    """A callable that forked has returned in the copy too: that ends here, as a program would."""
    try:
        if failed:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(1 if failed else 0)
