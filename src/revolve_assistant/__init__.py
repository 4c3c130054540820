"""Run a Python callable anywhere and hear from it while it runs."""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, whose import takes 5 ms
# name -> module that holds it. Loaded at first use: a child process that only emits never imports the caller's side.
_HOME = {
    "Client": "caller.client",
    "Task": "caller.task",
    "Worker": "worker.worker",
    "Make": "caller.make",
    "defaults": "caller.options",
    "Options": "caller.options",
    "emit": "running.api",
    "track": "running.api",
    "report": "running.api",
    "ask": "running.api",
    "current_task": "running.api",
    "reporting": "running.reporting",
    "Running": "running.api",
    "Event": "event",
    "Progress": "event",
    "Traits": "traits",
    "Messenger": "messenger",
    "Engine": "engine",
    "Queue": "engine",
    "Parcel": "engine",
    "Lease": "engine",
    "Outcome": "engine",
    **dict.fromkeys(
        [
            "AssistantError",
            "UsageError",
            "UnknownProvider",
            "Unsupported",
            "ClientClosed",
            "NotCarriable",
            "ProviderError",
            "ProviderMissing",
            "Unreachable",
            "Overloaded",
            "ProtocolError",
            "TaskError",
            "RemoteError",
            "TaskTimeout",
            "TaskStalled",
            "TaskLost",
            "TaskRestarted",
            "UnknownTask",
            "TaskCancelled",
            "Untrusted",
            "CancelSignal",
            "Retry",
        ],
        "errors",
    ),
}

if TYPE_CHECKING:
    from .caller.client import Client as Client
    from .caller.make import Make as Make
    from .caller.options import Options as Options
    from .caller.options import defaults as defaults
    from .caller.task import Task as Task
    from .engine import Engine as Engine
    from .engine import Lease as Lease
    from .engine import Outcome as Outcome
    from .engine import Parcel as Parcel
    from .engine import Queue as Queue
    from .errors import AssistantError as AssistantError
    from .errors import CancelSignal as CancelSignal
    from .errors import ClientClosed as ClientClosed
    from .errors import NotCarriable as NotCarriable
    from .errors import Overloaded as Overloaded
    from .errors import ProtocolError as ProtocolError
    from .errors import ProviderError as ProviderError
    from .errors import ProviderMissing as ProviderMissing
    from .errors import RemoteError as RemoteError
    from .errors import Retry as Retry
    from .errors import TaskCancelled as TaskCancelled
    from .errors import TaskError as TaskError
    from .errors import TaskLost as TaskLost
    from .errors import TaskRestarted as TaskRestarted
    from .errors import TaskStalled as TaskStalled
    from .errors import TaskTimeout as TaskTimeout
    from .errors import UnknownProvider as UnknownProvider
    from .errors import UnknownTask as UnknownTask
    from .errors import Unreachable as Unreachable
    from .errors import Unsupported as Unsupported
    from .errors import Untrusted as Untrusted
    from .errors import UsageError as UsageError
    from .event import Event as Event
    from .event import Progress as Progress
    from .messenger import Messenger as Messenger
    from .running.api import Running as Running
    from .running.api import ask as ask
    from .running.api import current_task as current_task
    from .running.api import emit as emit
    from .running.api import report as report
    from .running.api import track as track
    from .running.reporting import reporting as reporting
    from .traits import Traits as Traits
    from .worker.worker import Worker as Worker

__version__ = "0.1.0"
__all__ = sorted([*_HOME, "__version__"])  # noqa: PLE0605 - computed from the one table above


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
