"""The Redis queue where the place is hard: far away, shared, guarded, flushed, failing over; and clocks that jump."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant.engine import Outcome, Parcel, Plan
from revolve_assistant.errors import ProviderError, Unreachable
from revolve_assistant.providers import registry
from revolve_assistant.testing import Door
from revolve_assistant.testing.checks import Aside, entered, eventually, fresh
from revolve_assistant.testing.servers import Redis, Server
from revolve_assistant.testing.tasks import DONE, submit, take

WAIT = 30.0  # seconds that nothing here should take
WORD = "hunter2-very-secret"


@pytest.fixture
def server(need: Any) -> Iterator[Redis]:
    need("redis-server")
    with Redis() as server:
        yield server


@pytest.fixture
def some() -> Iterator[Callable[..., Any]]:
    """`some(url, …)`: a queue, opened, and closed at the end."""
    with contextlib.ExitStack() as stack:

        def opened(url: str, **options: Any) -> Any:
            queue: Any = registry.engine(url, **options)
            stack.callback(queue.close)
            queue.open()
            return queue

        yield opened


def ids(leases: Any) -> list[str]:
    return [lease.id for lease in leases]


def patiently(call: Callable[[], Any]) -> Any:
    """Call again while the server is away, as clients and workers do."""

    def attempt() -> Any:
        try:
            return (call(),)
        except Unreachable:
            threading.Event().wait(0.02)
            return None

    return eventually(attempt, "the server answers", within=WAIT)[0]


# ---- passwords


def test_a_wrong_password_is_one_clear_error_that_does_not_hold_it(
    server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    server.ask("CONFIG", "SET", "requirepass", "the-right-one")
    caplog.set_level(logging.DEBUG)
    for address, why in ((f":{WORD}@", "refuses the user or the password"), ("", "wants a password")):
        queue = registry.engine(f"redis://{address}127.0.0.1:{server.port}")
        with pytest.raises(ProviderError, match=why) as caught:
            queue.open()
        assert not isinstance(caught.value, Unreachable)  # trying again does not help
        seen: BaseException | None = caught.value
        while seen is not None:
            assert WORD not in repr(seen) + str(seen)
            seen = seen.__cause__ or seen.__context__
        assert WORD not in repr(queue) + repr(vars(queue)) + caplog.text
        queue.close()


def test_a_user_of_one_namespace_may_do_all_that_a_queue_needs_there_and_nothing_elsewhere(
    server: Redis, some: Any
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "providers" / "redis-queue.md").read_text()
    words = next(line for line in page.splitlines() if line.startswith("ACL SETUSER")).split()
    assert server.ask(*words).startswith("+OK")
    url = f"redis://shop:PASSWORD@127.0.0.1:{server.port}"
    giver, taker = some(url), some(url)
    waiting = entered(lambda: taker.take(["default"], limit=1, wait=WAIT))
    giver.set_rule("work", concurrency=1)
    submit(giver, Parcel("t", name="work"))
    (lease,) = waiting.result(5, "it is handed over")
    taker.extend([lease])
    taker.settle([(lease, Outcome("bury"))])
    assert (giver.counts()[0].buried, ids(giver.buried())) == (1, ["t"])
    giver.plan("p", b"", 1000.0)
    assert giver.fire(giver.overdue().plans[0], 2e9, Parcel("planned"))
    assert ids(giver.purge("default")) == ["planned"]
    taker.introduce("me", b"")
    assert giver.workers() == {"me": b""}
    for options in ({"namespace": "else"}, {"namespace": "assistant2"}):
        with pytest.raises(ProviderError, match="does not let this user"):
            submit(some(url, **options), Parcel("t"))


def test_a_server_that_throws_keys_away_is_warned_of(
    server: Redis, some: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert list(some(server.url).take(["default"], limit=1, wait=0)) == []
    assert caplog.text == ""
    server.ask("CONFIG", "SET", "maxmemory", "100mb")
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    some(server.url).take(["default"], limit=1, wait=0)
    assert "maxmemory-policy allkeys-lru" in caplog.text


# ---- far away


def test_a_server_far_away_costs_round_trips_and_no_more(server: Redis, some: Any) -> None:
    with Door(server.port) as door:
        giver, taker = some(f"redis://127.0.0.1:{door.port}"), some(f"redis://127.0.0.1:{door.port}")
        name = fresh()
        take_first = taker.take([name], limit=1, wait=0)
        assert list(take_first) == []
        door.delay(0.5)
        began = time.monotonic()
        assert submit(giver, *[Parcel(f"{name}.{n}", queue=name) for n in range(500)]) == {}
        assert time.monotonic() - began < 1.9  # one round trip
        began = time.monotonic()
        leases = taker.take([name], limit=500, wait=1.0)
        taker.settle([(lease, DONE) for lease in leases])
        assert (len(leases), time.monotonic() - began < 2.9) == (500, True)  # two
        waiting = entered(lambda: taker.take([name], limit=1, wait=WAIT))
        eventually(lambda: giver.wake() or _waits(server, name), "it waits")
        began = time.monotonic()
        submit(giver, Parcel(f"{name}.last", queue=name))
        assert ids(waiting.result(5, "it is handed over")) == [f"{name}.last"]
        assert time.monotonic() - began < 1.9


def _waits(server: Redis, name: str) -> bool:
    return "1" in server.ask("EXISTS", f"{{assistant}}:q:waiting:{name}")


def test_a_body_of_50_mb_goes_through_a_slow_line(server: Redis, some: Any) -> None:
    with Door(server.port) as door:
        giver, taker = some(f"redis://127.0.0.1:{door.port}", timeout=2.0), some(server.url)
        door.throttle(20 << 20)  # 2.5 s: more than the time-out, but it moves
        name = fresh()
        body = os.urandom(1 << 20) * 50
        submit(giver, Parcel(f"{name}.large", body=body, queue=name))
        door.heal()
        (lease,) = take(taker, name)
        assert lease.body == body
        taker.settle([(lease, DONE)])


# ---- shared


def test_namespaces_know_nothing_of_each_other(server: Redis, some: Any) -> None:
    one, other = some(server.url, namespace="one"), some(server.url, namespace="other")
    for queue, body in ((one, b"1"), (other, b"2")):
        submit(queue, Parcel("same", body=body), Parcel("held", unique="key"))
    assert submit(one, Parcel("again", unique="key")) == {"again": "held"}
    one.set_rule("", paused=True)
    assert list(one.take(["default"], limit=5, wait=0)) == []
    leases = other.take(["default"], limit=5, wait=0)
    assert [(lease.id, lease.body) for lease in leases] == [("same", b"2"), ("held", b"")]
    assert one.state(["same"]) == {"same": "queued"}
    one.extend(leases)
    one.settle([(lease, DONE) for lease in leases])
    assert other.state(["same"]) == {"same": "running"}
    assert ids(one.purge("default")) == ["same", "held"]
    assert other.state(["held"]) == {"held": "running"}
    other.settle([(lease, DONE) for lease in leases])
    assert list(other.counts()) == list(one.counts()) == []


def test_databases_are_apart(server: Redis, some: Any) -> None:
    one, giver, other = some(f"{server.url}/1"), some(f"{server.url}/2"), some(f"{server.url}/2")
    waiting = entered(lambda: other.take(["default"], limit=1, wait=WAIT))
    submit(one, Parcel("t"))
    assert ids(one.take(["default"], limit=1, wait=1.0)) == ["t"]
    submit(giver, Parcel("o"))
    assert ids(waiting.result(5, "its own comes")) == ["o"]


def test_a_hundred_queues_with_takers_of_some_and_of_all(server: Redis, some: Any) -> None:
    names = [f"queue {n}" for n in range(100)]
    giver, everything, half = some(server.url), some(server.url), some(server.url)
    waiting = [
        entered(lambda: everything.take(names, limit=3, wait=WAIT)),
        entered(lambda: half.take(names[:50], limit=3, wait=WAIT)),
    ]
    eventually(lambda: all(_waits(server, name) for name in names), "they wait")
    submit(giver, *[Parcel(f"{name}/{n}", queue=name) for name in names for n in range(3)])
    taken: Counter[str] = Counter()
    for each, taker in zip(waiting, (everything, half), strict=True):
        leases = each.result(5, "some are handed over")
        taken.update(ids(leases))
        taker.settle([(lease, DONE) for lease in leases])
    while leases := everything.take(names, limit=50, wait=0):
        assert [names.index(lease.queue) for lease in leases] == sorted(names.index(lease.queue) for lease in leases)
        taken.update(ids(leases))
        everything.settle([(lease, DONE) for lease in leases])
    assert (len(taken), set(taken.values())) == (300, {1})
    assert list(giver.counts()) == []


# ---- flushed


def test_flushall_under_load_takes_what_it_takes_and_stops_nobody(server: Redis, some: Any) -> None:
    """Whoever submits again what is unknown, as a Client does, gets all of it done; no call fails or hangs."""
    giver, takers = some(server.url), [some(server.url) for _ in range(2)]
    stop = threading.Event()
    done: Counter[str] = Counter()

    def work(taker: Any) -> None:
        while not stop.is_set():
            leases = taker.take(["default"], limit=20, wait=10.0)
            done.update(ids(leases))
            taker.extend(leases)
            taker.settle([(lease, DONE) for lease in leases])

    working = [Aside(work, taker) for taker in takers]
    tasks = [Parcel(f"t{n}", body=b"body") for n in range(3000)]
    for at in range(0, 3000, 50):
        submit(giver, *tasks[at : at + 50])
        if at % 500 == 250:
            server.ask("FLUSHALL")

    def again() -> bool:
        missing = [task for task in tasks if not done[task.id]]
        states = giver.state([task.id for task in missing])
        submit(giver, *[task for task in missing if states[task.id] == "unknown"])
        return not missing

    eventually(again, "all are done", within=WAIT)
    eventually(lambda: not giver.counts(), "what was sent again and had just ended is done too", within=WAIT)
    stop.set()
    for taker in takers:
        taker.wake()
    for each in working:
        each.result(5, "it ends")


def test_an_idle_taker_notices_within_seconds_that_it_was_forgotten(server: Redis, some: Any) -> None:
    giver, taker = some(server.url), some(server.url)
    waiting = entered(lambda: taker.take(["default"], limit=1, wait=WAIT))
    eventually(lambda: _waits(server, "default"), "it waits")
    server.ask("FLUSHALL")
    began = time.monotonic()
    submit(giver, Parcel("t"))
    assert ids(waiting.result(WAIT, "it looks again")) == ["t"]
    assert time.monotonic() - began < 4


# ---- clocks


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_the_clocks_of_clients_do_not_matter(
    server: Redis, some: Any, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    right, wrong = some(server.url), some(server.url)
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + jump)
    submit(wrong, Parcel("late", delay=0.5), Parcel("now"))
    (now,) = right.take(["default"], limit=5, wait=0)
    assert now.id == "now"
    wrong.settle([(now, DONE)])  # a lease is its token's, whoever holds it
    assert list(wrong.take(["default"], limit=5, wait=0)) == []
    (late,) = wrong.take(["default"], limit=5, wait=5.0)
    assert list(right.take(["default"], limit=5, wait=0)) == []
    wrong.extend([late])
    wrong.settle([(late, Outcome("bury"))])
    (buried,) = right.buried()
    assert abs(buried.when - true()) < 60
    wrong.plan("p", b"", true() + 3600)
    assert list(right.overdue().plans) == []
    wrong.plan("p", b"", 1000.0)
    assert right.fire(Plan("p", b"", 1000.0), true() + 60, None)
    wrong.introduce("me", b"")
    assert right.workers() == {"me": b""}


# ---- fail-over


class Sentinel(Redis):
    """A sentinel that alone decides, after half a second, that a primary is down."""

    def __init__(self, primary: Redis) -> None:
        super().__init__()
        Path(self.folder, "sentinel.conf").write_text(
            f"bind {self.host}\nport {self.port}\ndir {self.folder}\n"
            f"sentinel monitor tasks {primary.host} {primary.port} 1\n"
            "sentinel down-after-milliseconds tasks 500\nsentinel failover-timeout tasks 3000\n"
        )

    def command(self) -> list[str]:
        return [self.path, f"{self.folder}/sentinel.conf", "--sentinel"]

    def start(self) -> None:
        Server.start(self)

    def knows(self, replica: Redis) -> bool:
        with socket.create_connection(self.address, timeout=5.0) as link:
            link.sendall(b"*3\r\n$8\r\nSENTINEL\r\n$8\r\nreplicas\r\n$5\r\ntasks\r\n")
            return str(replica.port).encode() in link.recv(65536)


@pytest.mark.timeout(120)
def test_a_fail_over_by_a_sentinel_keeps_what_was_replicated(server: Redis, some: Any) -> None:
    with Redis(replica_of=server) as replica, Sentinel(server) as sentinel:
        eventually(lambda: sentinel.knows(replica), "the sentinel knows the replica")
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/tasks/0"
        giver, taker, other = some(url), some(url), some(url)
        submit(giver, *[Parcel(f"t{n}") for n in range(20)])
        held = taker.take(["default"], limit=5, wait=0)
        assert taker._line.call("WAIT", 1, 5000) == 1
        waiting = Aside(lambda: patiently(lambda: other.take(["elsewhere"], limit=1, wait=WAIT)))
        server.kill()
        patiently(lambda: taker.extend(held))
        taker.settle([(lease, DONE) for lease in held])
        assert "role:master" in replica.ask("INFO", "replication")
        found: list[str] = []
        deadline = time.monotonic() + WAIT
        while len(found) < 15 and time.monotonic() < deadline:
            leases = patiently(lambda: taker.take(["default"], limit=5, wait=5.0))
            found += ids(leases)
            taker.settle([(lease, DONE) for lease in leases])
        assert found == [f"t{n}" for n in range(5, 20)]
        patiently(lambda: submit(giver, Parcel("e", queue="elsewhere")))
        assert ids(waiting.result(WAIT, "a waiting taker went along")) == ["e"]
