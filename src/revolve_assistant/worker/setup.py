"""Setting up children: what `--setup` calls in each of them, and the first one as a trial before any task is taken."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..engine import Parcel
from ..pool.reports import REPORT_RAISED, REPORT_RETURNED, REPORT_STARTED
from ..wire.carry import Function, Work, key_of

if TYPE_CHECKING:
    from .worker import Worker

_BODY = pickle.dumps(os.getpid, 5)
_NO_ARGUMENTS = pickle.dumps(((), {}), 5)


def call_setup(target: str) -> Any:
    """Import and call it; what it returns may be a context manager, as of every initializer.

    Runs in a child, never in the supervisor, which imports nothing of the user.
    """
    module, _, path = target.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found()


class Trial:
    """A call of nothing, which makes the local engine set up its first child. Part of the Worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._passed = False

    def passed(self) -> bool:
        """Whether a child could be set up. Blocks until that is known, or `give_up`."""
        from .admission import Carried

        work = (Carried if self._worker.live else Work)(
            Function(key_of(_BODY), "os:getpid", "plain", _BODY, True), _NO_ARGUMENTS
        )
        try:
            self._worker.engine.submit([Parcel("setup", work=work)], self)
            self._over.wait()
        except Exception as error:  # inline: it is set up here
            self._error = error
        if self._error is not None:
            self._worker.fail(self._error)
        return self._passed

    def deliver(self, reports: Sequence[Any]) -> None:
        """The sink of the call."""
        for report in reports:
            if report[1] == REPORT_STARTED or self._over.is_set():
                continue
            if report[1] == REPORT_RETURNED:
                self._passed = True
            else:
                found = report[2]
                self._error = found if report[1] == REPORT_RAISED or isinstance(found, BaseException) else None
            self._over.set()

    def give_up(self) -> None:
        """The worker ends before it is known."""
        self._over.set()
