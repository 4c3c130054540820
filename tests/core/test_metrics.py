"""A worker's metrics, scraped over HTTP and parsed as Prometheus does; what is in them happened to real tasks."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from revolve_assistant import Client, TaskLost, Worker
from revolve_assistant.engine import Count
from revolve_assistant.errors import ProviderMissing, Unreachable, UsageError
from revolve_assistant.providers.memory.queue import Queue as MemoryQueue
from revolve_assistant.testing import Door
from revolve_assistant.testing.servers import Gearmand, free_port
from revolve_assistant.worker import metrics as module
from revolve_assistant.worker.metrics import BUCKETS, FUNCTIONS, OTHER, QUEUES, Metrics, MetricsPort, bounded

from .metrics_tasks import deaf_until, failing, held, killed, talking

SECRET = "a secret of these tests only"
LONG = 30.0  # seconds that nothing here takes


class Scraped:
    """What a port says, with the parser of prometheus_client."""

    def __init__(self, url: str, accept: str = "text/plain") -> None:
        request = urllib.request.Request(url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=LONG) as response:
            self.text = response.read().decode()
        parse = open_metrics if "openmetrics" in accept else text_string_to_metric_families
        families = list(parse(self.text))
        assert len({family.name for family in families}) == len(families)
        self.samples = [sample for family in families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name that have these labels; 0.0: there is none."""
        return sum(sample.value for sample in self.of(name) if labels.items() <= sample.labels.items())

    def of(self, name: str) -> list[Any]:
        return [sample for sample in self.samples if sample.name == name]


def until(url: str, met: Callable[[Scraped], Any]) -> Scraped:
    """The first scrape for which that holds: what a caller hears of an end is not written yet where it is counted."""
    deadline = time.monotonic() + LONG
    while not met(found := Scraped(url)):
        assert time.monotonic() < deadline, found.text
        time.sleep(0.02)
    return found


class Served:
    """A worker in this process, and where its metrics are."""

    def __init__(self, place: Any, **options: Any) -> None:
        self.registry = CollectorRegistry()
        self.worker = Worker(place, **{"concurrency": 1, "secret": SECRET, "grace": 10.0, **options})
        self.metrics = Metrics(self.worker, self.registry)
        self.port = MetricsPort("127.0.0.1", 0, self.registry)
        self.url = f"http://127.0.0.1:{self.port.port}/metrics"

    def __enter__(self) -> Served:
        self.worker.start()
        assert self.worker.wait_ready(LONG)
        return self

    def __exit__(self, *exc: object) -> None:
        self.port.close()
        self.worker.stop()
        self.metrics.close()


# ---------------------------------------------------------------- what is counted


@pytest.mark.parametrize("pool", ["process", "thread", "fork"])
def test_starts_and_ends_are_counted_by_function_and_outcome(pool):
    with (
        Served(f"memory://metrics-{pool}", pool=pool) as served,
        Client(f"memory://metrics-{pool}", secret=SECRET) as client,
    ):
        for _ in range(3):
            assert client.submit(talking, 5).result(LONG) == 5
        with pytest.raises(ValueError, match="no such folder"):
            client.submit(failing).result(LONG)
        task = client.submit(deaf_until, "")
        next(iter(task.events("up")))
        task.cancel()
        assert [event.name for event in task.events()][-1] == "cancelled"
        found = until(served.url, lambda found: found("revolve_tasks_held") == 0)
    name = f"{talking.__module__}:"
    assert found("revolve_tasks_started_total", function=f"{name}talking", queue="default") == 3
    assert found("revolve_tasks_ended_total", function=f"{name}talking", outcome="succeeded") == 3
    assert found("revolve_tasks_ended_total", function=f"{name}failing", outcome="failed") == 1
    assert found("revolve_tasks_ended_total", function=f"{name}deaf_until", outcome="cancelled") == 1
    assert found("revolve_tasks_ended_total") == found("revolve_tasks_started_total") == 5
    assert found("revolve_task_seconds_count", function=f"{name}talking") == 3
    assert found("revolve_task_seconds_bucket", function=f"{name}talking", le="+Inf") == 3
    assert found("revolve_task_seconds_bucket", function=f"{name}talking", le=str(BUCKETS[-1])) == 3
    assert 0 <= found("revolve_task_seconds_sum", function=f"{name}talking") < LONG
    assert found("revolve_events_written_total") >= 15 + 10
    assert found("revolve_worker_concurrency") == 1
    (info,) = found.of("revolve_worker_info")
    assert (info.labels["pool"], info.labels["queues"]) == (pool, "default")
    assert "no such folder" not in found.text


def test_what_runs_now_is_a_gauge(tmp_path):
    with Served("memory://metrics-now") as served, Client("memory://metrics-now", secret=SECRET) as client:
        path = tmp_path / "go"
        task = client.submit(held, str(path))
        next(iter(task.events("up")))
        found = Scraped(served.url)
        assert (found("revolve_tasks_running"), found("revolve_tasks_held"), found("revolve_children")) == (1, 1, 1)
        assert found("revolve_worker_ready") == 1
        assert found("revolve_tasks_ended_total") == 0
        path.touch()
        task.result(LONG)
        until(served.url, lambda found: found("revolve_tasks_running") == found("revolve_tasks_held") == 0)


def test_dead_children_and_those_that_follow_are_counted():
    with Served("memory://metrics-deaths") as served, Client("memory://metrics-deaths", secret=SECRET) as client:
        with pytest.raises(TaskLost):
            client.submit(killed).result(LONG)
        assert client.submit(talking, 0).result(LONG) == 0
        found = until(served.url, lambda found: found("revolve_tasks_held") == 0)
    name = f"{killed.__module__}:killed"
    assert found("revolve_children_died_total") == 3
    assert found("revolve_children_started_total") == 4
    assert found("revolve_tasks_started_total", function=name) == 3
    assert found("revolve_tasks_ended_total", function=name, outcome="retrying") == 2
    assert found("revolve_tasks_ended_total", function=name, outcome="failed") == 1


def test_children_that_are_replaced_as_planned_did_not_die():
    with (
        Served("memory://metrics-planned", max_tasks_per_child=1) as served,
        Client("memory://metrics-planned", secret=SECRET) as client,
    ):
        for _ in range(3):
            client.submit(talking, 0).result(LONG)
        found = until(served.url, lambda found: found("revolve_children_started_total") >= 3)
    assert found("revolve_children_died_total") == 0


def test_a_shutdown_buries_no_child():
    with Served("memory://metrics-over") as served:
        with Client("memory://metrics-over", secret=SECRET) as client:
            client.submit(talking, 0).result(LONG)
        served.worker.stop()
        found = Scraped(served.url)
    assert found("revolve_children_died_total") == 0
    assert found("revolve_worker_ready") == 0


def test_lost_connections_are_counted(need):
    need("gearmand")
    with Gearmand() as server, Door(server.port) as door:
        place = f"gearman://{door.host}:{door.port}/metrics-door"
        with Served(place) as served, Client(place, secret=SECRET) as client:
            client.submit(talking, 1).result(LONG)
            found = Scraped(served.url)
            assert (found("revolve_reconnects_total"), found("revolve_worker_ready")) == (0, 1)
            door.shut()
            door.cut()
            until(served.url, lambda found: found("revolve_worker_ready") == 0)
            door.open()
            until(served.url, lambda found: found("revolve_reconnects_total", carrier="queue") == 1)
            until(served.url, lambda found: found("revolve_worker_ready") == 1)
            assert client.submit(talking, 2).result(LONG) == 2


def exposed(data: bytes) -> bytes:
    return data[::-1]


def test_exposed_functions_count_too(need):
    need("gearmand")
    with Gearmand() as server:
        place = f"gearman://{server.host}:{server.port}/metrics-exposed"
        with Served(place, expose={"reverse": exposed}) as served, Client(place, secret=SECRET) as client:
            assert client.submit("reverse", b"abc").result(LONG) == b"cba"
            found = until(served.url, lambda found: found("revolve_tasks_held") == 0)
    assert found("revolve_tasks_started_total", function="reverse") == 1
    assert found("revolve_tasks_ended_total", function="reverse", outcome="succeeded") == 1


# ---------------------------------------------------------------- bounds


def test_functions_beyond_the_most_are_counted_together(monkeypatch):
    monkeypatch.setattr(module, "FUNCTIONS", 2)
    with (
        Served("memory://metrics-many", pool="thread") as served,
        Client("memory://metrics-many", secret=SECRET) as client,
    ):
        for function in (abs, float, int, str):
            client.submit(function, 1).result(LONG)
        found = until(served.url, lambda found: found("revolve_tasks_held") == 0)
    assert {each.labels["function"] for each in found.of("revolve_tasks_ended_total")} == {
        "builtins:abs",
        "builtins:float",
        OTHER,
    }
    assert found("revolve_tasks_ended_total", function=OTHER) == 2
    assert FUNCTIONS == 200


def test_queues_beyond_the_most_are_counted_together():
    many = [Count(f"q{number:03}", pending=1, buried=2, oldest=float(number)) for number in range(QUEUES + 5)]
    kept = bounded(many)
    assert len(kept) == QUEUES + 1
    assert kept[-1] == Count(OTHER, pending=5, buried=10, oldest=QUEUES + 4.0)
    assert sum(each.pending for each in kept) == QUEUES + 5


# ---------------------------------------------------------------- what the queue holds


class Managed(MemoryQueue):
    """The queue in memory, as one that can be looked into. It says `said`, or raises it, once `gate` is open."""

    traits = msgspec.structs.replace(MemoryQueue.traits, manages=True)

    def __init__(self, name: str, said: Any) -> None:
        super().__init__(name)
        self.said = said
        self.gate = threading.Event()
        self.gate.set()
        self.asked = 0
        self.at_once = self.most_at_once = 0

    def counts(self) -> Any:
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.gate.wait(LONG)
        self.at_once -= 1
        if isinstance(self.said, Exception):
            raise self.said
        return self.said

    def workers(self) -> Mapping[str, bytes]:
        return {"one": b"", "two": b""}


def test_what_a_queue_holds_is_asked_at_the_scrape():
    counts = [Count("default", 3, 2, 1, 4, 5, 60.5), Count("mail", pending=7)]
    with Served(Managed("metrics-counts", counts), messenger="memory://metrics-counts", pool="thread") as served:
        found = Scraped(served.url)
        states = {
            each.labels["state"]: each.value
            for each in found.of("revolve_queue_tasks")
            if each.labels["queue"] == "default"
        }
        assert states == {"pending": 3, "delayed": 2, "blocked": 1, "leased": 4, "buried": 5}
        assert found("revolve_queue_tasks", queue="mail", state="pending") == 7
        assert found("revolve_queue_oldest_seconds", queue="default") == 60.5
        assert (found("revolve_queue_workers"), found("revolve_queue_answers")) == (2, 1)


@pytest.mark.skipif(not MemoryQueue.traits.manages, reason="the queue in memory cannot be looked into")
def test_a_real_queue_is_asked(tmp_path):
    with (
        Served("memory://metrics-real", pool="thread") as served,
        Client("memory://metrics-real", secret=SECRET) as client,
    ):
        path = tmp_path / "go"
        tasks = [client.submit(held, str(path)) for _ in range(3)]
        next(iter(tasks[0].events("up")))
        found = Scraped(served.url)
        assert found("revolve_queue_tasks", queue="default", state="leased") == 1
        assert found("revolve_queue_tasks", queue="default", state="pending") == 2
        path.touch()
        for task in tasks:
            task.result(LONG)


def test_a_queue_that_does_not_answer_holds_up_neither_tasks_nor_scrapes(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    queue = Managed("metrics-slow", [Count("default", pending=1)])
    queue.gate.clear()
    with (
        Served(queue, messenger="memory://metrics-slow", pool="thread") as served,
        Client("memory://metrics-slow", secret=SECRET) as client,
    ):
        try:
            for _ in range(3):
                found = Scraped(served.url)
                assert (found("revolve_queue_answers"), found.of("revolve_queue_tasks")) == (0, [])
                assert found("revolve_worker_ready") == 1
                assert client.submit(talking, 1).result(LONG) == 1
            assert queue.asked == 1
        finally:
            queue.gate.set()
        found = until(served.url, lambda found: found("revolve_queue_answers") == 1)
        assert found("revolve_queue_tasks", state="pending") == 1


def test_scrapes_at_the_same_time_ask_once():
    queue = Managed("metrics-many-scrapes", [])
    queue.gate.clear()
    with Served(queue, messenger="memory://metrics-many-scrapes", pool="thread") as served:
        found: list[Scraped] = []
        threads = [threading.Thread(target=lambda: found.append(Scraped(served.url))) for _ in range(4)]
        for thread in threads:
            thread.start()
        while not queue.asked:
            time.sleep(0.005)
        queue.gate.set()
        for thread in threads:
            thread.join(LONG)
        assert [each("revolve_queue_answers") for each in found] == [1] * 4
        assert queue.most_at_once == 1


def test_a_queue_that_raises_is_no_error_of_the_scrape():
    queue = Managed("metrics-raises", Unreachable("the server is away"))
    with Served(queue, messenger="memory://metrics-raises", pool="thread") as served:
        assert Scraped(served.url)("revolve_queue_answers") == 0
        queue.said = []
        assert Scraped(served.url)("revolve_queue_answers") == 1


def test_nothing_is_said_of_a_queue_that_cannot_be_looked_into(need):
    need("gearmand")
    with Gearmand() as server, Served(f"gearman://{server.host}:{server.port}/metrics-plain") as served:
        assert "revolve_queue" not in Scraped(served.url).text


# ---------------------------------------------------------------- the port


def test_open_metrics_is_spoken_too():
    with (
        Served("memory://metrics-open", pool="thread") as served,
        Client("memory://metrics-open", secret=SECRET) as client,
    ):
        client.submit(talking, 1).result(LONG)
        found = Scraped(served.url, "application/openmetrics-text; version=1.0.0")
        assert found.text.endswith("# EOF\n")
        assert found("revolve_tasks_started_total") == 1


def test_two_workers_need_two_registries():
    registry = CollectorRegistry()
    first, second = (Worker("memory://metrics-two", secret=SECRET, pool="thread") for _ in range(2))
    metrics = Metrics(first, registry)
    with pytest.raises(UsageError, match="another worker"):
        Metrics(second, registry)
    assert second.lifecycle.watchers == []
    metrics.close()
    assert first.lifecycle.watchers == []
    Metrics(second, registry).close()
    for worker in (first, second):
        worker.stop()


def test_a_port_that_is_taken_is_said():
    registry = CollectorRegistry()
    port = MetricsPort("127.0.0.1", 0, registry)
    try:
        with pytest.raises(UsageError, match=f"the metrics port 127.0.0.1:{port.port} cannot be opened"):
            MetricsPort("127.0.0.1", port.port, registry)
    finally:
        port.close()


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "revolve_assistant.worker.metrics")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ProviderMissing, match=r"pip install 'revolve-assistant\[metrics\]'"):
        import_module("revolve_assistant.worker.metrics")


# ---------------------------------------------------------------- the command


APP = """
from revolve_assistant import emit
def work(word):
    emit("word", word)
    return word
"""


@pytest.fixture(scope="module")
def gearmand(need: Any) -> Iterator[Gearmand]:
    need("gearmand")
    with Gearmand() as server:
        yield server


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "metrics_app.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield import_module("metrics_app")
    sys.modules.pop("metrics_app", None)


def url_in(line: str) -> str:
    return line.rsplit(maxsplit=1)[-1]


def test_a_worker_serves_its_metrics_on_loopback(revolve, gearmand, app, tmp_path):
    place = f"gearman://{gearmand.host}:{gearmand.port}/{tmp_path.name}"
    program = revolve("worker", place, "--metrics", "0", "-c", "1", REVOLVE_SECRET=SECRET)
    url = url_in(program.says("metrics on"))
    assert url.startswith("http://127.0.0.1:")
    program.says("ready as")
    with Client(place, secret=SECRET) as client:
        for _ in range(4):
            client.submit(app.work, "x").result(LONG)
        found = until(url, lambda found: found("revolve_tasks_ended_total", outcome="succeeded") == 4)
    assert found("revolve_tasks_ended_total", function="metrics_app:work") == 4
    assert found("process_start_time_seconds") > 0  # what prometheus_client says of every process
    program.signal(signal.SIGTERM)
    assert program.wait() == 0, program.text
    with pytest.raises(urllib.error.URLError):
        Scraped(url)


def test_several_workers_serve_on_ports_in_a_row_also_after_a_death(revolve, gearmand, app, tmp_path):
    place = f"gearman://{gearmand.host}:{gearmand.port}/{tmp_path.name}"
    first = two_free_ports()
    program = revolve("worker", place, "--processes", "2", "--metrics", str(first), "-c", "1", REVOLVE_SECRET=SECRET)
    program.says("ready as", 2)
    urls = [f"http://127.0.0.1:{first + number}/metrics" for number in range(2)]
    names = [Scraped(url).of("revolve_worker_info")[0].labels["worker"] for url in urls]
    assert names[0] != names[1]
    os.kill(int(names[0].rpartition(":")[2]), signal.SIGKILL)
    program.says("ready as", 3)
    again = [Scraped(url).of("revolve_worker_info")[0].labels["worker"] for url in urls]
    assert again[1] == names[1]
    assert again[0] not in names
    program.signal(signal.SIGTERM)
    assert program.wait() == 0, program.text


def two_free_ports() -> int:
    while True:
        port = free_port()
        if port < 65000:
            with socket.socket() as one:
                try:
                    one.bind(("127.0.0.1", port + 1))
                except OSError:
                    continue
            return port


@pytest.mark.parametrize("word", ["many", "70000", ":9808", "0.0.0.0:"])
def test_an_address_that_is_none_is_refused(revolve, word):
    program = revolve("worker", "memory://x", "--metrics", word, REVOLVE_SECRET=SECRET)
    assert program.wait() == 2
    assert "such as 0.0.0.0:9808" in program.text
