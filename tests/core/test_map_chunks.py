"""`map` with `chunksize=` on a queue: one task carries many items, and each of them still ends by itself."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client, NotCarriable, TaskCancelled, TaskLost, Worker
from revolve_assistant.running.each import Each
from revolve_assistant.wire.carry import name_of

from .map_chunks_tasks import die_at, half, note, whose

SECRET = "a secret of these tests only"
LONG = 30.0  # seconds that nothing here takes


@pytest.fixture
def place() -> str:
    return f"memory://{os.urandom(6).hex()}"


@pytest.fixture
def client(place: str) -> Iterator[Client]:
    with Client(place, secret=SECRET) as client:
        yield client


@pytest.fixture(params=["process", "thread"])
def worker(place: str, request: pytest.FixtureRequest) -> Iterator[Worker]:
    with Worker(place, secret=SECRET, pool=request.param, concurrency=2) as worker:
        yield worker


@pytest.fixture
def processes(place: str) -> Iterator[Worker]:
    with Worker(place, secret=SECRET, concurrency=2) as worker:
        yield worker


def eventually(found: Callable[[], Any], what: str) -> Any:
    pause = threading.Event()
    for _ in range(int(LONG / 0.01)):
        if value := found():
            return value
        pause.wait(0.01)
    raise AssertionError(f"not within {LONG:g} s: {what}")


def test_items_come_in_order_and_those_of_a_chunk_share_a_task(client: Client, worker: Worker) -> None:
    found = list(client.map(whose, range(25), chunksize=10))
    assert [number for number, _, _ in found] == list(range(25))
    ids = [task for _, task, _ in found]
    assert [len(set(ids[at : at + 10])) for at in (0, 10, 20)] == [1, 1, 1]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_items(client: Client, worker: Worker, count: int) -> None:
    assert list(client.map(abs, range(-count, 0), chunksize=2)) == list(range(count, 0, -1))


def test_what_goes_wrong_with_an_item_concerns_it_alone(client: Client, worker: Worker) -> None:
    found = list(client.map(half, range(11), chunksize=4, errors="return"))
    assert [type(each) for each in found] == [
        *[list] * 3, ValueError, list, type(found[5]), list, type(found[7]), list, type(found[9]), list,
    ]  # fmt: skip
    assert str(found[3]) == "three has no half"
    assert "never again" in str(found[5])
    assert isinstance(found[7], NotCarriable)
    assert "lock" in str(found[7])
    assert isinstance(found[9], BaseException)
    assert "9" in str(found[9])
    results = client.map(half, range(11), chunksize=4)
    assert [next(results) for _ in range(3)] == [[0.0], [0.5], [1.0]]
    with pytest.raises(ValueError, match="three"):
        next(results)
    eventually(lambda: not client._tasks, "what came behind is cancelled or over")


def test_an_item_that_kills_its_process_fails_alone(client: Client, processes: Worker) -> None:
    found = list(client.map(die_at, range(10), chunksize=5, errors="return"))
    assert isinstance(found[4], TaskLost)
    assert found[4].signal == signal.SIGKILL
    assert found[:4] + found[5:] == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_an_argument_that_cannot_travel_is_named_at_once(client: Client, worker: Worker) -> None:
    with pytest.raises(NotCarriable, match="lock"):
        client.map(abs, [1, 2, threading.Lock(), 4], chunksize=2)
    eventually(lambda: not client._tasks, "the first chunk is over or taken back")


def test_closing_early_takes_back_what_nobody_runs(client: Client, place: str, tmp_path: Path) -> None:
    with Worker(place, secret=SECRET, pool="thread", concurrency=1):
        results = client.map(note, [str(tmp_path)] * 9, range(9), chunksize=3)
        assert next(results) == 0
        eventually((tmp_path / "3").exists, "the second chunk runs")
        results.close()
        (tmp_path / "go").touch()
        eventually(lambda: not client._tasks, "all is over")
    assert {path.name for path in tmp_path.iterdir()} == {*"012345", "go"}


def test_a_timeout_is_that_of_the_whole_map(client: Client, worker: Worker, tmp_path: Path) -> None:
    results = client.map(note, [str(tmp_path)] * 2, range(3, 5), chunksize=2, timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    (tmp_path / "go").touch()


@pytest.mark.parametrize("options", [{"retries": 1}, {"timeout": LONG}, {"stall": LONG}, {"capture": True}])
def test_items_with_limits_of_their_own_have_tasks_of_their_own(
    client: Client, worker: Worker, options: dict[str, Any]
) -> None:
    found = list(client.options(**options).map(whose, range(6), chunksize=3))
    assert len({task for _, task, _ in found}) == 6


def test_a_rule_for_the_function_holds_for_its_chunks(client: Client, worker: Worker) -> None:
    client.pause(half)
    results = client.map(half, [2, 4, 6, 8], chunksize=2)
    eventually(lambda: sum(count.blocked for count in client.counts()) == 2, "both chunks are kept back")
    client.resume(half)
    assert list(results) == [[1.0], [2.0], [3.0], [4.0]]


def test_cancelled_chunks_are_cancelled_items(client: Client) -> None:
    results = client.map(abs, [-1, -2, -3], chunksize=2, errors="return")
    eventually(lambda: sum(count.pending for count in client.counts()) == 2, "the queue has both")
    client.purge("default")
    assert [type(each) for each in results] == [TaskCancelled] * 3


def test_a_chunk_has_the_name_of_its_function() -> None:
    assert name_of(Each(half)) == name_of(half)
    assert name_of(Each(str.upper)) == name_of(str.upper)
