"""What a client sees of its queue and changes about it; groups of tasks that run elsewhere. On the queue in memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import (
    Client,
    ClientClosed,
    TaskCancelled,
    Unreachable,
    Unsupported,
    Untrusted,
    UsageError,
    Worker,
    current_task,
    emit,
    report,
)
from revolve_assistant.engine import Count, Rule
from revolve_assistant.providers import memory

LONG = 30.0  # seconds that nothing here takes


@pytest.fixture(autouse=True)
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of one process know each other's tasks: here they are to be as strange as those of several."""
    monkeypatch.setattr("revolve_assistant.caller.client._find", lambda _id: None)


@pytest.fixture
def place() -> str:
    return f"memory://{os.urandom(6).hex()}"


@pytest.fixture
def client(place: str) -> Iterator[Client]:
    with Client(place) as client:
        yield client


@pytest.fixture
def worker(place: str) -> Iterator[Worker]:
    with Worker(place, concurrency=4, pool="thread", queues="default,second") as it:
        assert it.wait_ready(10)
        yield it


def eventually(found: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + LONG
    pause = threading.Event()
    while not (value := found()):
        assert time.monotonic() < deadline, what
        pause.wait(0.02)
    return value


def work(n):
    return n


def read(name):
    return Path(name).read_text()


def attempt():
    """Fails, saying how often it was tried."""
    raise ValueError(f"attempt {current_task().attempt}")


def listen():
    """Does as it is told, until "end"."""
    running = current_task()
    emit("up")
    while True:
        name, args = running.receive(timeout=LONG)
        if name == "report":
            report(*args)
        elif name == "fail":
            raise ValueError(*args)
        elif name == "end":
            return args[0]


ME = __name__


# ---------------------------------------------------------------- what there is


def test_counts_are_true(client):
    assert client.counts() == []
    for n in range(3):
        client.submit(work, n).queued()
    client.options(delay=3600.0, queue="second").submit(work, 1).queued()
    client.pause(listen)
    client.submit(listen).queued()
    default, second = client.counts()
    assert default._replace(oldest=0.0) == Count("default", 3, 0, 1, 0, 0)
    assert default.oldest > 0
    assert second == Count("second", 0, 1, 0, 0, 0, 0.0)


def test_workers_say_who_they_are_and_what_runs(client, worker):
    task = client.submit(listen)
    (about,) = eventually(lambda: [each for each in client.workers() if each.running], "it says what runs")
    assert (about.name, about.pid, about.state) == (worker.name, os.getpid(), "running")
    assert (about.pool, about.queues, about.concurrency) == ("thread", ["default", "second"], 4)
    assert about.busy == {"default": 1}
    (running,) = about.running
    assert (running.id, running.name, running.attempt) == (task.id, f"{ME}:listen", 1)
    assert abs(running.since - time.time()) < LONG
    assert about.functions == [f"{ME}:listen"]
    task.send("end", None)
    task.result(LONG)
    eventually(lambda: client.workers()[0].settled == 1 and not client.workers()[0].running, "it says that it ended")
    worker.stop()
    assert client.workers() == []


def test_what_begins_is_said_within_a_moment(client, place):
    """Also on a worker that has no room for more, and so waits for nothing."""
    with Worker(place, concurrency=1, pool="process") as worker:
        assert worker.wait_ready(10)
        assert client.submit(work, 1).result(LONG) == 1
        said = lambda: client.workers()[0]  # noqa: E731
        eventually(lambda: said().settled == 1 and time.time() - said().time > 1.2, "it said all, and is quiet")
        task = client.submit(listen)
        with task.events("up") as events:
            assert next(events).name == "up"
        began = time.monotonic()
        eventually(lambda: client.workers()[0].busy == {"default": 1}, "it says what runs")
        assert time.monotonic() - began < 5
        task.send("end", 1)
        assert task.result(LONG) == 1


def test_what_a_stranger_wrote_as_a_worker_is_shown_as_its_name(client, place):
    queue = memory.Queue.from_url(memory_url(place))
    queue.open()
    queue.introduce("odd", b"\xff not ours")
    (about,) = client.workers()
    assert (about.name, about.state, about.running) == ("odd", "", [])
    queue.close()


def memory_url(place: str) -> Any:
    from revolve_assistant.providers.url import Url

    return Url.parse(place)


# ---------------------------------------------------------------- rules


def test_pause_and_resume_by_name_and_by_function(client, worker, caplog):
    assert client.submit(work, 1).result(LONG) == 1
    eventually(lambda: client.workers()[0].functions, "it says what it ran")
    assert client.pause(work) == Rule(f"{ME}:work", paused=True)
    assert not caplog.records
    kept = client.submit(work, 2)
    kept.queued()
    assert client.submit(len, "abc").result(LONG) == 3
    assert kept.state == "pending"
    assert client.rules() == [Rule(f"{ME}:work", paused=True)]
    assert client.resume(f"{ME}:work") == Rule(f"{ME}:work")
    assert kept.result(LONG) == 2
    assert client.rules() == []
    client.pause("nobody:here")
    assert "no worker here has run nobody:here yet" in caplog.text


def test_limits_are_set_changed_and_taken_away_one_by_one(client):
    name = f"{ME}:work"
    assert client.limit(work, concurrency=2) == Rule(name, concurrency=2)
    assert client.limit(work, rate=5, per=60) == Rule(name, concurrency=2, rate=5, per=60.0)
    assert client.pause(work).paused
    assert client.limit(work, concurrency=None) == Rule(name, paused=True, rate=5, per=60.0)
    assert client.resume(work) == Rule(name, rate=5, per=60.0)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({}, "needs concurrency= or rate="),
        ({"concurrency": 0}, "pause"),
        ({"concurrency": -1}, "whole number from 1 on"),
        ({"concurrency": True}, "whole number from 1 on"),
        ({"rate": 1.5}, "whole number from 1 on"),
        ({"rate": 1, "per": 0}, "number of seconds"),
        ({"rate": 1, "per": "1"}, "number of seconds"),
    ],
)
def test_what_is_no_limit_is_refused(client, limits, text):
    with pytest.raises(UsageError, match=text):
        client.limit(work, **limits)
    assert client.rules() == []


@pytest.mark.parametrize("name", ["", "work", ":work", "app:", "a\n:b", "a:" + "b" * 600])
def test_what_is_no_name_of_a_function_is_refused(client, name):
    with pytest.raises(UsageError, match="is not the name of a function"):
        client.pause(name)


# ---------------------------------------------------------------- purge


def test_whoever_waits_for_a_purged_task_is_told(client, place):
    tasks = [client.submit(work, n) for n in range(50)]
    late = client.options(delay=3600.0).submit(work, 1)
    client.pause(listen)
    blocked = client.submit(listen)
    forgotten = client.options(history=False).submit(work, 1)
    stays = client.options(queue="second").submit(work, 1)
    with Client(place) as stranger, Client(place) as operator:
        watching = stranger.attach(tasks[7].id)
        for task in (*tasks, late, blocked, forgotten, stays):
            task.queued()
        assert operator.purge("default") == 53
        for task in (*tasks, late, blocked, forgotten, watching):
            with pytest.raises(TaskCancelled, match="unstarted"):
                task.result(LONG)
        assert [event.name for event in stranger.attach(tasks[8].id).events()] == ["cancelled"]  # also afterwards
        assert operator.purge("default") == 0
    assert stays.state == "pending"
    with Worker(place, concurrency=1, pool="thread", queues="second"):
        assert stays.result(LONG) == 1


def test_purge_leaves_alone_what_runs(client, worker):
    task = client.submit(listen)
    with task.events("up") as events:
        assert next(events).name == "up"
    assert client.purge("default") == 0
    task.send("end", 5)
    assert task.result(LONG) == 5


def test_thousands_are_purged_in_pieces(client, place):
    tasks = [client.submit(work, n) for n in range(3000)]
    tasks[-1].queued(LONG)
    with Client(place) as operator:
        assert operator.purge("default") == 3000
    for task in tasks:
        with pytest.raises(TaskCancelled):
            task.result(LONG)


def test_tasks_of_another_secret_are_purged_too(place, caplog):
    with Client(place, secret="one secret of sixteen") as ours, Client(place, secret="another of sixteen") as theirs:
        task = ours.submit(work, 1)
        task.queued()
        assert theirs.purge("default") == 1  # who can reach the queue can; the owner learns it by itself
        assert ours.counts() == []
    assert "1 of them were signed with another secret: who waits for those is not told" in caplog.text


# ---------------------------------------------------------------- buried tasks


def bury(client: Client, task: Any) -> str:
    assert task.exception(LONG)
    eventually(lambda: [each for each in client.buried() if each.id == task.id], "it is buried")
    return str(task.id)


def test_a_buried_task_runs_again_as_a_new_one(client, worker, place, tmp_path):
    name = tmp_path / "input"
    old = bury(client, client.submit(read, str(name)))
    (dead,) = client.buried()
    assert (dead.id, dead.name, dead.queue, dead.deliveries) == (old, f"{ME}:read", "default", 1)
    assert dead.reason.startswith("FileNotFoundError: ")
    assert abs(dead.when - time.time()) < LONG
    assert client.buried(task_id=old) == [dead]
    name.write_text("mended")
    with Client(place) as operator:
        task = operator.retry(old)
        assert task.id != old
        assert task.result(LONG) == "mended"
        assert [event.name for event in task.events()][-1] == "succeeded"
        with Client(place) as stranger:
            heard = list(stranger.attach(task.id).events())
        assert (heard[0].name, heard[0].args) == ("waiting", (f"task {old} is run again",))
        assert heard[-1].name == "succeeded"
    assert client.buried() == []
    with pytest.raises(LookupError, match=f"no buried task '{old}'"):
        client.retry(old)
    with pytest.raises(LookupError, match="no buried task"):
        client.buried(task_id=old)
    with pytest.raises(FileNotFoundError):
        client.attach(old).result(LONG)  # what was is not changed


def test_it_keeps_its_queue_and_options(client, worker):
    old = bury(client, client.options(retries=2, backoff=0.0, queue="second").submit(attempt))
    assert client.buried(task_id=old)[0].reason == "ValueError: attempt 3"
    task = client.retry(old)
    with pytest.raises(ValueError, match="attempt 3"):
        task.result(LONG)
    assert eventually(client.buried, "it is buried again")[0].queue == "second"


def test_several_who_retry_it_at_once_get_the_same_task(client, place, worker, tmp_path):
    (tmp_path / "all").touch()
    name = tmp_path / "input"
    old = bury(client, client.submit(read, str(name)))
    name.write_text("mended")
    client.pause(read)  # so that none is over before the others have asked
    operators = [Client(place) for _ in range(6)]
    start = threading.Barrier(6)

    def retry(operator: Client) -> Any:
        start.wait(LONG)
        try:
            return operator.retry(old)
        except LookupError:
            return None  # somebody was faster

    with ThreadPoolExecutor(6) as pool:
        found = [task for task in pool.map(retry, operators) if task is not None]
    assert found
    assert client.counts()[0][1:4] == (0, 0, 1)  # one task, however many asked
    client.resume(read)
    assert {task.result(LONG) for task in found} == {"mended"}
    for operator in operators:
        operator.shutdown()


def test_only_who_holds_the_secret_can_retry(place, client):
    with Worker(place, concurrency=1, pool="thread"):
        old = bury(client, client.submit(attempt))
        with Client(place, secret="another of sixteen") as other:
            with pytest.raises(Untrusted):
                other.retry(old)
            assert other.buried()[0].id == old
        assert client.buried()[0].id == old


def test_a_retry_where_it_would_wait_for_itself_is_refused(client, worker):
    old = bury(client, client.submit(attempt))
    said: list[BaseException] = []

    def heard(*_: Any) -> None:
        try:
            client.retry(old)
        except UsageError as error:
            said.append(error)

    task = client.submit(work, 1)
    task.add_listener("succeeded", heard)
    task.result(LONG)
    eventually(lambda: said, "it was refused")
    assert "call it from another one" in str(said[0])


# ---------------------------------------------------------------- where it cannot be


CALLS: list[Callable[[Client], Any]] = [
    lambda client: client.counts(),
    lambda client: client.workers(),
    lambda client: client.rules(),
    lambda client: client.buried(),
    lambda client: client.pause("a:b"),
    lambda client: client.resume("a:b"),
    lambda client: client.limit("a:b", concurrency=1),
    lambda client: client.purge("default"),
    lambda client: client.retry("nobody"),
]


@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_queue_says_so(call):
    with Client("thread://") as client, pytest.raises(Unsupported, match="no queue that can be looked into"):
        call(client)


@pytest.mark.parametrize("call", CALLS)
def test_a_queue_that_cannot_says_so_before_it_connects(call):
    client = Client("gearman://127.0.0.1:1", secret="a secret of these tests")
    with client, pytest.raises(Unsupported, match=r"gearman://127.0.0.1:1 cannot be looked into or steered"):
        call(client)


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_client_says_so(call, place):
    client = Client(place)
    client.shutdown()
    with pytest.raises(ClientClosed):
        call(client)


def test_a_server_that_is_away_says_so():
    client = Client("redis://127.0.0.1:1", messenger="memory://x", secret="a secret of these tests")
    with client, pytest.raises(Unreachable, match="nothing listens there"):
        client.counts()


def test_a_queue_object_is_used_as_it_is(place):
    queue = memory.Queue.from_url(memory_url(place))
    with Client(queue, messenger=place) as client:
        client.submit(work, 1).queued()
        assert client.counts()[0].pending == 1
        assert client.purge("default") == 1


def test_it_may_be_asked_from_any_thread(client, worker):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: (client.submit(work, n), client.counts(), client.workers()), range(100)))
    assert [task.result(LONG) for task, _, _ in found] == list(range(100))


def test_who_is_heard_of_by_the_queue_is_not_missed(client, place, caplog, monkeypatch):
    monkeypatch.setattr("revolve_assistant.caller.reckoning.LONELY", 0.3)
    with Worker(place, concurrency=1, pool="thread") as worker:
        assert worker.wait_ready(10)
        busy = client.submit(listen)
        busy.queued()
        with Client(place) as late, Client(place) as later:
            task = late.submit(work, 1)  # waits behind the other one
            with task.events() as events:
                assert events.next(1.0) is None
            assert "no worker" not in caplog.text
            later.options(queue="second").submit(work, 1).queued()
            eventually(lambda: "no worker" in caplog.text, "nobody serves that queue")
            busy.send("end", None)
            assert task.result(LONG) == 1
    assert "no worker of queue second has been heard of" in caplog.text
    assert f"start one with  revolve worker {place} -q second" in caplog.text


# ---------------------------------------------------------------- groups


def test_a_group_on_a_queue_merges_progress_and_keeps_order(client, worker):
    tasks = [client.submit(listen) for _ in range(4)]
    group = client.group(tasks)
    for task in tasks:
        with task.events("up") as events:
            assert next(events).name == "up"
    tasks[0].send("report", 0.5)
    tasks[1].send("report", 0.25)
    eventually(lambda: group.progress and group.progress.fraction == pytest.approx(0.75 / 4), "their sum")
    assert (group.progress.done, group.progress.total) == (0, 4)
    for n in (2, 1, 3, 0):
        tasks[n].send("end", n)
    assert group.result(LONG) == [0, 1, 2, 3]
    assert (group.progress.fraction, group.progress.done) == (1.0, 4)
    names = [event.name for event in group.events()]
    assert (names[0], names[-1]) == ("started", "succeeded")
    assert set(names[1:-1]) == {"progress"}


def test_a_group_of_attached_tasks(client, worker, place):
    tasks = [client.submit(listen) for _ in range(3)]
    with Client(place) as stranger:
        attached = [stranger.attach(task.id) for task in tasks]
        group = stranger.group(attached)
        tasks[1].send("report", 0.5)
        eventually(lambda: group.progress and group.progress.fraction == pytest.approx(0.5 / 3), "its progress")
        assert group.send("end", "all")
        assert group.result(LONG) == ["all"] * 3
        assert stranger.group([stranger.attach(task.id) for task in tasks]).result(LONG) == ["all"] * 3  # afterwards


def test_failures_of_a_group_come_together_and_cancel_goes_to_all(client, worker, place):
    tasks = [client.submit(listen) for _ in range(4)]
    with Client(place) as stranger:
        group = stranger.group([stranger.attach(task.id) for task in tasks])
        tasks[0].send("fail", "one")
        tasks[2].send("fail", "two")
        for n in (1, 3):
            tasks[n].send("end", n)
        with pytest.raises(ExceptionGroup, match="2 of 4") as caught:
            group.result(LONG)
        assert [str(each) for each in caught.value.exceptions] == ["one", "two"]
        for n in (0, 2):
            assert isinstance(tasks[n].exception(LONG), ValueError)

        tasks = [client.submit(listen) for _ in range(2)]
        tasks.append(client.options(queue="nobodys").submit(work, 1))
        for task in tasks:
            task.queued()
        group = stranger.group([stranger.attach(task.id) for task in tasks])
        assert group.cancel()
        for task in (group, *tasks):
            with pytest.raises(TaskCancelled):
                task.result(LONG)


def test_a_group_with_a_task_that_nobody_knows(client):
    group = client.group([client.attach("nobody")])
    with pytest.raises(ExceptionGroup) as caught:
        group.result(LONG)
    assert isinstance(caught.value.exceptions[0], LookupError)


def test_a_group_holds_its_members_of_elsewhere(client, worker, place):
    """Who keeps the group alone keeps them heard."""
    import gc

    task = client.submit(listen)
    with Client(place) as stranger:
        group = stranger.group([stranger.attach(task.id)])
        gc.collect()
        task.send("end", 1)
        assert group.result(LONG) == [1]
