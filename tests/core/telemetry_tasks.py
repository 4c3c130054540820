"""What the tasks of test_telemetry do, apart so that children need not import pytest."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult

from revolve_assistant import Retry, emit, report, track

LONG = 30.0  # seconds that nothing here takes


class Lines(SpanExporter):
    """Appends each span to a file, as one line of JSON."""

    def __init__(self, path: str) -> None:
        self.path = path

    def export(self, spans: Any) -> SpanExportResult:
        with open(self.path, "a", encoding="utf-8") as file:
            for span in spans:
                file.write(json.dumps({**json.loads(span.to_json()), "pid": os.getpid()}) + "\n")
        return SpanExportResult.SUCCESS


def provide(path: str, batch: bool = False) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor((BatchSpanProcessor if batch else SimpleSpanProcessor)(Lines(path)))
    return provider


def set_up(path: str) -> None:
    """What an application's initializer does in each of its children."""
    trace.set_tracer_provider(provide(path))


def story(secret: str) -> str:
    emit("chapter", "the secret argument", secret)
    report(0.5, "the secret message")
    emit("own", {1, 2})
    with trace.get_tracer("app").start_as_current_span("inside"):
        pass
    return secret


async def story_async(secret: str) -> str:
    await asyncio.sleep(0)
    return story(secret)


def remembered() -> Any:
    return baggage.get_baggage("customer")


def failing() -> None:
    raise ValueError("no such folder")


async def failing_async() -> None:
    failing()


def forever() -> None:
    emit("ready")
    for _ in track(itertools.count()):
        time.sleep(0.001)


def stormy(count: int) -> int:
    for number in range(count):
        emit("drop", number)
    for number in range(count):
        report(number / count)
    return count


def busily() -> None:
    for number in range(1000):
        report(number / 1000)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def deaf() -> None:
    said = False
    while True:
        try:
            if not said:
                said = True
                emit("ready")
            time.sleep(LONG)
        except BaseException:
            pass


def second_time(path: str) -> str:
    if not os.path.exists(path):
        Path(path).touch()
        raise Retry("not yet", after=0.01)
    return "now"


def one_of(number: int) -> int:
    if number == 3:
        raise ValueError(number)
    return number


def dies_once(path: str) -> str:
    if not os.path.exists(path):
        Path(path).touch()
        killed()
    return "alive"


def hide() -> None:
    sys.modules["opentelemetry"] = None  # type: ignore[assignment]


class Broken(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        raise OSError("the collector is away")


def set_up_broken() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Broken()))
    trace.set_tracer_provider(provider)
