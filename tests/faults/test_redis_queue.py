"""The Redis queue when takers are killed, servers die or are full, and answers get lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from revolve_assistant.engine import Lease, Outcome, Parcel
from revolve_assistant.errors import Overloaded, ProviderError, Unreachable
from revolve_assistant.providers import registry
from revolve_assistant.testing import Door
from revolve_assistant.testing.checks import Aside, entered, eventually
from revolve_assistant.testing.servers import Redis

DONE = Outcome("done")
WAIT = 30.0  # seconds that nothing here should take


class Nobody:
    def deliver(self, reports: Sequence[Any]) -> None:
        raise AssertionError("a Queue reported")


@pytest.fixture
def server(need: Any) -> Iterator[Redis]:
    need("redis-server")
    with Redis() as server:
        yield server


@pytest.fixture
def saving(need: Any) -> Iterator[Redis]:
    need("redis-server")
    with Redis("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
def some() -> Iterator[Any]:
    """`some(port, …)`: a queue, opened, and closed at the end."""
    with contextlib.ExitStack() as stack:

        def opened(port: int, **options: Any) -> Any:
            queue: Any = registry.engine(f"redis://127.0.0.1:{port}", **options)
            stack.callback(queue.close)
            queue.open()
            return queue

        yield opened


def submit(queue: Any, *parcels: Parcel) -> Any:
    return queue.submit(parcels, Nobody())


def tasks(count: int, start: int = 0, **fields: Any) -> list[Parcel]:
    return [Parcel(f"t{n}", body=b"%d" % n, **fields) for n in range(start, start + count)]


def take(queue: Any, limit: int = 100, wait: float = 0.0) -> Any:
    return queue.take(["default"], limit=limit, wait=wait)


def ids(leases: Sequence[Lease]) -> list[str]:
    return [lease.id for lease in leases]


def patiently(call: Any) -> Any:
    """Call again while the server is away, as clients and workers do."""

    def attempt() -> Any:
        try:
            return (call(),)
        except Unreachable:
            threading.Event().wait(0.02)
            return None

    return eventually(attempt, "the server answers", within=WAIT)[0]


# ---- takers that die

HOLDER = """
import sys
from revolve_assistant.providers import registry
queue = registry.engine(sys.argv[1])
queue.open()
found = []
while len(found) < int(sys.argv[2]):
    found += queue.take(["default"], limit=int(sys.argv[2]), wait=10.0)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(server: Redis, count: int, *, waits: bool = False, options: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds so many tasks, or will (`waits`)."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, server.url + options, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert waits or process.stdout.readline() == b"held\n"
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.kill()


def cut(queue: Any) -> None:
    """Cut its connection; it does not come back by itself, but when it is asked something."""
    queue._guard.close()
    queue._guard = None
    queue._line.close()


def test_tasks_of_a_killed_taker_are_back_in_seconds(server: Redis, some: Any) -> None:
    giver, taker = some(server.port), some(server.port)
    giver.set_rule("limited", concurrency=3)
    submit(giver, *tasks(1500), *tasks(3, 2000, name="limited"))
    with holder(server, 1503) as process:
        assert ids(take(taker)) == []
        began = time.monotonic()
        process.kill()
        found: list[Lease] = []
        while len(found) < 1503:
            found += take(taker, 1000, wait=10.0)
            assert time.monotonic() - began < 8
        assert time.monotonic() - began > 2.9
    assert {lease.deliveries for lease in found} == {2}
    taker.settle([(lease, DONE) for lease in found])
    assert list(giver.counts()) == []


def test_a_taker_that_was_killed_while_it_waited_is_handed_nothing(server: Redis, some: Any) -> None:
    giver, taker = some(server.port), some(server.port)
    with holder(server, 1, waits=True) as process:
        eventually(lambda: giver._line.call("ZCARD", giver._base + b":waiting:default") == 1, "it waits")
        process.kill()
        process.wait()
        eventually(lambda: not giver._line.call("PUBSUB", "CHANNELS", "*"), "the server has seen its connection end")
        submit(giver, *tasks(1))
        assert ids(take(taker)) == ["t0"]


def test_a_stopped_taker_is_not_dead(server: Redis, some: Any) -> None:
    giver, taker = some(server.port), some(server.port)
    submit(giver, *tasks(2))
    with holder(server, 2) as process:
        process.send_signal(signal.SIGSTOP)
        assert ids(take(taker, wait=6.0)) == []
    assert sorted(ids(take(taker, wait=10.0))) == ["t0", "t1"]


def test_a_silent_taker_whose_connections_are_cut_is_not_dead(server: Redis, some: Any) -> None:
    with Door(server.port) as door:
        giver, silent, taker = some(server.port), some(door.port), some(server.port)
        submit(giver, *tasks(2))
        held = take(silent)
        for _ in range(3):
            assert door.cut() >= 1
            assert ids(take(taker, wait=2.5)) == []
            assert door.wait_for(lambda door: door.connections == 1)
        silent.settle([(lease, DONE) for lease in held])
        assert list(giver.counts()) == []


def test_nobody_is_dead_where_nobody_may_ask_which_run_of_the_server_it_is(server: Redis, some: Any) -> None:
    assert server.ask("ACL", "SETUSER", "default", "-info").startswith("+OK")
    giver, silent, taker = some(server.port), some(server.port), some(server.port)
    submit(giver, *tasks(1))
    take(silent)
    cut(silent)
    assert ids(take(taker, wait=6.0)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the names of these options are Linux'")
def test_the_system_asks_whether_the_machine_is_there_to_which_a_taker_listens(server: Redis, some: Any) -> None:
    taker = some(server.port)
    take(taker)
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    assert [taker._line._socket.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [2, 1, 2]


def test_what_a_closed_taker_held_is_back_at_once(server: Redis, some: Any) -> None:
    giver, gone, taker = some(server.port), some(server.port), some(server.port)
    submit(giver, *tasks(3))
    held = take(gone)
    gone.settle([(held[1], DONE)])
    waiting = entered(lambda: ids(take(taker, wait=20)))
    eventually(lambda: giver._line.call("EXISTS", giver._base + b":waiting:default"), "it waits")
    gone.close()
    assert waiting.result(2, "they are handed over") == ["t0", "t2"]


def test_a_storm_of_killed_takers_loses_nothing(server: Redis, some: Any) -> None:
    giver, taker = some(server.port, lease=5.0), some(server.port, lease=5.0)
    submit(giver, *tasks(200))
    pick = random.Random(7)
    for _ in range(4):
        with holder(server, pick.randint(1, 60)) as process:
            process.kill()
    seen: Counter[str] = Counter()
    deadline = time.monotonic() + WAIT
    while len(seen) < 200:
        assert time.monotonic() < deadline
        found = take(taker, 50, wait=1.0)
        seen.update(ids(found))
        taker.settle([(lease, DONE) for lease in found])
    assert set(seen.values()) == {1}
    assert list(giver.counts()) == []


# ---- servers that die


def test_a_killed_server_with_its_log_loses_nothing(saving: Redis, some: Any) -> None:
    giver, taker = some(saving.port), some(saving.port)
    submit(giver, *tasks(10), Parcel("late", delay=1.0), Parcel("u", unique="key"))
    held = take(taker, 4)
    taker.settle([(held[0], DONE), (held[1], Outcome("bury", reason="bad"))])
    saving.kill()
    saving.start()
    patiently(lambda: taker.extend(held))
    assert giver.state(["t0", "t1", "t2", "t9", "late"]) == {
        "t0": "unknown", "t1": "unknown", "t2": "running", "t9": "queued", "late": "queued",
    }  # fmt: skip
    assert submit(giver, Parcel("v", unique="key")) == {"v": "u"}
    taker.settle([(lease, DONE) for lease in held])
    found: list[Lease] = []
    while len(found) < 8:
        found += take(taker, wait=5.0)
    assert ids(found) == [*(f"t{n}" for n in range(4, 10)), "u", "late"]
    assert [(one.id, one.reason) for one in giver.buried()] == [("t1", "bad")]
    taker.settle([(lease, DONE) for lease in found])
    assert take(taker) == []


def test_who_is_slow_to_come_back_to_a_server_keeps_his_tasks(saving: Redis, some: Any) -> None:
    giver, slow, taker = (some(saving.port, timeout=1.0) for _ in range(3))  # so that 6 s is the time to come back
    submit(giver, *tasks(2))
    held = take(slow)
    cut(slow)
    saving.kill()
    saving.start()
    assert patiently(lambda: ids(take(taker, wait=4.0))) == []
    slow.extend(held)
    assert ids(take(taker, wait=6.0)) == []
    slow.settle([(lease, DONE) for lease in held])
    assert list(giver.counts()) == []


def test_no_lease_ends_because_the_server_was_away(saving: Redis, some: Any) -> None:
    giver, slow, taker = (some(saving.port, lease=0.5) for _ in range(3))
    giver.set_rule("limited", concurrency=1)
    submit(giver, *tasks(1), *tasks(2, 1, name="limited"))
    held = take(slow, 2)
    cut(slow)
    saving.kill()
    ended = time.monotonic() + 0.6
    eventually(lambda: time.monotonic() > ended, "the leases have ended")
    saving.start()
    assert patiently(lambda: ids(take(taker, wait=2.0))) == []
    slow.extend(held)
    slow.settle([(lease, DONE) for lease in held])
    assert ids(take(taker, wait=WAIT)) == ["t2"]


def test_of_many_takers_those_that_died_with_the_server_are_found(saving: Redis, some: Any) -> None:
    """And no others: what the living hold stays with them. Leases have an hour here, so it is not those."""
    giver, taker, *living = (some(saving.port, lease=3600.0) for _ in range(27))
    submit(giver, *tasks(180))
    kept = [(queue, lease) for queue in living for lease in take(queue, 5)]
    with contextlib.ExitStack() as stack:
        dying = [stack.enter_context(holder(saving, 11, options="?lease=3600")) for _ in range(5)]
        for process in dying:
            process.kill()
        saving.kill()
        saving.start()
    found: list[Lease] = []
    deadline = time.monotonic() + WAIT
    while len(found) < 55 and time.monotonic() < deadline:
        found += patiently(lambda: take(taker, wait=5.0))
    assert sorted(ids(found), key=lambda id: int(id[1:])) == [f"t{n}" for n in range(125, 180)]
    assert ids(take(taker, wait=3.0)) == []
    for queue, lease in [*kept, *((taker, lease) for lease in found)]:
        queue.settle([(lease, DONE)])
    assert list(giver.counts()) == []


def test_a_server_without_its_data_goes_on_with_what_is_submitted_again(server: Redis, some: Any) -> None:
    giver, taker = some(server.port), some(server.port)
    giver.introduce("worker", b"about")
    submit(giver, *tasks(4))
    held = take(taker, 2)
    server.kill()
    server.start()
    patiently(lambda: taker.settle([(lease, DONE) for lease in held]))
    taker.extend(held)
    assert set(patiently(lambda: giver.state(["t1", "t3"])).values()) == {"unknown"}
    waiting = Aside(lambda: patiently(lambda: ids(take(taker, wait=10.0))))
    submit(giver, *tasks(4))
    assert waiting.result(WAIT, "they come") == ["t0", "t1", "t2", "t3"]
    server.ask("FLUSHALL")
    assert ids(take(taker, wait=0.2)) == []
    submit(giver, *tasks(1))
    assert ids(take(taker)) == ["t0"]


def test_a_waiting_taker_outlives_a_restart(saving: Redis, some: Any) -> None:
    giver, taker = some(saving.port), some(saving.port)
    stop = time.monotonic() + WAIT
    found: list[str] = []

    def work() -> None:
        while not found and time.monotonic() < stop:
            with contextlib.suppress(Unreachable):
                found.extend(ids(take(taker, wait=10.0)))

    working = Aside(work)
    eventually(lambda: giver._line.call("EXISTS", giver._base + b":waiting:default"), "it waits")
    saving.restart()
    patiently(lambda: submit(giver, *tasks(1)))
    working.result(WAIT, "it hears of a task")
    assert found == ["t0"]


def test_flushed_scripts_are_sent_again(server: Redis, some: Any) -> None:
    giver, taker = some(server.port), some(server.port)
    for n in range(3):
        server.ask("SCRIPT", "FLUSH")
        submit(giver, *tasks(1, n))
        server.ask("SCRIPT", "FLUSH")
        (lease,) = take(taker)
        server.ask("SCRIPT", "FLUSH")
        taker.settle([(lease, DONE)])
    assert list(giver.counts()) == []


def test_every_call_ends_when_the_server_is_away(server: Redis, some: Any) -> None:
    queue = some(server.port, timeout=1.0)
    submit(queue, *tasks(2))
    held = take(queue, 1)
    server.kill()
    calls = [
        lambda: submit(queue, *tasks(1, 5)),
        lambda: take(queue, wait=5.0),
        lambda: queue.extend(held),
        lambda: queue.settle([(held[0], DONE)]),
        lambda: queue.state(["t0"]),
        lambda: queue.cancel("t0"),
        queue.counts,
        lambda: queue.set_rule("x", paused=True),
    ]
    for call in calls:
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1"):
            call()
        assert time.monotonic() - began < 3
    server.start()
    patiently(lambda: submit(queue, *tasks(1)))


def test_a_half_open_connection_is_noticed(server: Redis, some: Any) -> None:
    with Door(server.port) as door:
        queue = some(door.port, timeout=0.5)
        submit(queue, *tasks(2))
        held = take(queue, 1)
        for call in (
            lambda: submit(queue, *tasks(1, 5)),
            lambda: take(queue, wait=3.0),
            lambda: queue.settle([(held[0], DONE)]),
            queue.counts,
        ):
            door.swallow()
            began = time.monotonic()
            with pytest.raises(Unreachable):
                call()
            assert time.monotonic() - began < 3
            door.heal()
        queue.settle([(held[0], DONE)])
        submit(queue, *tasks(1, 5))
        assert ids(take(queue)) == ["t1", "t5"]


# ---- answers that get lost


@pytest.mark.parametrize(
    "what", ["submit", "take", "hand", "settle", "cancel", "exhume", "purge", "fire", "both", "next"]
)
def test_an_answer_that_is_cut_anywhere_does_no_harm(server: Redis, some: Any, what: str) -> None:
    """The connection is reset after so many bytes of the answer, the server having acted; each task is taken once."""
    with Door(server.port) as door:
        giver, taker, other = some(door.port), some(server.port), some(server.port)
        words: Any = registry.messenger(f"redis://127.0.0.1:{server.port}")  # whose words are at the same server
        words.place = giver._place
        if what in ("take", "hand", "settle", "next"):
            giver, taker = taker, giver
        for n in range(90):
            queue = f"cut{n}"
            id = f"{queue}.task"
            parcel = Parcel(id, body=b"body", queue=queue)

            def taken(limit: int, wait: float, queue: str = queue) -> Any:
                return taker.take([queue], limit=limit, wait=wait)

            if what == "submit":
                waiting = entered(lambda: [taken(5, 20), taker.settle([(each, DONE) for each in taken(5, 0)])][0])
                giver.state([id])  # connected
                door.cut_after(n, "to_client")
                patiently(lambda parcel=parcel: submit(giver, parcel))
                (lease,) = waiting.result(WAIT, "it is taken")
                taker.settle([(lease, DONE)])
            elif what == "take":
                assert taken(1, 0) == []  # connected
                submit(giver, parcel)
                door.cut_after(n, "to_client")
                (lease,) = patiently(lambda: taken(1, 0))
                assert (lease.id, lease.body, lease.deliveries) == (id, b"body", 1)
                taker.settle([(lease, DONE)])
            elif what == "hand":
                waiting = entered(lambda: patiently(lambda: taken(1, 20)))
                eventually(
                    lambda q=queue: other._line.call("EXISTS", other._base + f":waiting:{q}".encode()), "it waits"
                )
                door.cut_after(n, "to_client")
                submit(giver, parcel)
                (lease,) = waiting.result(WAIT, "it is taken")
                assert (lease.id, lease.body, lease.deliveries) == (id, b"body", 1)
                taker.settle([(lease, DONE)])
            elif what == "settle":
                submit(giver, parcel, Parcel(f"{queue}.again", queue=queue))
                done, again = taken(2, 5)
                door.cut_after(n, "to_client")
                outcomes = [(done, DONE), (again, Outcome("release"))]
                patiently(lambda outcomes=outcomes: taker.settle(outcomes))
                (again,) = taken(5, 0)
                assert again.deliveries == 2
                taker.settle([(again, DONE)])
            elif what == "cancel":
                submit(giver, parcel)
                door.cut_after(n, "to_client")
                assert patiently(lambda id=id: giver.cancel(id))
            elif what == "exhume":
                submit(giver, parcel)
                giver.counts()
                door.cut_after(n, "to_client")
                assert patiently(lambda id=id: giver.exhume(id)).body == b"body"
            elif what == "purge":
                submit(giver, parcel)
                giver.counts()
                door.cut_after(n, "to_client")
                assert ids(patiently(lambda queue=queue: giver.purge(queue))) == [id]
            elif what == "both":
                giver.state([id])
                door.cut_after(n, "to_client")
                given = ([parcel], Nobody(), words, [queue])
                patiently(lambda given=given: giver.submit_and_keep(*given, seconds=60.0, cap=1000))
                assert other._line.call("EXISTS", words._key(queue)) == 1
                (lease,) = taken(5, 0)
                taker.settle([(lease, DONE)])
            elif what == "next":
                submit(giver, parcel, Parcel(f"{queue}.again", queue=queue))
                (first,) = taken(1, 5)
                door.cut_after(n, "to_client")
                done = [(first, DONE)]
                (lease,) = patiently(lambda d=done, q=queue: taker.settle_and_take(d, [q], limit=1, wait=5))
                assert (lease.id, lease.deliveries) == (f"{queue}.again", 1)
                taker.settle([(lease, DONE)])
            else:
                giver.plan(queue, b"", 1000.0)
                plan = next(plan for plan in giver.plans() if plan.key == queue)
                door.cut_after(n, "to_client")
                assert giver.fire(plan, 2e9, parcel)
                (lease,) = taken(5, 0)
                taker.settle([(lease, DONE)])
            door.heal()
            assert other.take([queue], limit=5, wait=0) == []
            assert other.state([id, f"{queue}.again"]) == {id: "unknown", f"{queue}.again": "unknown"}


def test_a_submission_in_doubt_is_not_run_twice_when_it_comes_again_with_more(server: Redis, some: Any) -> None:
    with Door(server.port) as door:
        giver, taker = some(door.port), some(server.port)
        giver.state(["t0"])  # connected
        waiting = entered(lambda: take(taker, 5, wait=20))
        door.shut()
        door.cut_after(0, "to_client")
        with pytest.raises(Unreachable):
            submit(giver, *tasks(2))
        leases = waiting.result(WAIT, "the server had it")
        assert ids(leases) == ["t0", "t1"]
        taker.settle([(lease, DONE) for lease in leases])
        door.open()
        submit(giver, *tasks(4))
        assert ids(take(taker)) == ["t2", "t3"]


# ---- servers that are full, or no primary any more


def test_a_full_server_takes_no_more_tasks_but_lets_those_go_that_it_has(server: Redis, some: Any) -> None:
    giver, taker = some(server.port, lease=0.5), some(server.port)
    submit(giver, *tasks(8, name="work"), Parcel("late", delay=0.3))
    giver.set_rule("work", concurrency=6)
    ended = take(giver, 1)
    server.ask("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(Overloaded, match="maxmemory"):
        submit(giver, *tasks(1, 50))
    held = take(taker, 4)
    assert ids(held) == ["t1", "t2", "t3", "t4"]
    taker.extend(held)
    taker.settle([(held[0], DONE), (held[1], Outcome("release")), (held[2], Outcome("release", 0.1))])
    taker.settle([(held[3], Outcome("bury"))])
    assert giver.cancel("t5")
    found: list[Lease] = []
    while len(found) < 6:
        found += (some_more := take(taker, wait=5.0))
        taker.settle([(lease, DONE) for lease in some_more])
    assert sorted(ids(found)) == ["late", "t0", "t2", "t3", "t6", "t7"]
    assert ended[0].id == "t0"
    late = some(server.port)  # a new one can start, and take
    assert take(late) == []
    server.ask("CONFIG", "SET", "maxmemory", "0")
    submit(giver, *tasks(1, 50))
    assert ids(take(late)) == ["t50"]


def test_a_server_that_became_a_replica_is_away(server: Redis, some: Any, need: Any) -> None:
    with Redis() as primary:
        giver, taker = some(server.port), some(server.port)
        submit(giver, *tasks(1))
        (lease,) = take(taker)
        server.ask("REPLICAOF", primary.host, str(primary.port))
        for call in (lambda: submit(giver, *tasks(1, 1)), lambda: take(taker), lambda: taker.settle([(lease, DONE)])):
            with pytest.raises(Unreachable, match="read-only replica"):
                call()
        server.ask("REPLICAOF", "NO", "ONE")
        patiently(lambda: submit(giver, *tasks(1, 1)))
        assert "t1" in ids(patiently(lambda: take(taker)))


def test_a_user_who_may_not_listen_is_told_what_is_missing(server: Redis) -> None:
    server.ask("ACL", "SETUSER", "mute", "on", ">word", "~*", "resetchannels", "+@all")
    queue: Any = registry.engine(f"redis://mute:word@127.0.0.1:{server.port}")
    queue.open()
    try:
        submit(queue, *tasks(1))
        with pytest.raises(ProviderError, match=r"channels '\{assistant\}"):
            take(queue)
    finally:
        queue.close()


# ---- rules under load, forks


@pytest.mark.timeout(120)
def test_rules_hold_exactly_under_load(server: Redis, some: Any) -> None:
    """Six takers, one of which is killed now and then as it were: never more at once than the rule says."""
    giver, takers = some(server.port), [some(server.port, lease=30.0) for _ in range(4)]
    giver.set_rule("few", concurrency=3)
    names = [random.Random(n).choice(["few", "many"]) for n in range(1500)]
    submit(giver, *[Parcel(f"t{n}", name=name) for n, name in enumerate(names)])
    lock = threading.Lock()
    at_once, most, seen = 0, 0, Counter[str]()

    def few(found: Sequence[Lease]) -> int:
        return sum(names[int(lease.id[1:])] == "few" for lease in found)

    def work(number: int) -> None:
        nonlocal at_once, most
        pick = random.Random(number)
        taker = takers[number]
        deadline = time.monotonic() + 60
        while sum(seen.values()) < 1500 and time.monotonic() < deadline:
            found = take(taker, pick.randint(1, 8), wait=0.5)
            with lock:
                at_once += few(found)
                most = max(most, at_once)
            ends = [(lease, DONE if pick.random() < 0.8 else Outcome("release")) for lease in found]
            pick.shuffle(ends)
            with lock:  # before the server knows: so at_once is never above what it counts
                at_once -= few(found)
                seen.update(lease.id for lease, outcome in ends if outcome is DONE)
            taker.settle(ends)

    for each in [Aside(work, number) for number in range(4)]:
        each.result(90, "all done")
    assert set(seen.values()) == {1}
    assert len(seen) == 1500
    assert 1 <= most <= 3
    assert list(giver.counts()) == []
    assert giver._line.call("KEYS", giver._base + b":running:*") == []


def test_a_forked_child_is_a_taker_of_its_own(server: Redis, some: Any) -> None:
    queue = some(server.port)
    submit(queue, *tasks(3))
    held = take(queue, 1)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            found = take(queue, 1)
            queue.settle([(found[0], DONE)])
            os.write(write, found[0].id.encode())
            queue.close()
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        assert file.read() == b"t1"
    os.waitpid(pid, 0)
    queue.settle([(held[0], DONE)])
    assert ids(take(queue)) == ["t2"]
