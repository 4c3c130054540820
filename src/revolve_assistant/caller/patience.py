"""How long a client waits for a server that does not answer."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from ..errors import Unreachable
from .waiting import wait


class Patient:
    """The part of a `Client` that waits for what comes from elsewhere."""

    _engine: Any
    _patience: float

    def _wait_patiently(self, ended: Callable[[], bool], timeout: float | None, register: Any) -> bool:
        """Wait for what comes from elsewhere; raises `Unreachable` once a server was away for `patience` seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            self._check_patience()
            now, away = monotonic(), self._engine.away_since
            left = self._patience - (now - away if away else 0.0)
            if deadline is not None:
                left = min(left, deadline - now)
            if wait(register, max(0.0, left)):
                return True
            if ended():
                return True
            if deadline is not None and monotonic() >= deadline:
                return False

    def _check_patience(self) -> None:
        away = self._engine.away_since
        if away and monotonic() - away >= self._patience:
            raise Unreachable(
                f"{self._engine.place} has not answered for {monotonic() - away:.0f} s: {self._engine.trouble}; "
                "the task goes on there"
            )
