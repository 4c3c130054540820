"""The side that runs: the span of one run, current while the callable runs, in a child, a thread or a coroutine."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from opentelemetry import context as contexts
from opentelemetry import propagate, trace

from .names import attributes
from .port import TracedPort
from .tracing import tracer_of

if TYPE_CHECKING:
    from ..running.running import Running
    from .tracing import Tracer

log = logging.getLogger("revolve_assistant")
MAX_FAILED_ITEMS = 10  # of a chunk, recorded one by one


class Run:
    """One run of a task, or of a chunk of `map`. Begun and ended in one thread or coroutine. Its methods never raise:
    what an exporter makes of a span is no business of the task."""

    __slots__ = ("_failed", "_port", "_span", "_token")

    def __init__(self, running: Running, name: str, queue: str, headers: dict[str, str], tracer: Tracer | None) -> None:
        self._port: TracedPort | None = None
        self._failed = 0
        context = propagate.extract(headers)
        parent = trace.get_current_span(context).get_span_context()
        links = [trace.Link(parent)] if parent.is_valid else []
        found = attributes("process", "process", running.id, name, queue)
        found["revolve.task.attempt"] = running.attempt
        self._span = tracer_of(tracer.provider if tracer is not None else None).start_span(
            f"process {name}", context, trace.SpanKind.CONSUMER, found, links
        )
        self._token: Any = contexts.attach(trace.set_span_in_context(self._span, context))
        if running._port is not None and self._span.is_recording():
            running._port = self._port = TracedPort(running._port, self._span)

    def returned(self, running: Running, count: int = 0) -> None:
        """The callable returned, for all of `count` items; one that saw that it was to stop is cancelled."""
        if count:
            self._span.set_attribute("messaging.batch.message_count", count)
        if running._noticed:
            self.cancelled("flag")
        else:
            self._end("failed" if self._failed else "succeeded")

    def cancelled(self, rung: str) -> None:
        """The callable stopped because it was asked to, or because `CancelSignal` struck."""
        try:
            self._span.add_event("cancelled", {"revolve.task.rung": rung})
        except Exception:
            self._complain()
        self._end("cancelled")

    def failed(self, error: BaseException, again: float | None = None) -> None:
        """The callable raised. `again`: seconds until another attempt, where that is known here."""
        retrying = again is not None and again >= 0
        try:
            self._span.record_exception(error)
            self._span.set_status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}"[:1000])
            if retrying:
                self._span.add_event("retrying", {"revolve.delay": again or 0.0})
        except Exception:
            self._complain()
        self._end("retrying" if retrying else "failed")

    def item_failed(self, index: int, error: BaseException) -> None:
        """An item of a chunk raised; the others go on."""
        self._failed += 1
        if self._failed <= MAX_FAILED_ITEMS:
            try:
                self._span.record_exception(error, {"revolve.item": index})
                self._span.set_status(trace.StatusCode.ERROR, "items failed")
            except Exception:
                self._complain()

    def _end(self, outcome: str) -> None:
        try:
            span, port = self._span, self._port
            span.set_attribute("revolve.task.outcome", outcome)
            if port is not None:
                span.set_attribute("revolve.events", port.count)
                span.set_attribute("revolve.events.left_out", port.count - port.noted)
            if self._failed:
                span.set_attribute("revolve.items.failed", self._failed)
            contexts.detach(self._token)
            span.end()
        except Exception:
            self._complain()

    def _complain(self) -> None:
        log.exception("the trace of a task's run is incomplete")
