"""Traces, with the real OpenTelemetry SDK: every span goes to a file, from whatever process it comes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from revolve_assistant import Client, TaskLost, TaskTimeout, Worker, telemetry
from revolve_assistant.errors import ProviderMissing
from revolve_assistant.telemetry.port import MAX_EVENTS
from revolve_assistant.testing.servers import Gearmand

from .telemetry_tasks import (
    LONG,
    busily,
    deaf,
    dies_once,
    failing,
    failing_async,
    forever,
    hide,
    killed,
    one_of,
    provide,
    remembered,
    second_time,
    set_up,
    set_up_broken,
    stormy,
    story,
    story_async,
)

SECRET = "a secret of these tests only"
numbers = itertools.count()


class Spans:
    """What arrived in the file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        path.touch()

    @property
    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(self.path).read_text(encoding="utf-8").splitlines()]

    def __call__(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        """The spans whose names begin so; exactly `count`, which may take a moment to arrive."""
        deadline = time.monotonic() + LONG
        while len(found := [span for span in self.all if span["name"].startswith(name)]) < count:
            assert time.monotonic() < deadline, f"{name}: {[span['name'] for span in self.all]}"
            time.sleep(0.01)
        assert len(found) == count, f"{name}: {[span['name'] for span in self.all]}"
        return found

    def one(self, name: str) -> dict[str, Any]:
        return self(name)[0]


@pytest.fixture
def spans(tmp_path: Path) -> Spans:
    return Spans(tmp_path / "spans")


@pytest.fixture
def provider(spans: Spans) -> Iterator[TracerProvider]:
    provider = provide(spans.path)
    telemetry.instrument(provider)
    yield provider
    telemetry.uninstrument()
    provider.shutdown()


@pytest.fixture(params=["process", "thread", "inline", "fork", "executor"])
def client(request: pytest.FixtureRequest, spans: Spans, provider: TracerProvider) -> Iterator[Client]:
    if request.param == "executor":
        with ProcessPoolExecutor(1, initializer=set_up, initargs=(spans.path,)) as pool, Client(pool) as client:
            yield client
    elif request.param == "process":
        with Client(max_workers=1, initializer=set_up, initargs=(spans.path,)) as client:
            yield client
    else:
        with Client(f"{request.param}://") as client:
            yield client


@pytest.fixture
def processes(spans: Spans, provider: TracerProvider) -> Iterator[Client]:
    with Client(max_workers=1, initializer=set_up, initargs=(spans.path,)) as client:
        yield client


def ids(span: dict[str, Any]) -> tuple[str, str]:
    return span["context"]["trace_id"], span["context"]["span_id"]


# --- every engine


@pytest.mark.parametrize("work", [story, story_async])
def test_a_task_is_part_of_its_callers_trace_and_says_no_secret(client, provider, spans, work):
    with provider.get_tracer("app").start_as_current_span("request") as request:
        assert client.submit(work, "hunter2").result(LONG) == "hunter2"
    submit, process = spans.one("submit"), spans.one("process")
    name = f"{work.__module__}:{work.__qualname__}"
    assert (submit["name"], process["name"]) == (f"submit {name}", f"process {name}")
    assert (submit["kind"], process["kind"]) == ("SpanKind.PRODUCER", "SpanKind.CONSUMER")
    assert submit["context"]["trace_id"] == f"0x{request.get_span_context().trace_id:032x}"
    assert submit["parent_id"] == f"0x{request.get_span_context().span_id:016x}"
    assert (process["context"]["trace_id"], process["parent_id"]) == ids(submit)
    assert [(each["context"]["trace_id"], each["context"]["span_id"]) for each in process["links"]] == [ids(submit)]
    assert [event["name"] for event in process["events"]] == ["chapter", "progress", "own"]
    assert process["events"][1]["attributes"] == {"revolve.fraction": 0.5}
    assert process["status"] == {"status_code": "UNSET"}
    found = process["attributes"]
    assert found["messaging.system"] == "revolve_assistant"
    assert (found["messaging.operation.name"], found["messaging.operation.type"]) == ("process", "process")
    assert found["messaging.message.id"] == submit["attributes"]["messaging.message.id"]
    assert found["messaging.destination.name"] == "default"
    assert found["code.function.name"] == name.replace(":", ".")
    assert (found["revolve.task.attempt"], found["revolve.task.outcome"], found["revolve.events"]) == (
        1,
        "succeeded",
        3,
    )
    text = json.dumps(spans.all)
    assert "secret argument" not in text
    assert "secret message" not in text
    assert "hunter2" not in text


def test_what_the_callable_traces_is_inside_its_run(processes, spans):
    processes.submit(story, "").result(LONG)
    inside, process = spans.one("inside"), spans.one("process")
    assert (inside["context"]["trace_id"], inside["parent_id"]) == ids(process)
    assert inside["pid"] == process["pid"] != os.getpid()


def test_baggage_crosses(client):
    token = context.attach(baggage.set_baggage("customer", "Jürgen & Söhne"))
    try:
        assert client.submit(remembered).result(LONG) == "Jürgen & Söhne"
    finally:
        context.detach(token)


@pytest.mark.parametrize("work", [failing, failing_async])
def test_a_failure_is_an_exception_and_a_status(client, spans, work):
    with pytest.raises(ValueError, match="no such folder"):
        client.submit(work).result(LONG)
    process = spans.one("process")
    assert process["status"] == {"status_code": "ERROR", "description": "ValueError: no such folder"}
    (event,) = process["events"]
    assert (event["name"], event["attributes"]["exception.type"]) == ("exception", "ValueError")
    assert "in failing" in event["attributes"]["exception.stacktrace"]
    assert process["attributes"]["revolve.task.outcome"] == "failed"
    assert [span["name"].split()[0] for span in spans.all if span["name"].startswith("watch")] == []


def test_a_cancelled_run_says_so(client, spans, request):
    if "inline" in request.node.name:
        pytest.skip("inline, nobody can cancel while it runs")
    task = client.submit(forever)
    next(iter(task.events("ready")))
    task.cancel()
    assert [event.name for event in task.events()][-1] == "cancelled"
    process = spans.one("process")
    assert process["attributes"]["revolve.task.outcome"] == "cancelled"
    assert process["events"][-1]["name"] == "cancelled"


# --- bounds


def test_a_storm_of_events_is_bounded(client, spans):
    client.submit(stormy, 2000).result(LONG)
    process = spans.one("process")
    assert len(process["events"]) == MAX_EVENTS
    assert process["attributes"]["revolve.events"] == 4000
    assert process["attributes"]["revolve.events.left_out"] == 4000 - MAX_EVENTS


def test_progress_is_noted_once_a_second(processes, spans):
    processes.submit(busily).result(LONG)
    assert 1 <= len(spans.one("process")["events"]) < 10


# --- what no run can tell


@pytest.mark.parametrize("url", ["process://", "fork://"])
def test_who_watches_tells_of_a_killed_child(url, provider, spans):
    with Client(url) as client, pytest.raises(TaskLost):
        client.submit(killed).result(LONG)
    submit, watch = spans.one("submit"), spans.one("watch")
    assert (watch["context"]["trace_id"], watch["parent_id"]) == ids(submit)
    assert watch["status"]["status_code"] == "ERROR"
    assert watch["events"][0]["attributes"]["exception.type"].endswith("TaskLost")
    assert watch["attributes"]["revolve.task.outcome"] == "lost"
    spans("process", 0)


def test_who_watches_tells_of_a_child_that_had_to_be_killed(provider, spans):
    with Client(max_workers=1, ladder=(0.05, 0.05, 0.05)) as client:
        task = client.options(timeout=0.2).submit(deaf)
        with pytest.raises(TaskTimeout):
            task.result(LONG)
        watch = spans.one("watch")
        assert watch["events"][0]["attributes"]["exception.type"].endswith("TaskTimeout")
        second = client.submit(deaf)
        next(iter(second.events("ready")))
        second.cancel()
        assert list(second.events())[-1].name == "cancelled"
    watch = spans("watch", 2)[1]
    assert watch["attributes"]["revolve.task.rung"] in ("SIGTERM", "SIGKILL")
    assert watch["status"]["status_code"] == "UNSET"  # it was asked for


def test_another_attempt_is_another_run_of_the_same_trace(processes, spans, tmp_path):
    assert processes.options(retries=1).submit(second_time, str(tmp_path / "mark")).result(LONG) == "now"
    first, second = spans("process", 2)
    assert [each["attributes"]["revolve.task.attempt"] for each in (first, second)] == [1, 2]
    assert first["context"]["trace_id"] == second["context"]["trace_id"]
    assert first["status"]["status_code"] == "ERROR"
    retrying = spans.one("watch")["events"][-1]
    assert (retrying["name"], retrying["attributes"]["revolve.delay"]) == ("retrying", 0.01)


# --- map


def test_a_chunk_of_a_map_is_one_run(processes, provider, spans):
    with provider.get_tracer("app").start_as_current_span("request") as request:
        results = list(processes.map(one_of, range(20), chunksize=10, errors="return"))
    assert results[4:] == list(range(4, 20))
    first, second = sorted(spans("process", 2), key=lambda span: span["start_time"])
    assert first["attributes"]["messaging.batch.message_count"] == 10
    assert first["attributes"]["revolve.items.failed"] == 1
    assert first["events"][0]["attributes"]["revolve.item"] == 3
    assert second["status"]["status_code"] == "UNSET"
    trace_id = f"0x{request.get_span_context().trace_id:032x}"
    assert {span["context"]["trace_id"] for span in spans.all} == {trace_id}


# --- queues


@pytest.fixture(scope="module")
def gearmand() -> Iterator[Gearmand]:
    with Gearmand() as server:
        yield server


@pytest.fixture(params=["memory", "gearman"])
def place(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return f"memory://telemetry-{next(numbers)}"
    request.getfixturevalue("need")("gearmand")
    server = request.getfixturevalue("gearmand")
    return f"gearman://{server.host}:{server.port}/telemetry-{next(numbers)}"


@pytest.fixture
def serve(place: str, spans: Spans) -> Callable[..., Worker]:
    def serve(**options: Any) -> Worker:
        chosen = {"concurrency": 1, "grace": 10.0, "secret": SECRET, "initializer": set_up, "initargs": (spans.path,)}
        return Worker(place, **{**chosen, **options})

    return serve


@pytest.mark.parametrize("pool", ["process", "thread", "fork", "inline"])
def test_a_trace_crosses_a_queue(place, serve, pool, provider, spans):
    options = {"initializer": None, "initargs": ()} if pool != "process" else {}
    with serve(pool=pool, **options), Client(place, secret=SECRET) as client:
        with provider.get_tracer("app").start_as_current_span("request") as request:
            assert client.submit(story, "hunter2").result(LONG) == "hunter2"
        submit, process = spans.one("submit"), spans.one("process")
    assert submit["context"]["trace_id"] == f"0x{request.get_span_context().trace_id:032x}"
    assert (process["context"]["trace_id"], process["parent_id"]) == ids(submit)
    assert [event["name"] for event in process["events"]] == ["chapter", "progress", "own"]
    assert "hunter2" not in json.dumps(spans.all)


def test_a_worker_that_is_told_to_traces_tasks_that_come_without_a_trace(place, serve, spans):
    with Client(place, secret=SECRET) as client:
        with serve():
            client.submit(story, "").result(LONG)
        spans("process", 0)
        provider = provide(spans.path)
        telemetry.instrument(provider)
        worker = serve()
        try:
            with worker:
                client.submit(story, "")  # which is traced here, too
                telemetry.uninstrument()
                telemetry.instrument(provider)
                parcel_without(client)
                spans("process", 2)
        finally:
            telemetry.uninstrument()
            provider.shutdown()
    roots = [span for span in spans("process", 2) if span["parent_id"] is None]
    assert len(roots) == 1
    assert roots[0]["links"] == []


def parcel_without(client: Client) -> None:
    """A task of a caller that knows nothing of traces."""
    kept, telemetry.tracer = telemetry.tracer, None
    try:
        client.submit(story, "").queued(LONG)
    finally:
        telemetry.tracer = kept


def test_a_worker_tells_of_its_dead_children_and_of_what_follows(place, serve, provider, spans, tmp_path):
    with serve(), Client(place, secret=SECRET) as client:
        assert client.submit(dies_once, str(tmp_path / "mark")).result(LONG) == "alive"
        submit, watch, process = spans.one("submit"), spans.one("watch"), spans.one("process")
    assert (watch["context"]["trace_id"], watch["parent_id"]) == ids(submit)
    assert watch["attributes"]["revolve.task.outcome"] == "retrying"
    assert [event["name"] for event in watch["events"]] == ["exception", "retrying"]
    assert process["attributes"]["revolve.task.attempt"] == 2


def test_a_workers_run_knows_of_its_next_attempt(place, serve, provider, spans, tmp_path):
    with serve(), Client(place, secret=SECRET) as client:
        task = client.options(retries=1, backoff=0.01).submit(second_time, str(tmp_path / "mark"))
        assert task.result(LONG) == "now"
        first, second = spans("process", 2)
    assert first["attributes"]["revolve.task.outcome"] == "retrying"
    assert first["events"][-1]["name"] == "retrying"
    assert second["attributes"]["revolve.task.outcome"] == "succeeded"


# --- where it is absent or broken


def test_nothing_is_imported_that_nobody_asked_for():
    code = (
        "import sys; from revolve_assistant import Client\n"
        "with Client('thread://') as client: client.submit(pow, 2, 2).result()\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry') or 'telemetry.' in name])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_child_without_the_library_runs_what_comes_with_a_trace(provider):
    with Client(max_workers=1, initializer=hide) as client:
        assert [client.submit(stormy, 3).result(LONG) for _ in range(2)] == [3, 3]
        assert list(client.map(abs, [-1, -2])) == [1, 2]


def test_a_process_without_the_library_is_told_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("opentelemetry", "revolve_assistant.telemetry."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ProviderMissing, match=r"revolve-assistant\[telemetry\]"):
        telemetry.instrument()
    assert telemetry.tracer is None


def test_an_exporter_that_raises_disturbs_no_task(provider):
    with Client(max_workers=1, initializer=set_up_broken) as client:
        assert client.submit(stormy, 3).result(LONG) == 3
        with pytest.raises(ValueError, match="no such folder"):
            client.submit(failing).result(LONG)


def test_what_a_fork_recorded_is_exported_before_it_ends(spans):
    provider = provide(spans.path, batch=True)
    telemetry.instrument(provider)
    try:
        with Client("fork://?other_threads=allow") as client:
            client.submit(story, "").result(LONG)
            assert spans.one("process")["pid"] != os.getpid()
    finally:
        telemetry.uninstrument()
        provider.shutdown()


def test_spans_in_memory():
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    telemetry.instrument(provider)
    try:
        with Client("inline://") as client:
            client.submit(story, "").result()
    finally:
        telemetry.uninstrument()
    assert [span.name.split()[0] for span in kept.get_finished_spans()] == ["submit", "process"]
    with Client("inline://") as client:
        client.submit(story, "").result()
    assert len(kept.get_finished_spans()) == 2


# --- switched on from outside

APP = """
from opentelemetry import trace
def work(word):
    with trace.get_tracer("app").start_as_current_span("inside"):
        return word
"""
CONSOLE = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}


def printed(text: str) -> dict[str, dict[str, Any]]:
    """The spans that a ConsoleSpanExporter printed among other things, by the first word of their names."""
    decoder, found, at = json.JSONDecoder(), {}, 0
    while (at := text.find("{", at)) >= 0:
        try:
            span, at = decoder.raw_decode(text, at)
        except ValueError:
            at += 1
            continue
        if "context" in span:
            found[span["name"].split()[0]] = span
    return found


def test_opentelemetry_instrument_traces_a_program_and_its_children(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "program.py").write_text(
        "import app\nfrom revolve_assistant import Client\n"
        "with Client(max_workers=1) as client: print(client.submit(app.work, 'x').result())\n"
    )
    command = [str(Path(sys.executable).parent / "opentelemetry-instrument"), sys.executable, "program.py"]
    found = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **CONSOLE}, capture_output=True, text=True, check=True, timeout=60
    )
    spans = printed(found.stdout)
    assert set(spans) == {"submit", "process", "inside"}, found.stdout + found.stderr
    assert len({span["context"]["trace_id"] for span in spans.values()}) == 1
    assert spans["inside"]["parent_id"] == spans["process"]["context"]["span_id"]


def test_a_worker_is_told_by_a_flag_and_the_standard_variables(tmp_path, need, gearmand, spans, provider):
    need("gearmand")
    (tmp_path / "app.py").write_text(APP)
    place = f"gearman://{gearmand.host}:{gearmand.port}/telemetry-flag-{os.getpid()}"
    command = [sys.executable, "-m", "revolve_assistant.cli", "worker", place, "--telemetry", "-c", "1"]
    environment = {**os.environ, **CONSOLE, "REVOLVE_SECRET": SECRET}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as worker:
        try:
            sys.path.insert(0, str(tmp_path))
            import app  # type: ignore[import-not-found]

            with Client(place, secret=SECRET) as client:
                assert client.submit(app.work, "x").result(LONG) == "x"
        finally:
            sys.path.remove(str(tmp_path))
            sys.modules.pop("app", None)
            worker.terminate()
            said, complained = worker.communicate(timeout=LONG)
    assert worker.returncode == 0, complained
    found = printed(said)
    assert set(found) == {"process", "inside"}, said + complained
    (submit,) = spans("submit")
    assert (found["process"]["context"]["trace_id"], found["process"]["parent_id"]) == ids(submit)


def test_an_exporter_that_is_not_installed_is_said_at_the_start():
    command = [sys.executable, "-m", "revolve_assistant.cli", "worker", "gearman://127.0.0.1:1", "--telemetry"]
    environment = {**os.environ, **CONSOLE, "OTEL_TRACES_EXPORTER": "carrier-pigeon", "REVOLVE_SECRET": SECRET}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 2
    assert "carrier-pigeon" in found.stderr
    assert "Traceback" not in found.stderr
