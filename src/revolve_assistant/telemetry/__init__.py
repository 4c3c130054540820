"""OpenTelemetry: submitting a task and running it are spans of one trace, on whatever engine it runs.

    caller                           carrier                        who runs it
    span "submit f" (PRODUCER) ──▶ headers: traceparent … ──▶ span "process f" (CONSUMER), current while f runs
                                                                └─ events of the task are events of the span

Switched off, nothing here is imported but this module, and a submission costs one look at `tracer`. A trace that comes
with a task is continued wherever `opentelemetry-api` is installed; `instrument` also begins one for those that come
without. Arguments, results and what events carry are never recorded.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from ..errors import ProviderMissing, UsageError

if TYPE_CHECKING:
    from ..running.running import Running
    from .run import Run
    from .tracing import Tracer

REQUIRES = "telemetry"
log = logging.getLogger("revolve_assistant")

tracer: Tracer | None = None
"""Set while this process is instrumented."""

_absent = False  # opentelemetry-api was looked for in this process, and is not there
_configured = False


def instrument(tracer_provider: Any = None) -> None:
    """Trace what this process submits, and what its Workers run. Thread-safe; again: with another provider.

    `tracer_provider` None: the global one at the time of each span. Children of `process://` and of workers have a
    provider of their own, set up by their `initializer` or from the environment (`REVOLVE_TELEMETRY=1`). Raises
    `ProviderMissing` where `opentelemetry-api` is not installed.
    """
    global tracer  # noqa: PLW0603 - what `submit` looks at
    try:
        from .tracing import Tracer
    except ImportError as error:
        raise _missing(error) from error
    tracer = Tracer(tracer_provider)


def uninstrument() -> None:
    """Trace no more; tasks on their way keep their trace."""
    global tracer  # noqa: PLW0603
    tracer = None


def configure() -> None:
    """Set up the SDK from `OTEL_*` variables, as `opentelemetry-instrument` does, unless a provider is there already.

    `OTEL_TRACES_EXPORTER` defaults to `otlp`, as it should. Raises `ProviderMissing`, and `UsageError` for an exporter
    that is not installed.
    """
    global _configured  # noqa: PLW0603
    _configured = True
    try:
        from opentelemetry import trace

        if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            return
        from opentelemetry.sdk._configuration import _OTelSDKConfigurator
    except ImportError as error:
        raise _missing(error) from error
    name = os.environ.setdefault("OTEL_TRACES_EXPORTER", "otlp")
    try:
        _OTelSDKConfigurator().configure()  # type: ignore[no-untyped-call, unused-ignore]
    except Exception as error:  # whatever an exporter's package raises
        raise UsageError(
            f"OpenTelemetry cannot be set up with OTEL_TRACES_EXPORTER={name}: {error}; otlp needs: "
            "pip install opentelemetry-exporter-otlp"
        ) from error


def begin(running: Running, name: str, queue: str, headers: dict[str, str]) -> Run | None:
    """A task's run begins in this thread or coroutine: its span, made current. None: nothing can be traced here.

    Never raises.
    """
    global _absent  # noqa: PLW0603
    if _absent:
        return None
    try:
        if not _configured and os.environ.get("REVOLVE_TELEMETRY") == "1":
            configure()
        from .run import Run

        return Run(running, name, queue, headers, tracer)
    except ImportError:
        _absent = True
    except Exception:
        log.exception("the run of task %s is not traced", running.id)
    return None


def flush() -> None:
    """Have what was recorded exported now: this process ends without ado. Blocks up to 5 s; never raises."""
    try:
        from opentelemetry import trace

        provider: Any = (tracer.provider if tracer is not None else None) or trace.get_tracer_provider()
        if hasattr(provider, "force_flush"):
            provider.force_flush(5000)
    except Exception:
        log.exception("the trace of a task is incomplete")


def _missing(error: ImportError) -> ProviderMissing:
    return ProviderMissing(f"telemetry needs: pip install 'revolve-assistant[{REQUIRES}]' ({error})")
