"""A task of a real Celery worker, with a real Redis, reports; who watches is another process and knows only the id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client, TaskLost
from revolve_assistant.caller import reckoning
from revolve_assistant.caller.task import Task
from revolve_assistant.testing.servers import Redis

celery = pytest.importorskip("celery")

TASKS = """
import os
import time

from celery import Celery
from revolve_assistant import ask, emit, reporting, track

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.update(broker_connection_retry_on_startup=True)


@app.task(bind=True)
def convert(self, pages):
    with reporting(self.request.id, capture=True) as running:
        for page in track(range(pages), "converting"):
            print(f"page {page}")
        running.result = pages
    return pages


@app.task(bind=True)
def talk(self):
    with reporting(self.request.id):
        emit("answer", ask("go on?"))
        while True:
            for _ in track(range(1000)):
                time.sleep(0.01)


@app.task(bind=True, max_retries=3)
def flaky(self):
    with reporting(self.request.id):
        try:
            emit("try", self.request.retries)
            if self.request.retries < 2:
                raise ConnectionError("the shop is shut")
        except ConnectionError as error:
            raise self.retry(exc=error, countdown=0.1)


@app.task(bind=True)
def fail(self):
    with reporting(self.request.id):
        raise KeyError("no such page")


def stay(self):
    with reporting(self.request.id) as running:
        emit("pid", os.getpid())
        if not self.request.delivery_info["redelivered"]:
            time.sleep(60)
        running.result = "done by another"


once = app.task(bind=True, name="once")(stay)
redelivered = app.task(bind=True, name="redelivered", acks_late=True, reject_on_worker_lost=True)(stay)
"""


class Worker:
    def __init__(self, folder: Path, redis: Redis) -> None:
        self.environment = os.environ | {"BROKER": f"{redis.url}/1", "REVOLVE_MESSENGER": redis.url}
        self.folder = folder
        (folder / "shop.py").write_text(TASKS)
        self.log = open(folder / "worker.log", "wb")  # noqa: SIM115 - closed with it
        words = "-A shop worker --pool prefork -c 2 --without-gossip --without-mingle --without-heartbeat -l info"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "celery", *words.split()],
            cwd=folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )  # fmt: skip

    def call(self, name: str, *args: Any) -> str:
        """Have a task queued, by a process of its own; its id."""
        code = f"import shop; print(shop.{name}.delay(*{args!r}).id)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        return done.stdout.strip()

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def redis(need_server: None) -> Iterator[Redis]:
    with Redis() as it:
        yield it


@pytest.fixture(scope="module")
def need_server() -> None:
    try:
        Redis().close()
    except Exception as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def worker(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    it = Worker(tmp_path_factory.mktemp("celery"), redis)
    try:
        yield it
    finally:
        it.close()


@pytest.fixture
def client(redis: Redis) -> Iterator[Client]:
    with Client(redis.url) as it:
        yield it


def heard(task: Task[Any]) -> list[tuple[Any, ...]]:
    return [(each.name, *(each.args if each.name not in ("started", "failed") else ())) for each in task.events()]


def test_it_is_heard_live_and_afterwards(worker: Worker, redis: Redis, client: Client) -> None:
    id = worker.call("convert", 3)
    task = client.attach(id, within=30)
    live = heard(task)
    assert live[0] == ("started",)
    assert [each[1] for each in live if each[0] == "output"] == ["page 0\n", "page 1\n", "page 2\n"]
    assert live[-1] == ("succeeded", 3)
    assert task.name == "shop:convert"
    assert task.progress is not None
    assert task.progress.fraction == 1.0
    with Client(redis.url) as later:
        assert heard(later.attach(id)) == live
    assert "page 2" in (worker.folder / "worker.log").read_text(), "Celery's own log has it as well"


def test_it_is_answered_and_cancelled(worker: Worker, client: Client) -> None:
    task = client.attach(worker.call("talk"), within=30)
    for event in task.events():
        if event.name == "question":
            task.send("answer", {"yes": True})
        elif event.name == "answer":
            assert event.args == ({"yes": True},)
            task.cancel()
    assert task.cancelled()


def test_a_failure_is_told_with_its_type_and_the_worker_goes_on(worker: Worker, client: Client) -> None:
    with pytest.raises(KeyError, match="no such page"):
        client.attach(worker.call("fail"), within=30).result(30)
    assert client.attach(worker.call("convert", 1), within=30).result(30) == 1


def test_a_retry_of_celery_is_another_attempt(worker: Worker, redis: Redis, client: Client) -> None:
    id = worker.call("flaky")
    again = ("retrying", "ConnectionError: the shop is shut", 0.1)
    expected = [
        ("started",), ("try", 0), again, ("started",), ("try", 1), again, ("started",), ("try", 2), ("succeeded", None),
    ]  # fmt: skip
    assert heard(client.attach(id, within=30)) == expected
    with Client(redis.url) as later:
        task = later.attach(id)
        assert heard(task) == expected
        assert [each.attempt for each in task.events()][-1] == 3


def test_a_killed_child_whose_task_is_delivered_again_is_another_attempt(worker: Worker, client: Client) -> None:
    task = client.attach(worker.call("redelivered"), within=30)
    names = []
    for event in task.events():
        names.append(event.name)
        if names == ["started", "pid"]:
            os.kill(event.args[0], signal.SIGKILL)
    assert names == ["started", "pid", "retrying", "started", "pid", "succeeded"]
    assert task.result() == "done by another"


def test_a_killed_child_whose_task_is_not_delivered_again_is_lost(
    worker: Worker, redis: Redis, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reckoning, "QUIET", 1.0)  # else it takes 40 s
    monkeypatch.setattr(reckoning, "ANSWER_INSIDE", 1.0)
    id = worker.call("once")
    task = client.attach(id, within=30)
    names = []
    for event in task.events():
        names.append(event.name)
        if event.name == "pid":
            os.kill(event.args[0], signal.SIGKILL)
    assert names == ["started", "pid", "lost"]
    with pytest.raises(TaskLost, match="the process that reported it is gone"):
        task.result()
    with Client(redis.url) as later:  # what it said is not gone with it
        assert [name for name, *_ in heard(later.attach(id))] == ["started", "pid", "lost"]
