"""The side that submits and watches: a span for each submission, and for what ends so that no run can tell of it.

A child that is killed takes its span along, unfinished. So whoever noticed the death, the worker or the client whose
children they are, makes a span of its own, "watch f", from the start of the attempt to its end. The same tells of
another attempt where a client decides about it, which the run's span cannot know.
"""

from __future__ import annotations

import logging
from time import time
from typing import TYPE_CHECKING, Any

from opentelemetry import context as contexts
from opentelemetry import propagate, trace

from .. import __version__
from ..errors import TaskLost, TaskStalled, TaskTimeout
from .names import attributes

if TYPE_CHECKING:
    from ..caller.ending import Ending
    from ..engine import Parcel

log = logging.getLogger("revolve_assistant")
NO_RUN_TELLS = (TaskLost, TaskTimeout, TaskStalled)  # verdicts of who watches
KILLING = ("SIGTERM", "SIGKILL")  # rungs


def tracer_of(provider: Any) -> trace.Tracer:
    """A tracer of this library; None: of the global provider."""
    return trace.get_tracer("revolve_assistant", __version__, provider)


class Tracer:
    """What is made by `instrument`. Thread-safe. `submit` and `ended` never raise: an exporter's trouble is its own."""

    def __init__(self, provider: Any = None) -> None:
        self.provider = provider
        self._tracer = tracer_of(provider)

    def current(self) -> Any:
        """The calling thread's context, for a submission that another thread makes in its name."""
        return contexts.get_current()

    def submit(self, parcel: Parcel, count: int = 0, context: Any = None) -> None:
        """A parcel is handed over: make its span, and give it the headers by which its run finds the trace."""
        try:
            self._submit(parcel, count, context)
        except Exception:
            log.exception("the submission of task %s is not traced", parcel.id)

    def _submit(self, parcel: Parcel, count: int, context: Any) -> None:
        function = getattr(parcel.work, "function", None)
        name = function.name if function is not None else parcel.id
        found = attributes("submit", "send", parcel.id, name, parcel.queue)
        if count:
            found["messaging.batch.message_count"] = count
        span = self._tracer.start_span(f"submit {name}", context, trace.SpanKind.PRODUCER, found)
        headers: dict[str, str] = {}
        propagate.inject(headers, trace.set_span_in_context(span, context))
        span.end()
        parcel.headers = headers

    def ended(
        self, task: Ending, state: str, rung: str, error: BaseException | None, delay: float | None = None
    ) -> None:
        """A client's task ended, other than well, or its attempt did (`delay`: seconds until the next one)."""
        parcel = task._parcel
        if parcel is None or parcel.headers is None:
            return
        if delay is None and not isinstance(error, NO_RUN_TELLS) and not self.kills(rung):
            return  # its run said so
        started = getattr(task, "_started", None)
        began = started[1] if started is not None else None
        try:
            self.watched(parcel, task.name, state, rung, error, delay, began)
        except Exception:
            log.exception("the end of task %s is not traced", parcel.id)

    def kills(self, rung: str) -> bool:
        """Whether a run that ended by this rung could not tell of it."""
        return rung in KILLING

    def watched(
        self,
        parcel: Parcel,
        name: str,
        state: str,
        rung: str,
        error: BaseException | None,
        delay: float | None,
        began: float | None,
        ended: float | None = None,
    ) -> None:
        """The span "watch f" of an attempt, from `began` to `ended` (Unix seconds; None: now)."""
        now = ended or time()
        at = int(now * 1e9)
        found = attributes("watch", "", parcel.id, name, parcel.queue)
        found["revolve.task.attempt"] = parcel.attempt
        found["revolve.task.outcome"] = state
        if rung:
            found["revolve.task.rung"] = rung
        context = propagate.extract(parcel.headers or {})
        parent = trace.get_current_span(context).get_span_context()
        links = [trace.Link(parent)] if parent.is_valid else []
        start = int((began or now) * 1e9)
        span = self._tracer.start_span(f"watch {name}", context, trace.SpanKind.INTERNAL, found, links, min(start, at))
        if error is not None and state != "cancelled":
            span.record_exception(error, timestamp=at)
            span.set_status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}"[:1000])
        if delay is not None:
            span.add_event("retrying", {"revolve.delay": delay}, at)
        span.end(at)
