"""What `opentelemetry-instrument` finds under the entry point `opentelemetry_instrumentor`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined, unused-ignore]

from . import instrument, uninstrument


class RevolveAssistantInstrumentor(BaseInstrumentor):  # type: ignore[misc, unused-ignore]
    """`instrument(tracer_provider=…)`, as of every instrumentation library."""

    def instrumentation_dependencies(self) -> Collection[str]:
        return []

    def _instrument(self, **kwargs: Any) -> None:
        instrument(kwargs.get("tracer_provider"))

    def _uninstrument(self, **kwargs: Any) -> None:
        uninstrument()
