"""A callable as a child has it, and what the child says of its failure to who decides about another attempt."""

from __future__ import annotations

from _pickle import loads  # not pickle.py: 1 ms of every child's start
from typing import TYPE_CHECKING, Any

from .reports import UNKNOWN

if TYPE_CHECKING:
    from ..running.running import Running
    from ..telemetry.run import Run


class Function:
    """A callable that was sent once: unpickled at its first use, inside the task that uses it."""

    __slots__ = ("_body", "_value", "kind", "name")

    def __init__(self, name: str, kind: str, body: bytes) -> None:
        self.name = name
        self.kind = kind
        self._body: bytes | None = body
        self._value: Any = None

    def load(self) -> Any:
        if self._body is not None:
            self._value = loads(self._body)
            self._body = None
        return self._value

    @property
    def missing(self) -> bool:
        """Whether it was wanted and could not be imported."""
        return self._body is not None


def again(function: Function, extras: dict[str, Any] | None, attempt: int, error: BaseException) -> float | None:
    """What a worker should do about a failure: seconds until another attempt, None, or UNKNOWN."""
    if function.missing and isinstance(error, (ImportError, AttributeError)):
        return UNKNOWN
    if extras is None or "retry" not in extras:
        return None
    from ..caller.options import delay_of

    return delay_of(extras["retry"], attempt, error)


def begin(running: Running, name: str, extras: dict[str, Any]) -> Run | None:
    """Begin the run's span, where one is wanted and can be: what is told of the end of the run is told to it, too."""
    from ..telemetry import begin

    return begin(running, name, extras["queue"], extras["headers"])
