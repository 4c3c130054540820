"""Every error this library raises on purpose.

AssistantError
├─ UsageError(ValueError)            the call was wrong
│  ├─ UnknownProvider(LookupError)   no provider of that name or URL scheme
│  ├─ Unsupported                    this provider cannot do that
│  ├─ ClientClosed(RuntimeError)     the client was shut down
│  └─ NotCarriable(TypeError, PicklingError)   a callable, argument, event or result cannot travel
├─ ProviderError                     the carrier failed
│  ├─ ProviderMissing(ImportError)   the provider's library is not installed; names the extra
│  ├─ Unreachable(ConnectionError)   the engine did not answer in time
│  ├─ Overloaded                     too many unacknowledged submissions
│  └─ ProtocolError                  the other side spoke nonsense
├─ TaskError                         the work failed
│  ├─ RemoteError                    an exception that could not be rebuilt here
│  ├─ TaskTimeout(TimeoutError)      an attempt outlived `timeout`
│  ├─ TaskStalled                    no event for `stall` seconds
│  ├─ TaskLost                       what ran it died (signal, exit code, memory), or nobody knows how it ended
│  ├─ TaskRestarted                  a new attempt began after items were delivered
│  ├─ UnknownTask                    no worker knows the function
│  └─ TaskCancelled                  also concurrent.futures.CancelledError
└─ Untrusted                         a signature or an allow-list refused it

`CancelSignal` is no error: it is what a running callable sees when it is asked to stop.
"""

from __future__ import annotations

from _pickle import PicklingError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import CancelledError


class AssistantError(Exception):
    """The root of every error raised by this library."""


class UsageError(AssistantError, ValueError):
    """The call was wrong; nothing was changed by it."""


class UnknownProvider(UsageError, LookupError):
    """No provider has this name or URL scheme."""

    __str__ = Exception.__str__


class Unsupported(UsageError):
    """The provider cannot do what was asked (its `traits` say what it can)."""


class ClientClosed(UsageError, RuntimeError):
    """The client was shut down before the call, or before the task ended."""


class NotCarriable(UsageError, TypeError, PicklingError):
    """A callable, argument, event or result cannot travel to another process."""


class ProviderError(AssistantError):
    """The carrier failed, not the work."""


class ProviderMissing(ProviderError, ImportError):
    """The provider's library is not installed; the message names the extra to install."""


class Unreachable(ProviderError, ConnectionError):
    """The engine or messenger did not answer in time."""


class Overloaded(ProviderError):
    """More than `max_pending` submissions wait for an acknowledgement."""


class ProtocolError(ProviderError):
    """The other side sent what its protocol does not allow."""


class TaskError(AssistantError):
    """The work failed."""


class RemoteError(TaskError):
    """An exception of the callable that could not be rebuilt in this process.

    `type_name` is its qualified class name, `remote_traceback` the text of the traceback there.
    """

    type_name: str = ""
    remote_traceback: str = ""


class TaskTimeout(TaskError, TimeoutError):
    """An attempt ran longer than its `timeout` and was stopped."""


class TaskStalled(TaskError):
    """An attempt sent no event for `stall` seconds and was stopped."""


class TaskLost(TaskError):
    """What ran the task died, or nobody can say any more how it ended.

    `signal` (int or None), `exit_code` (int or None), `last_event` (name of the last event seen or None),
    `peak_memory` and `memory_limit` (bytes or None).
    """

    signal: int | None = None
    exit_code: int | None = None
    last_event: str | None = None
    peak_memory: int | None = None
    memory_limit: int | None = None


class TaskRestarted(TaskError):
    """A new attempt began after items of an earlier one had been delivered."""


class UnknownTask(TaskError):
    """No worker could import the task's function."""


if TYPE_CHECKING:

    class TaskCancelled(TaskError, CancelledError):
        """The task ended as cancelled; `rung` says which rung of the ladder ended it."""

        rung: str


class Untrusted(AssistantError):
    """A signature or an allow-list refused a message; nothing of it was decoded.

    `reason` is one of "forged", "unknown key", "truncated", "expired", "newer version", "unsigned", or "" where no
    seal was the matter. `fingerprint` names the secret that the message says it was sealed with, or is "". For all
    reasons but "expired" both are no more than what the message claims.
    """

    reason: str = ""
    fingerprint: str = ""


class CancelSignal(BaseException):
    """Raised inside a running callable that was asked to stop; let it pass.

    A `BaseException`, as `KeyboardInterrupt` and `asyncio.CancelledError` are, so that `except Exception`
    in the callable does not swallow it. Clean up in `finally`.
    """


class Retry(Exception):
    """Raise inside a callable to ask for another attempt.

    `after` is the delay in seconds before the next attempt starts; None takes the task's own backoff.
    Counts against `retries`; when none is left the task fails with this exception.
    """

    def __init__(self, message: str = "", *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after

    def __reduce__(self) -> tuple[object, ...]:
        return (_retry, (str(self), self.after))


def _retry(message: str, after: float | None) -> Retry:
    return Retry(message, after=after)


def __getattr__(name: str) -> Any:
    """TaskCancelled is made when it is first needed: its second base brings `logging` along, 5 ms for each child."""
    if name != "TaskCancelled":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from concurrent.futures import CancelledError

    cancelled = type(
        "TaskCancelled",
        (TaskError, CancelledError),
        {
            "__module__": __name__,
            "__doc__": "The task ended as cancelled; `rung` says which rung of the ladder ended it.",
            "rung": "",
        },
    )
    globals()[name] = cancelled
    return cancelled
