"""A job of an exposed function that this worker holds: what its child says becomes answers, for the queue's thread.

    local engine ──reports──▶ Replies ──▶ Served.take ──answers──▶ taker ══ Queue.answer ══▶ somebody else's client

Nothing of it goes through the messenger, so it is served while that is away.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from .. import telemetry
from ..engine import Answer, Lease, Parcel
from ..errors import UsageError
from ..pool.reports import (
    EVENT,
    PACKED,
    PROGRESS,
    REPORT_CANCELLED,
    REPORT_EVENTS,
    REPORT_FAILED,
    REPORT_LOST,
    REPORT_RAISED,
    REPORT_RETURNED,
    REPORT_SUCCEEDED,
    REPORT_WANT,
)
from ..running.exposed import serve
from ..wire.carry import Function, Work, by_reference, key_of, name_of
from ..wire.remote import headline
from .admission import Carried
from .held import Held

if TYPE_CHECKING:
    from .worker import Worker

_TARGET = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*\Z")
_SERVE = pickle.dumps(serve, 5)
_MOST = 0xFFFFFFFF
_PARTS = 1000  # of a progress that has a fraction and no count of its own
RAW = {"data": "data", "warning": "warning"}
"""Events whose one argument, if it is bytes, travels as it is."""


def targets(expose: Mapping[str, str | Callable[..., Any]]) -> dict[str, str]:
    """Names and where their functions are, `module:qualname`. Raises `UsageError`; imports nothing."""
    found: dict[str, str] = {}
    for name, target in expose.items():
        if callable(target):
            if not by_reference(target):
                raise UsageError(
                    f"{name}: {name_of(target)} cannot be imported by a worker's children: expose a function of a "
                    "module, or its name as 'module:function'"
                )
            target = name_of(target)
        if not isinstance(target, str) or not _TARGET.match(target):
            raise UsageError(f"expose {name}={target!r:.100} must be 'module:function', such as 'app:reverse'")
        found[name] = target
    return found


class Replies:
    """Part of the Worker: the sink of the local engine for exposed functions; on its threads."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def deliver(self, reports: Sequence[Any]) -> None:
        ended: list[Served] = []
        with self._worker.speaker.lock:
            for report in reports:
                served: Served = report[0].owner
                if not served.ended:
                    served.take(report)
                    if served.ended:
                        ended.append(served)
        self._worker.taker.answer_soon()
        if ended:
            if self._worker.lifecycle.watchers:
                self._worker.lifecycle.tell_served(ended)
            self._worker.over(ended, False)


class Served(Held):
    """One lease of an exposed function. Changed under the speaker's lock."""

    __slots__ = ()

    def __init__(self, worker: Worker, lease: Lease, target: str) -> None:
        super().__init__(worker, lease, "", None)
        function = Function(key_of(_SERVE), lease.name, "plain", _SERVE, True)
        payload = pickle.dumps(((lease.name, target, lease.body), {}), 5)
        self.lease = lease._replace(body=b"")
        kind = Carried if worker.live else Work
        headers: dict[str, str] | None = {} if telemetry.tracer is not None else None
        self.parcel = Parcel(lease.id, work=kind(function, payload), owner=self, headers=headers)

    def take(self, report: tuple[Any, ...]) -> None:
        kind = report[1]
        if kind == REPORT_EVENTS:
            for answer in answers_of(report[2]):
                self._say(answer)
        elif kind == REPORT_WANT:
            self._say(None)
        elif kind == REPORT_RETURNED:
            self._complete(report[2])
        elif kind == REPORT_SUCCEEDED:
            self._complete(_plain_bytes(report[2], report[3]))
        elif kind == REPORT_FAILED:
            self._except(headline(report[2]))
        elif kind == REPORT_RAISED:
            self._except(f"{type(report[2]).__name__}: {report[2]}")
        elif kind == REPORT_CANCELLED:
            self._except(f"TaskCancelled: its worker cancelled it ({report[2]})")
        elif kind == REPORT_LOST:
            self._except(f"{type(report[2]).__name__}: {report[2]}")

    def give_back(self, reason: str) -> None:
        """Nothing is said: when the connection closes, gearmand gives the job to another worker."""
        self.ended = True

    def _complete(self, value: Any) -> None:
        if type(value) is bytes:
            self._say(Answer("complete", value))
            self.ended = True
        else:
            self._except(f"ProtocolError: its child returned no bytes but {value!r:.200}")

    def _except(self, text: str) -> None:
        self.failure = text
        if not self.releasing:
            self._say(Answer("exception", text.encode("utf-8", "backslashreplace")))
        self.ended = True

    def _say(self, answer: Answer | None) -> None:
        self.worker.taker.answers.append((self, answer))


def answers_of(records: Sequence[Any]) -> list[Answer]:
    """What a child's records are to somebody else: WORK_STATUS the newest of several, lines of JSON, raw bytes."""
    found: list[Answer] = []
    for record in records:
        if record[0] == PROGRESS:
            answer = status(*record[4:7])
            if answer is None:
                continue
            if found and found[-1].kind == "status":
                found.pop()
            found.append(answer)
        elif record[0] == EVENT:
            name, args = record[2], record[4]
            if name in RAW and len(args) == 1 and type(args[0]) is bytes:
                found.append(Answer(RAW[name], args[0]))  # type: ignore[arg-type]
            else:
                found.append(Answer("data", msgspec.json.encode({"event": name, "args": args}) + b"\n"))
        elif record[0] == PACKED:  # a pickle, which nobody here reads: what its sender showed of it
            found.append(Answer("data", msgspec.json.encode({"event": record[2], "shown": record[5]}) + b"\n"))
    return found


def status(fraction: float | None, done: float | None, total: float | None) -> Answer | None:
    """Two whole numbers for a progress; None: it has none."""
    if done is not None and (total is None or total > 0):
        if _whole(done) and (total is None or _whole(total)):
            return Answer("status", done=int(done), total=int(total or 0))
        if total is not None and fraction is None:
            fraction = done / total
    if fraction is None or not 0 <= fraction <= 1:
        return None
    return Answer("status", done=round(fraction * _PARTS), total=_PARTS)


def _whole(number: float) -> bool:
    return 0 <= number <= _MOST and number == int(number)


class _Bytes(pickle.Unpickler):
    """Reads bytes and nothing else: no other name is looked up, so nothing else can be called."""

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) == ("builtins", "bytes"):
            return bytes
        raise pickle.UnpicklingError(f"{module}.{name} is no bytes")


def _plain_bytes(payload: Any, buffers: Sequence[Any] | None) -> Any:
    """A large result, which a child sends as a pickle."""
    try:
        return _Bytes(io.BytesIO(payload), buffers=buffers).load()
    except Exception as error:
        return error
