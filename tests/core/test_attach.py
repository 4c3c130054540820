"""Tasks heard through their logs: by other clients than the one that submitted them, and under another's key."""

from __future__ import annotations

import gc
import os
import threading
import time

import pytest

from revolve_assistant import (
    Client,
    TaskCancelled,
    TaskLost,
    Unreachable,
    Unsupported,
    Untrusted,
    Worker,
    ask,
    current_task,
    emit,
    report,
)
from revolve_assistant.caller.client import _find as find
from revolve_assistant.engine import Parcel
from revolve_assistant.providers.memory import Queue
from revolve_assistant.testing.servers import Redis


@pytest.fixture(autouse=True)
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of one process know each other's tasks: here they are to be as strange as those of several."""
    monkeypatch.setattr("revolve_assistant.caller.client._find", lambda _id: None)


@pytest.fixture(scope="module")
def server(need):
    need("redis-server")
    with Redis() as it:
        yield it


@pytest.fixture(params=["memory", "redis"])
def place(request):
    if request.param == "memory":
        return f"memory://{os.urandom(6).hex()}"
    return f"{request.getfixturevalue('server').url}?namespace={os.urandom(6).hex()}"


@pytest.fixture
def worker(place):
    with Worker(place, messenger=place, concurrency=4, pool="thread") as it:
        assert it.wait_ready(10)
        yield it


def count(n):
    for i in range(n):
        emit("tick", i)
    return n


def listen():
    running = current_task()
    emit("listening")
    while True:
        name, args = running.receive(timeout=30)
        if name == "end":
            return list(args)
        emit("heard", name, *args)


def fail():
    raise ValueError("no")


def question():
    return ask("how many?", timeout=30)


def names(task):
    return [(event.name, *(event.args if event.name != "started" else ())) for event in task.events()]


def test_a_stranger_hears_all_from_the_first_event_on_while_it_runs_and_afterwards(place, worker):
    with Client(place) as ours, Client(place) as theirs:
        task = ours.submit(count, 5)
        live = theirs.attach(task.id)
        assert live is not task
        expected = [("started",), *(("tick", i) for i in range(5)), ("succeeded", 5)]
        assert names(task) == expected
        assert names(live) == expected
        assert live.result(10) == 5
        assert live.name.endswith(":count")
        with Client(place) as later:
            again = later.attach(task.id)
            assert names(again) == expected
            assert again.result(10) == 5
            assert later.attach(task.id) is again


def test_it_waits_for_a_task_that_nobody_has_taken_yet(place):
    with Client(place) as ours, Client(place) as theirs:
        task = ours.submit(count, 2)
        task.queued()
        other = theirs.attach(task.id)
        assert other.state == "pending"
        with Worker(place, messenger=place, concurrency=1, pool="thread"):
            assert other.result(20) == 2
            assert task.result(20) == 2


def test_failures_cross_with_their_type(place, worker):
    with Client(place) as ours, Client(place) as theirs:
        task = ours.submit(fail)
        other = theirs.attach(task.id)
        with pytest.raises(ValueError, match="no"):
            other.result(10)
        assert other.state == "failed"
        with pytest.raises(ValueError, match="no"):
            task.result(10)


def test_a_stranger_can_speak_to_it_and_see_its_stacks(place, worker):
    with Client(place) as ours, Client(place) as theirs:
        task = ours.submit(listen)
        other = theirs.attach(task.id)
        for event in other.events():
            if event.name == "listening":
                assert other.send("word", 1, None)
                assert "receive" in theirs.stack(other)
            elif event.name == "heard":
                assert event.args == ("word", 1, None)
                other.send("end", "well")
        assert task.result(10) == ["well"]


def test_a_stranger_can_answer(place, worker):
    with Client(place) as ours, Client(place) as theirs:
        task = ours.submit(question)
        other = theirs.attach(task.id)
        for event in other.events("question"):
            if event.name == "question":
                other.send("answer", 42)
        assert task.result(10) == 42


def test_a_stranger_can_cancel_what_runs(place, worker):
    with Client(place) as ours, Client(place) as theirs:
        task = ours.submit(listen)
        other = theirs.attach(task.id)
        assert next(iter(other.events("listening"))).name == "listening"
        assert other.cancel()
        for each in (task, other):
            with pytest.raises(TaskCancelled):
                each.result(20)


def test_a_stranger_can_cancel_what_nobody_has_taken_and_its_owner_is_told(place):
    with Client(place) as ours, Client(place) as theirs, Client(place) as third:
        task = ours.submit(count, 2)
        task.queued()
        other, watching = theirs.attach(task.id), third.attach(task.id)
        assert other.cancel()
        for each in (other, task, watching):
            with pytest.raises(TaskCancelled, match="unstarted"):
                each.result(10)


def test_the_owners_cancel_of_an_untaken_task_is_heard_by_strangers(place):
    with Client(place) as ours, Client(place) as theirs:
        task = ours.submit(count, 2)
        task.queued()
        other = theirs.attach(task.id)
        task.cancel()
        for each in (other, task):
            with pytest.raises(TaskCancelled):
                each.result(10)


def test_a_task_of_another_secret_ends_here_as_untrusted_and_goes_on_there(place, worker):
    with Client(place) as ours, Client(place, secret="another of sixteen") as theirs:
        task = ours.submit(listen)
        for event in task.events("listening"):
            if event.name == "listening":
                other = theirs.attach(task.id)
                with pytest.raises(Untrusted, match=f"task {task.id} is signed with the key .* give both the same"):
                    other.result(10)
                assert other.state == "lost"
                fine = theirs.attach(theirs.options(queue="nobodys").submit(count, 1).id)  # it concerns that one alone
                assert fine.state == "pending"
                task.send("end", 1)
        assert task.result(10) == [1]
        assert fine.state == "pending"


def test_who_cancels_with_another_secret_is_told_what_that_means(place, caplog):
    with Client(place) as ours, Client(place, secret="another of sixteen") as theirs:
        task = ours.submit(count, 1)
        task.queued()
        other = theirs.attach(task.id)
        other.cancel()
        with pytest.raises(TaskCancelled):
            other.result(10)
        assert f"task {task.id} was signed with another secret: who waits for it is not told" in caplog.text
        assert task.state == "pending"


@pytest.mark.parametrize("name", ["nobody", "", "../etc/passwd", "x" * 200, "ä"])
def test_an_unknown_id_ends_as_lookup_error(place, name):
    with Client(place) as client:
        task = client.attach(name)
        with pytest.raises(LookupError, match="no task"):
            task.result(10)
        assert task.state == "lost"


def test_a_task_without_history_says_so(place):
    with Client(place) as ours, Client(place) as theirs:
        task = ours.options(history=False).submit(count, 1)
        task.queued()
        with pytest.raises(Unsupported, match="keeps no history"):
            theirs.attach(task.id).result(10)


def test_a_history_is_kept_as_long_as_was_said_from_its_end_on(place, worker):
    with Client(place) as ours, Client(place) as theirs:
        task = ours.options(history=0.2).submit(count, 1)
        assert task.result(10) == 1
        deadline = time.monotonic() + 20
        while True:
            try:
                theirs.attach(task.id).result(10)
            except (LookupError, TaskLost):
                break
            assert time.monotonic() < deadline
            theirs._known.clear()


def test_what_an_inbox_lost_is_found_in_the_log(place, worker, monkeypatch):
    """As after a laptop slept for longer than its inbox is kept."""
    monkeypatch.setattr("revolve_assistant.caller.reckoning.QUIET", 0.5)
    with Client(place) as ours:
        task = ours.submit(listen)
        assert next(iter(task.events("listening"))).name == "listening"
        remote = ours._engine
        read = remote.messenger.read
        deaf = True

        def nothing(cursors, *, limit, wait):
            if deaf and remote.inbox_name in cursors:
                remote.messenger.forget(remote.inbox_name)
                cursors = {k: v for k, v in cursors.items() if k != remote.inbox_name}
            return read(cursors, limit=limit, wait=min(wait, 0.1))

        monkeypatch.setattr(remote.messenger, "read", nothing)
        remote.messenger.wake()
        with Client(place) as theirs:
            other = theirs.attach(task.id)
            other.send("end", 7)
            assert other.result(10) == [7]
        assert task.result(20) == [7]


def test_nobody_who_holds_a_task_is_nobody_who_reads_its_log(place, worker):
    with Client(place) as ours, Client(place) as theirs:
        task = ours.submit(listen)
        other = theirs.attach(task.id)
        watches = theirs._engine.watches
        assert watches.boxes
        del other
        gc.collect()
        assert not watches.boxes
        heard = []
        theirs.attach(task.id).add_listener("heard", lambda *args: heard.append(args))
        gc.collect()
        assert watches.boxes  # somebody listens
        task.send("word")
        task.send("end")
        assert task.result(10) == []
        theirs.attach(task.id).result(10)
        assert heard == [("word",)]


def test_a_closed_client_lets_go_of_what_it_watched(place, worker):
    with Client(place) as ours:
        task = ours.submit(listen)
        with Client(place) as theirs:
            other = theirs.attach(task.id)
            next(iter(other.events("listening")))
        assert other.state == "lost"
        task.send("end")
        assert task.result(10) == []
        with pytest.raises(RuntimeError, match="shut down"):
            theirs.attach("other")


def test_what_a_closed_client_has_let_go_is_attached_again_beside_it(place, worker, monkeypatch):
    monkeypatch.setattr("revolve_assistant.caller.client._find", find)
    with Client(place) as ours:
        task = ours.submit(listen)
        next(iter(task.events("listening")))
    assert task.state == "lost"  # and still held here
    with Client(place) as theirs:
        other = theirs.attach(task.id)
        other.send("end")
        assert other.result(10) == []
    assert task.state == "lost"


class Held(Queue):
    """A queue in which a task holds every key."""

    holder = ""

    def submit(self, parcels, sink):
        free = [each for each in parcels if not (each.unique and self.holder)]
        super().submit(free, sink)
        return {each.id: self.holder for each in parcels if each not in free}


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_key_that_another_client_holds_gives_that_task(place, worker):
    queue = Held(place.partition("://")[2])
    with Client(place) as theirs, Client(queue, messenger=place) as ours, Client(place) as third:
        first = theirs.submit(listen)
        queue.holder = first.id
        task = ours.options(unique="import").submit(count, 3)
        watching = third.attach(task.id)  # by its own id
        assert next(iter(task.events("listening"))).name == "listening"
        task.send("end", "ours")
        assert task.result(10) == first.result(10) == watching.result(10) == ["ours"]


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_key_is_tried_again_once_its_holder_was_ours_and_has_ended(place, worker):
    queue = Held(place.partition("://")[2])
    with Client(queue, messenger=place) as ours:
        first = ours.options(unique="import").submit(count, 1)
        assert first.result(10) == 1
        queue.holder = first.id  # its worker has not told the queue yet
        second = ours.options(unique="import").submit(count, 2)
        with pytest.raises(TimeoutError):
            second.result(0.3)
        assert second.state == "pending"
        queue.holder = ""
        assert second.result(10) == 2


def test_a_parcel_says_its_function_and_key_to_the_queue(place):
    seen: list[Parcel] = []

    class Looking(Queue):
        def submit(self, parcels, sink):
            seen.extend(parcels)
            super().submit(parcels, sink)

    with Client(Looking(place.partition("://")[2]), messenger=place) as client:
        client.options(unique="k").submit(report, 0.5).queued()
    assert [(each.name, each.unique) for each in seen] == [("revolve_assistant.running.api:report", "k")]


@pytest.mark.parametrize("place", ["redis"], indirect=True)
def test_a_thousand_watchers_take_two_connections(place, server):
    """One pump, whatever the number of tasks, and one connection to speak and to ask on."""

    def connections() -> int:
        return server.ask("CLIENT", "LIST").count("name=revolve-assistant")

    with Client(place) as ours, Client(place) as theirs:
        tasks = [ours.submit(count, 2) for _ in range(1000)]
        for task in tasks:
            task.queued(20)
        before = connections()
        watched = [theirs.attach(task.id) for task in tasks]
        heard = [watcher.events() for watcher in watched]
        with Worker(place, concurrency=2, pool="thread"):
            names = [[event.name for event in events] for events in heard]
            assert names == [["started", "tick", "tick", "succeeded"]] * 1000
            theirs.attach(tasks[0].id).cancel()  # it speaks, too
        assert [task.result(20) for task in tasks] == [2] * 1000
        assert connections() - before <= 2


def test_a_reader_that_found_its_server_away_says_that_it_answers_again(monkeypatch, caplog):
    """Although nobody has anything to say: else whoever asks would be told for ever that it is away."""
    with Client(f"memory://{os.urandom(6).hex()}") as client:
        messenger, failed, answered = client._engine.messenger, threading.Event(), threading.Event()
        read, in_touch = messenger.read, client._engine.in_touch

        def fail_once(*args, **options):
            if not failed.is_set():
                failed.set()
                raise Unreachable("nobody there")
            return read(*args, **options)

        def answers():
            in_touch()
            if failed.is_set():
                answered.set()

        task = client.submit(len, "")
        task.queued(20)
        monkeypatch.setattr(client._engine, "in_touch", answers)
        monkeypatch.setattr(messenger, "read", fail_once)
        messenger.wake()  # the reader begins to read again
        assert failed.wait(20)
        assert answered.wait(20)
        assert not client._engine.away_since
        task.cancel()
