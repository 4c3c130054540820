"""Functions that workers run again and again: what clients say of them, and that each time comes exactly once."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from functools import partial

import pytest

from revolve_assistant import Client, ClientClosed, NotCarriable, Unsupported, UsageError, Worker, current_task
from revolve_assistant.caller.scheduling import key_of
from revolve_assistant.cli import main
from revolve_assistant.providers.memory import Messenger, Queue
from revolve_assistant.testing.checks import Aside, eventually
from revolve_assistant.wire.plan import unseal
from revolve_assistant.wire.timetable import Timetable

WAIT = 20.0  # seconds that nothing here should take
ran: list[tuple[str, object]] = []  # (id of the task, what it was given)
bell = threading.Condition()
gate = threading.Event()


class Clock:
    """Unix time that stands still until it is moved."""

    def __init__(self, now: float = 1.8e9) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def nothing_ran():
    ran.clear()
    gate.clear()
    yield
    gate.set()


@pytest.fixture
def place():
    return f"memory://{os.urandom(6).hex()}"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def at(clock):
    """`at()` gives a queue on the test's own clock, the same store each time."""
    name = os.urandom(6).hex()
    return lambda: Queue(name, clock=clock, lease=1e6)  # the clock jumps, and leases are not to end by that


def tick(word: object = None, **more: object) -> object:
    with bell:
        ran.append((current_task().id, word))
        bell.notify_all()
    return word


def linger() -> str:
    tick("begun")
    gate.wait(WAIT)
    return "done"


def fail() -> None:
    tick("failing")
    raise ValueError("as always")


def until_ran(count: int) -> list[tuple[str, object]]:
    with bell:
        assert bell.wait_for(lambda: len(ran) >= count, WAIT), ran
        return list(ran)


def look(*workers: Worker) -> None:
    """Have the workers look at the schedules, once the clock was moved, and wait until they have."""
    for worker in workers:
        worker.firing.ring()


def serve(queue, **options):
    return Worker(queue, **{"concurrency": 2, "pool": "thread", "messenger": "memory://", **options})


# ---- what clients say


def test_it_is_there_under_its_key_until_it_is_taken_out(place):
    with Client(place) as client, Client(place) as other:
        key = client.schedule(tick, ("word",), {"more": 1}, every=60)
        second = client.options(queue="reports").schedule(tick, cron="*/5 * * * *", tz="Europe/Berlin", key="report")
        assert key.startswith(f"{tick.__module__}:tick:")
        assert second == "report"
        first, report = sorted(other.schedules(), key=lambda each: each.key == "report")
        assert (first.key, first.name, first.times, first.every) == (key, f"{tick.__module__}:tick", "every 60 s", 60.0)
        assert 0 < first.next - time.time() <= 60
        assert (report.key, report.times, report.queue) == ("report", "*/5 * * * * (Europe/Berlin)", "reports")
        assert (report.cron, report.tz, report.every, report.last) == ("*/5 * * * *", "Europe/Berlin", None, None)
        assert other.unschedule(key)
        assert not client.unschedule(key)
        assert [each.key for each in client.schedules()] == ["report"]


def test_the_same_again_changes_nothing_and_keeps_its_time(at, clock):
    with Client(at(), messenger="memory://") as client, Client(at(), messenger="memory://") as other:
        key = client.schedule(tick, (1,), every=100)
        (plan,) = client._engine.queue.plans()
        clock.now += 60 if plan.due > clock.now + 60 else 0
        assert other.schedule(tick, (1,), every=timedelta(seconds=100)) == key
        assert client._engine.queue.plans() == [plan]
        clock.now = plan.due + 3  # overdue: nobody serves it
        assert other.schedule(tick, (1,), every=100) == key
        assert client._engine.queue.plans() == [plan]


def test_what_it_runs_may_change_and_its_time_stays(at, clock):
    with Client(at(), messenger="memory://") as client:
        client.schedule(tick, (1,), every=100, key="k")
        (old,) = client._engine.queue.plans()
        for now in (old.due - 50, old.due - 1, old.due + 7):  # long before, just before, overdue
            clock.now = now
            client.options(retries=int(now) % 5).schedule(tick, (now,), every=100, key="k")
            (plan,) = client._engine.queue.plans()
            assert plan.due == old.due
            assert plan.spec != old.spec
            keys = client._engine.keys
            assert unseal(keys, "assistant", "k", plan.spec).seed == unseal(keys, "assistant", "k", old.spec).seed
        client.schedule(tick, every=7, key="k")
        (plan,) = client._engine.queue.plans()
        assert clock.now < plan.due <= clock.now + 7


def test_many_processes_schedule_at_once(at):
    clients = [Client(at(), messenger="memory://") for _ in range(8)]
    start = threading.Barrier(len(clients))

    def begin(client):
        start.wait(WAIT)
        return client.schedule(tick, ({"a", "b", "c"},), every=1000)

    keys = {each.result(WAIT, "scheduled") for each in [Aside(begin, client) for client in clients]}
    assert len(keys) == 1
    (plan,) = clients[0]._engine.queue.plans()
    assert plan.due == Timetable(plan.key, 1000.0, "", "").after(1.8e9)
    for client in clients:
        client.shutdown()


def test_keys_are_the_same_for_equal_calls_and_differ_for_others():
    calls = [(), (1,), (1.0,), (True,), ("1",), (b"1",), ([1],), ((1,),), ({"a": 1},), (None,), (date(2026, 1, 1),),
             ({"x", "y"},), (print,), (tick,)]  # fmt: skip
    assert len({key_of(tick, args, {}) for args in calls}) == len(calls)
    assert key_of(tick, (), {"a": 1, "b": 2}) == key_of(tick, (), {"b": 2, "a": 1})
    assert key_of(tick, ({"y", "x"},), {}) == key_of(tick, ({"x", "y"},), {})
    assert key_of(tick, (), {}) == f"{tick.__module__}:tick"
    assert len(key_of(tick, ("x" * 10_000,), {})) < 200


@pytest.mark.parametrize("fn", [lambda: 1, partial(tick, 1), [].append], ids=["lambda", "partial", "method"])
def test_what_has_no_name_needs_a_key(place, fn):
    with Client(place) as client:
        with pytest.raises(UsageError, match="say key="):
            client.schedule(fn, every=60)
        assert client.schedule(fn, every=60, key="named") == "named"


def test_arguments_that_look_different_everywhere_need_a_key(place):
    with Client(place) as client:
        with pytest.raises(UsageError, match=r"the argument <.*Clock.*> \(Clock\) may look different .* say key="):
            client.schedule(tick, (Clock(),), every=60)
        assert client.schedule(tick, (Clock(),), every=60, key="clock") == "clock"


@pytest.mark.parametrize(
    ("said", "error", "match"),
    [
        ({}, UsageError, "every=None, cron=None: say one of them"),
        ({"every": 0.01}, UsageError, r"every=0.01 must be .* from 0.1"),
        ({"cron": "61 * * * *"}, UsageError, r"cron='61 \* \* \* \*' is none: .*; it takes five fields"),
        ({"cron": "@daily", "tz": "Mars/Olympus"}, UsageError, "tz='Mars/Olympus' is no time zone known here"),
        ({"every": 5, "key": ""}, UsageError, "key='' must be 1 to 200 printable characters"),
        ({"every": 5, "key": "a\nb"}, UsageError, r"key='a\\nb' must be"),
        ({"every": 5, "args": "word"}, UsageError, r"args='word' must be .*, such as args=\('word',\)"),
        ({"every": 5, "args": 5}, UsageError, "args=5 must be"),
        ({"every": 5, "kwargs": [1]}, UsageError, r"kwargs=\[1\] must be a dict"),
        ({"every": 5, "args": (threading.Lock(),), "key": "k"}, NotCarriable, "lock"),
    ],
)  # fmt: skip
def test_what_cannot_be_scheduled(place, said, error, match):
    with Client(place) as client:
        with pytest.raises(error, match=match):
            client.schedule(tick, **said)
        assert client.schedules() == []


def test_only_a_queue_keeps_schedules(place):
    with Client("thread://") as client, pytest.raises(Unsupported, match=r"thread keeps no schedules: redis"):
        client.schedule(tick, every=60)
    with Client("thread://", messenger=place) as client, pytest.raises(Unsupported, match=r"keeps no schedules: redis"):
        client.schedules()
    with (
        Client("gearman://127.0.0.1:1", secret="x" * 32) as client,
        pytest.raises(Unsupported, match=r"gearman://.* keeps no"),
    ):
        client.unschedule("key")
    client = Client(place)
    client.shutdown()
    with pytest.raises(ClientClosed):
        client.schedule(tick, every=60)
    with Client(place) as client, pytest.raises(UsageError, match="needs a callable"):
        client.schedule("app:tick", every=60)


# ---- what workers do


def test_it_runs_at_its_times_and_each_run_is_a_task_like_any_other(place):
    with serve(place, messenger=place), Client(place) as client:
        key = client.schedule(tick, ("word",), every=0.2)
        until_ran(4)
        schedule = eventually(lambda: next((s for s in client.schedules() if s.last), None), "it ran")
        task = client.attach(schedule.last)
        assert task.result(WAIT) == "word"
        assert [event.name for event in task.events()] == ["started", "succeeded"]
        assert task.name == f"{tick.__module__}:tick"
        assert client.unschedule(key)
    assert len({id for id, _ in ran}) == len(ran)
    assert {word for _, word in ran} == {"word"}


def test_functions_of_this_very_test_travel(place):
    def inner(a, b=2):
        return tick(a + b)

    with serve(place, messenger=place), Client(place) as client:
        client.schedule(inner, (40,), every=0.2)
        assert until_ran(1)[0][1] == 42


def test_several_workers_fire_every_tick_once(at, clock):
    workers = [serve(at()) for _ in range(3)]
    with Client(at(), messenger="memory://") as client:
        for worker in workers:
            worker.start()
            assert worker.wait_ready(WAIT)
        for n in range(3):
            client.schedule(tick, (n,), every=10.0 * (n + 1), key=f"k{n}")
        tables = [Timetable(f"k{n}", 10.0 * (n + 1), "", "") for n in range(3)]
        expected: Counter[object] = Counter()
        for _ in range(60):
            before, clock.now = clock.now, clock.now + 5.0
            expected.update(n for n, table in enumerate(tables) if table.after(before) <= clock.now)
            look(*workers)
            until_ran(expected.total())
        for worker in workers:
            worker.stop()
    assert Counter(word for _, word in ran) == expected
    assert all(abs(expected[n] - 300 / (10 * (n + 1))) <= 1 for n in range(3))
    assert len({id for id, _ in ran}) == len(ran)
    assert sum(worker.firing.fired for worker in workers) == expected.total()


def test_of_times_that_nobody_saw_one_is_made_up_for(at, clock):
    with Client(at(), messenger="memory://") as client:
        client.schedule(tick, every=10, key="often")
        clock.now += 3600
        with serve(at()) as worker:
            until_ran(1)
            (schedule,) = client.schedules()
            assert clock.now < schedule.next <= clock.now + 10
            assert schedule.last == ran[0][0]
            clock.now = schedule.next
            look(worker)
            assert len(until_ran(2)) == 2
            assert worker.firing.fired == 2


def test_cron_follows_the_clock_of_its_place(at, clock):
    with Client(at(), messenger="memory://") as client, serve(at()) as worker:
        clock.now = datetime(2026, 3, 28, 12, tzinfo=UTC).timestamp()
        client.schedule(tick, cron="30 2 * * *", tz="Europe/Berlin", key="nightly")
        times = []
        for count in range(1, 4):
            (schedule,) = client.schedules()
            times.append(datetime.fromtimestamp(schedule.next, UTC).strftime("%d %H:%M"))
            clock.now = schedule.next
            look(worker)
            until_ran(count)
            eventually(lambda at=clock.now: client.schedules()[0].next > at, "its next time")
        assert times == ["29 01:00", "30 00:30", "31 00:30"]  # on the 29th 02:30 is not there, and 03:00 is next


def test_a_tick_comes_though_the_one_before_still_runs_unless_a_key_prevents_it(at, clock):
    with Client(at(), messenger="memory://") as client, serve(at(), concurrency=4) as worker:
        client.schedule(linger, every=10, key="overlaps")
        client.options(unique="alone").schedule(linger, every=10, key="alone")
        for _ in range(3):
            before = worker.firing.fired
            clock.now += 10
            look(worker)
            eventually(lambda before=before: worker.firing.fired == before + 2, "both are due")
        until_ran(4)
        assert client._engine.queue.counts()[0].pending == 0
        gate.set()
        eventually(lambda: not client._engine.queue.counts(), "all have ended")
        clock.now += 10
        look(worker)
        assert len(until_ran(6)) == 6


def test_options_hold_for_each_task(at, clock):
    with Client(at(), messenger="memory://") as client, serve(at(), queues="low") as worker:
        client.options(retries=2, backoff=0.0, queue="low", priority=3).schedule(fail, every=10, key="fails")
        clock.now += 10
        look(worker)
        until_ran(3)
        (buried,) = eventually(client._engine.queue.buried, "it is buried")
        assert (buried.queue, buried.deliveries, buried.reason) == ("low", 3, "ValueError: as always")
        assert buried.name == f"{fail.__module__}:fail"
        assert {id for id, _ in ran} == {buried.id} == {client.schedules()[0].last}
        with pytest.raises(ValueError, match="as always"):
            client.attach(buried.id).result(WAIT)


def test_a_task_that_waits_can_be_cancelled_by_its_id(at, clock):
    with Client(at(), messenger="memory://") as client, serve(at(), queues="other") as worker:
        client.schedule(tick, every=10, key="k")
        clock.now += 10
        look(worker)
        eventually(lambda: worker.firing.fired, "it is submitted")
        task = client.attach(client.schedules()[0].last)
        assert task.cancel()
        eventually(task.cancelled, "it is cancelled")
        assert client._engine.queue.counts() == []


def test_its_log_is_there_however_long_it_waited(at, clock):
    with Client(at(), messenger="memory://") as client, serve(at(), queues="other") as worker:
        client.schedule(tick, ("late",), every=10, key="k")
        clock.now += 10
        look(worker)
        eventually(lambda: worker.firing.fired, "it is submitted")
        id = client.schedules()[0].last
        client._engine.messenger.open()
        client._engine.messenger.forget(f"t.{id}")  # as if that had expired
        with serve(at()):
            until_ran(1)
            eventually(lambda: not client._engine.queue.counts(), "it has ended")
            assert client.attach(id).result(WAIT) == "late"


def test_a_worker_that_drains_leaves_schedules_to_others(at, clock):
    with Client(at(), messenger="memory://") as client:
        client.schedule(tick, every=10, key="k")
        worker = serve(at()).start()
        assert worker.wait_ready(WAIT)
        worker.stop()
        clock.now += 10
        worker.firing.ring()
        assert client._engine.queue.overdue().plans
        with serve(at()):
            until_ran(1)
        assert (worker.firing.fired, len(ran)) == (0, 1)


# ---- strangers


def test_nobody_plants_code_or_moves_it_to_another_key(at, clock, caplog):
    with (
        Client(at(), messenger="memory://") as client,
        Client(at(), messenger="memory://", secret="y" * 32) as stranger,
    ):
        queue = client._engine.queue
        client.schedule(tick, ("ours",), every=10, key="ours")
        stranger.schedule(tick, ("theirs",), every=10, key="theirs")
        (ours,) = [plan for plan in queue.plans() if plan.key == "ours"]
        queue.plan("moved", ours.spec, clock.now)
        queue.plan("garbage", b"\x80\x05", clock.now)
        queue.plan("cut", ours.spec[:-1], clock.now)
        queue.plan("sealed as a task", client._engine.keys.seal("task", "assistant/k", b"x"), clock.now)
        clock.now += 10
        with caplog.at_level(logging.ERROR, "revolve_assistant"), serve(at()) as worker:
            until_ran(1)
            eventually(lambda: len(queue.overdue().plans) == 5, "the rest is left")
            look(worker)
            until_ran(1)
        assert [word for _, word in ran] == ["ours"]
        assert sorted({record.args[0] for record in caplog.records}) == [
            "cut",
            "garbage",
            "moved",
            "sealed as a task",
            "theirs",
        ]
        assert len(caplog.records) == 5  # said once each
        troubles = {each.key: each.trouble for each in client.schedules()}
        assert not troubles["ours"]
        assert all(troubles[key] for key in ("cut", "garbage", "moved", "sealed as a task", "theirs"))
        with serve(at(), secret="y" * 32):  # whoever holds that key does it
            until_ran(2)
        assert ran[1][1] == "theirs"


# ---- when the messenger is away


class Away(Messenger):
    """Cannot be written to while `away`."""

    away = True
    tried = 0

    def keep(self, channels, *, seconds, cap):
        if self.away and any(channel.startswith("t.") for channel in channels):
            self.tried += 1
            raise ConnectionError("away")
        super().keep(channels, seconds=seconds, cap=cap)


def test_nothing_is_submitted_before_its_log_is_made(at, clock, monkeypatch):
    monkeypatch.setattr("revolve_assistant.worker.firing.PATIENCE", 0.2)
    messenger = Away("away")
    with Client(at(), messenger="memory://away") as client, serve(at(), messenger=messenger) as worker:
        client.schedule(tick, every=10, key="k")
        assert worker.wait_ready(WAIT)
        clock.now += 10
        look(worker)
        eventually(lambda: messenger.tried > 1, "it tries, and again")
        assert client._engine.queue.overdue().plans
        assert ran == []
        messenger.away = False
        until_ran(1)
        assert client.attach(client.schedules()[0].last).result(WAIT) is None


# ---- the command line


def test_the_command_lists_and_removes(place, capsys):
    with Client(place) as client:
        assert main(["schedule", "list", place]) == 0
        assert capsys.readouterr() == ("", "revolve schedule: nothing is scheduled\n")
        client.schedule(tick, every=60, key="a key")
        client.schedule(tick, cron="@daily", tz="Europe/Berlin", key="daily")
        client._engine.queue.plan("odd \x1b[2J", b"garbage", 2e9)
        assert main(["schedule", "list", place]) == 0
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert lines[0].split() == ["KEY", "FUNCTION", "TIMES", "NEXT", "LAST", "TASK"]
        assert "every 60 s" in lines[1]
        assert "@daily (Europe/Berlin)" in lines[2]
        assert "\x1b" not in out
        assert err.count("cannot be read") == 1
        assert main(["schedule", "list", place, "--json"]) == 0
        first, second, odd = map(json.loads, capsys.readouterr().out.splitlines())
        assert (first["key"], first["every"], first["cron"], first["last"]) == ("a key", 60.0, None, None)
        assert (second["cron"], second["tz"], second["trouble"]) == ("@daily", "Europe/Berlin", "")
        assert odd["trouble"]
        assert main(["schedule", "remove", place, "a key"]) == 0
        assert "a key" in capsys.readouterr().out
        assert main(["schedule", "remove", place, "a key"]) == 1
        assert "no schedule 'a key'" in capsys.readouterr().err
        assert main(["schedule", "remove", place, "daily", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"key": "daily", "removed": True}
        assert [each.key for each in client.schedules()] == ["odd \x1b[2J"]


def test_the_command_takes_its_address_from_the_environment(place, capsys, monkeypatch):
    monkeypatch.setenv("REVOLVE_URL", place)
    with Client(place) as client:
        client.schedule(tick, every=60, key="k")
    assert main(["schedule", "list"]) == 0
    assert "every 60 s" in capsys.readouterr().out
    assert main(["schedule", "remove", "k"]) == 0


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "list or remove"),
        (["lst"], "'lst'"),
        (["list"], "which queue"),
        (["remove", "memory://x"], "which key"),
        (["list", "memory://x", "key"], "too many"),
        (["list", "gearman://127.0.0.1:1"], "keeps no schedules"),
        (["list", "thread://"], "keeps no schedules"),
    ],
)
def test_wrong_calls_of_the_command(words, match, capsys, monkeypatch):
    monkeypatch.delenv("REVOLVE_URL", raising=False)
    try:
        code = main(["schedule", *words])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert match in capsys.readouterr().err
