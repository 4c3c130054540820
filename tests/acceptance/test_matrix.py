"""Any engine with any messenger: the same story everywhere, on real servers.

Every engine and queue × every messenger × (plain, generator, async) callables: events, result, failure, cancelling,
messages to the running task, and the death of what runs it. For IronMQ and IronWorker there is a stand-in.

One test a pair: children start once, and serve the whole story.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client, Task, TaskCancelled, TaskLost, Worker
from revolve_assistant.testing.servers import Beanstalkd, Gearmand, Memcached, Redis

from .story import coroutine, dies, fails, generator, hears, plain, waits, waits_async

ENGINES = ["memory", "gearman", "beanstalkd", "redis", "sqlite", "ironmq", "ironworker", "process", "fork", "thread"]
MESSENGERS = ["memory", "gearman", "beanstalkd", "memcached", "filesystem", "redis", "sqlite", "ironmq"]
IMPOSSIBLE = [("ironworker", "memory")]  # its containers are other processes
QUEUES = {"memory", "gearman", "beanstalkd", "redis", "sqlite", "ironmq", "ironworker"}  # and what is like one

ALL = [pair for engine in ENGINES for each in MESSENGERS if (pair := (engine, each)) not in IMPOSSIBLE]
FEW = [  # each engine and each messenger: with TEST_MATRIX=few, for what a Python could make different
    ("memory", "memory"),
    ("gearman", "beanstalkd"),
    ("beanstalkd", "gearman"),
    ("redis", "redis"),
    ("sqlite", "filesystem"),
    ("ironmq", "memcached"),
    ("ironworker", "ironmq"),
    ("process", "memcached"),
    ("fork", "sqlite"),
    ("thread", "redis"),
]


@contextmanager
def iron(folder: Path, carriers: dict[str, str | None]) -> Iterator[dict[str, str]]:
    """Addresses at a stand-in for Iron.io, as `iron.py` prints them; its files are in `folder`."""
    command = [sys.executable, str(Path(__file__).with_name("iron.py")), json.dumps(carriers)]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.fixture(scope="module")
def places(need: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An address of each carrier, and for each messenger that of an IronWorker which reports to it."""
    for name in ("gearmand", "beanstalkd", "memcached", "redis-server"):
        need(name)
    folder: Path = tmp_path_factory.mktemp("messages")
    with ExitStack() as stack:
        gearmand, memcached = stack.enter_context(Gearmand()), stack.enter_context(Memcached())
        redis, beanstalkd = stack.enter_context(Redis()), stack.enter_context(Beanstalkd())
        carriers = {
            "memory": "memory://matrix",
            "gearman": f"gearman://127.0.0.1:{gearmand.port}/matrix",
            "beanstalkd": f"{beanstalkd.url}/matrix",
            "memcached": f"memcached://127.0.0.1:{memcached.port}/matrix",
            "redis": redis.url,
            "sqlite": f"sqlite:///{folder}/jobs.db",
            "filesystem": f"file://{folder}/events",
        }
        codes = {f"ironworker-{name}": carriers.get(name) for name in MESSENGERS}
        yield {**carriers, **stack.enter_context(iron(tmp_path_factory.mktemp("iron"), codes))}


@contextmanager
def meeting(places: dict[str, str], engine: str, messenger: str) -> Iterator[Client]:
    """A client of that engine and messenger, and who serves it."""
    carrier = places[messenger]
    with ExitStack() as stack:
        if engine == "ironworker":
            client = Client(places[f"ironworker-{messenger}"], messenger=carrier)
        elif engine in QUEUES:
            stack.enter_context(Worker(places[engine], messenger=carrier, concurrency=2, grace=5.0))
            client = Client(places[engine], messenger=carrier)
        else:
            client = Client(f"{engine}://", messenger=carrier, max_workers=2)
        stack.enter_context(client)
        yield client


@pytest.mark.parametrize(("engine", "messenger"), FEW if os.environ.get("TEST_MATRIX") == "few" else ALL)
def test_the_story(places: dict[str, str], engine: str, messenger: str) -> None:
    with meeting(places, engine, messenger) as client:
        retried = client.options(retries=2, backoff=0.01).submit(fails)  # where delays are whole seconds: meanwhile
        events_and_results(client)
        a_failure(client)
        cancelling(client, engine)
        messages_to_it(client)
        a_large_result(client)
        assert asyncio.run(from_asyncio(client)) == 3
        attempts(retried)
        if engine != "thread":  # it would be ours
            its_death(client, engine)


def events_and_results(client: Client) -> None:
    for function, task in [(each, client.submit(each, 40)) for each in (plain, generator, coroutine)]:
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


def a_failure(client: Client) -> None:
    task = client.submit(fails)
    with pytest.raises(ValueError, match="outer") as caught:
        task.result(60)
    assert caught.value.args == ("outer", 2)
    assert isinstance(caught.value.__cause__, KeyError)
    assert [event.name for event in task.events()] == ["started", "last", "failed"]


def attempts(task: Task[Any]) -> None:
    names = [event.name for event in task.events()]
    assert names == ["started", "last", "retrying", "started", "last", "retrying", "started", "last", "failed"]
    assert isinstance(task.exception(), ValueError)


def cancelling(client: Client, engine: str) -> None:
    # A thread stops at the flag, and the coroutine never looks at it.
    for task in [client.submit(each) for each in ((waits,) if engine == "thread" else (waits, waits_async))]:
        next(task.events("idle"))
        assert task.cancel()
        with pytest.raises(TaskCancelled):
            task.result(60)
        assert task.state == "cancelled"


def messages_to_it(client: Client) -> None:
    early = client.submit(hears)
    early.send("word", 1, [2])
    late = client.submit(hears)
    assert early.result(60) == (1, [2])
    next(late.events("listening"))
    late.send("word", "late")
    assert late.result(60) == ("late",)


def a_large_result(client: Client) -> None:
    data = os.urandom(3 << 20)
    assert client.submit(bytes.__add__, data, b"!").result(60) == data + b"!"


async def from_asyncio(client: Client) -> int:
    task = client.submit(plain, 3)
    names = [event.name async for event in task.events()]
    assert names[-1] == "succeeded"
    return int(await task)


def its_death(client: Client, engine: str) -> None:
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
