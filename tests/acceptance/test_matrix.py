"""Any engine with any messenger: the same story everywhere, on real servers.

Every engine and queue × every messenger × (plain, generator, async) callables: events, result, failure, cancelling,
messages to the running task, and the death of what runs it. (IronMQ and IronWorker: `test_matrix_iron`.)
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client, TaskCancelled, TaskLost, Worker, current_task, emit, track
from revolve_assistant.testing.servers import Beanstalkd, Gearmand, Memcached, Redis

ENGINES = ["memory", "gearman", "beanstalkd", "redis", "sqlite", "process", "fork", "thread"]
MESSENGERS = ["memory", "gearman", "beanstalkd", "memcached", "filesystem", "redis", "sqlite"]
QUEUES = {"memory", "gearman", "beanstalkd", "redis", "sqlite", "ironmq", "ironworker"}  # and what is like one

ALL = [(engine, messenger) for engine in ENGINES for messenger in MESSENGERS]
FEW = [  # each engine and each messenger: with TEST_MATRIX=few, for what a Python could make different
    ("memory", "memory"),
    ("gearman", "beanstalkd"),
    ("beanstalkd", "gearman"),
    ("redis", "redis"),
    ("sqlite", "filesystem"),
    ("process", "memcached"),
    ("fork", "sqlite"),
    ("thread", "redis"),
]

Pair = tuple[Client, str]


@pytest.fixture(scope="module")
def places(need: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An address of each carrier."""
    for name in ("gearmand", "beanstalkd", "memcached", "redis-server"):
        need(name)
    folder: Path = tmp_path_factory.mktemp("messages")
    with ExitStack() as stack:
        gearmand, memcached = stack.enter_context(Gearmand()), stack.enter_context(Memcached())
        redis, beanstalkd = stack.enter_context(Redis()), stack.enter_context(Beanstalkd())
        yield {
            "memory": "memory://matrix",
            "gearman": f"gearman://127.0.0.1:{gearmand.port}/matrix",
            "beanstalkd": f"{beanstalkd.url}/matrix",
            "memcached": f"memcached://127.0.0.1:{memcached.port}/matrix",
            "redis": redis.url,
            "sqlite": f"sqlite:///{folder}/jobs.db",
            "filesystem": f"file://{folder}/events",
        }


@pytest.fixture(params=FEW if os.environ.get("TEST_MATRIX") == "few" else ALL, ids="-".join)
def pair(request: pytest.FixtureRequest, places: dict[str, str]) -> Iterator[Pair]:
    with meeting(places, *request.param) as client:
        yield client, request.param[0]


@contextmanager
def meeting(places: dict[str, str], engine: str, messenger: str) -> Iterator[Client]:
    """A client of that engine and messenger, and who serves it."""
    carrier = places[messenger]
    with ExitStack() as stack:
        if engine == "ironworker":
            client = Client(places[engine], messenger=carrier)
        elif engine in QUEUES:
            stack.enter_context(Worker(places[engine], messenger=carrier, concurrency=2, grace=5.0))
            client = Client(places[engine], messenger=carrier)
        else:
            client = Client(f"{engine}://", messenger=carrier, max_workers=2)
        stack.enter_context(client)
        yield client


# --- the callables, one of each kind


def plain(count: int) -> int:
    for number in track(range(count), "counting"):
        emit("tick", number, {"square": number * number}, (number, b"\0"))
    return count


def generator(count: int) -> Iterator[int]:
    for number in range(count):
        emit("tick", number, {"square": number * number}, (number, b"\0"))
        yield number
    return count


async def coroutine(count: int) -> int:
    for number in range(count):
        emit("tick", number, {"square": number * number}, (number, b"\0"))
        await asyncio.sleep(0)
    return count


def fails() -> None:
    emit("last", "words")
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise ValueError("outer", 2) from error


def waits() -> str:
    emit("idle")
    task = current_task()
    while not task.cancel_requested:
        time.sleep(0.005)
    return "seen"


async def waits_async() -> None:
    emit("idle")
    await asyncio.sleep(60)


def hears() -> Any:
    emit("listening")
    message = current_task().receive(30)
    return message.args if message is not None else None


def dies() -> None:
    emit("dying")
    os.kill(os.getpid(), signal.SIGKILL)


# --- the story


@pytest.mark.parametrize("function", [plain, generator, coroutine], ids=lambda f: f.__name__)
def test_events_and_result(pair: Pair, function: Any) -> None:
    client, _ = pair
    task = client.submit(function, 40)
    events = list(task.events())
    assert [event.args for event in events if event.name == "tick"] == [
        (number, {"square": number * number}, (number, b"\0")) for number in range(40)
    ]
    assert events[0].name == "started"
    assert [event.name for event in events].count("succeeded") == 1
    assert (events[-1].name, events[-1].args) == ("succeeded", (40,))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert task.result() == 40
    if function is generator:
        assert list(task.items()) == list(range(40))


def test_failure(pair: Pair) -> None:
    client, _ = pair
    task = client.submit(fails)
    with pytest.raises(ValueError, match="outer") as caught:
        task.result(60)
    assert caught.value.args == ("outer", 2)
    assert isinstance(caught.value.__cause__, KeyError)
    assert [event.name for event in task.events()] == ["started", "last", "failed"]


def test_attempts(pair: Pair) -> None:
    client, _ = pair
    task = client.options(retries=2, backoff=0.01).submit(fails)
    names = [event.name for event in task.events()]
    assert names == ["started", "last", "retrying", "started", "last", "retrying", "started", "last", "failed"]
    assert isinstance(task.exception(), ValueError)


@pytest.mark.parametrize("function", [waits, waits_async], ids=lambda f: f.__name__)
def test_cancelling(pair: Pair, function: Any) -> None:
    client, engine = pair
    if engine == "thread" and function is waits_async:
        pytest.skip("a thread stops at the flag, and this coroutine never looks at it")
    task = client.submit(function)
    next(task.events("idle"))
    assert task.cancel()
    with pytest.raises(TaskCancelled):
        task.result(60)
    assert task.state == "cancelled"


def test_messages_to_it(pair: Pair) -> None:
    client, _ = pair
    early = client.submit(hears)
    early.send("word", 1, [2])
    assert early.result(60) == (1, [2])
    late = client.submit(hears)
    next(late.events("listening"))
    late.send("word", "late")
    assert late.result(60) == ("late",)


def test_its_death(pair: Pair) -> None:
    client, engine = pair
    if engine == "thread":
        pytest.skip("it would be ours")
    task = client.submit(dies)
    with pytest.raises(TaskLost, match="SIGKILL"):
        task.result(60)
    names = [event.name for event in task.events()]
    runs = 3 if engine in QUEUES else 1  # a queue offers it again, until it has taken three children along
    assert [name for name in names if name != "gap"] == [
        *["started", "dying", "retrying"] * (runs - 1),
        *["started", "dying"],
        "failed" if engine in QUEUES else "lost",
    ]
    assert client.submit(plain, 1).result(60) == 1  # and the next one runs


def test_large_results(pair: Pair) -> None:
    client, _ = pair
    data = os.urandom(3 << 20)
    assert client.submit(bytes.__add__, data, b"!").result(60) == data + b"!"


async def awaits(client: Client) -> int:
    task = client.submit(plain, 3)
    names = [event.name async for event in task.events()]
    assert names[-1] == "succeeded"
    return int(await task)


def test_from_asyncio(pair: Pair) -> None:
    assert asyncio.run(awaits(pair[0])) == 3
