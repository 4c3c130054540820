"""The kit must be able to fail: each of these broken providers breaks one promise, and some check says so."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

from revolve_assistant.engine import EngineState, Lease, Outcome, Parcel, Sink
from revolve_assistant.messenger import Batch
from revolve_assistant.providers import memory
from revolve_assistant.testing import checks, run_checks
from revolve_assistant.testing import messenger as messenger_checks
from revolve_assistant.testing import queue as queue_checks
from revolve_assistant.traits import Traits

_names = (f"kit{n}" for n in itertools.count())


class DropsEqual(memory.Messenger):
    def write(self, messages: Sequence[tuple[str, bytes]]) -> None:
        super().write(list(dict.fromkeys(messages)))


class LosesOrder(memory.Messenger):
    def write(self, messages: Sequence[tuple[str, bytes]]) -> None:
        super().write(messages[::-1])


class CutsAtNul(memory.Messenger):
    def write(self, messages: Sequence[tuple[str, bytes]]) -> None:
        super().write([(channel, frame.split(b"\0")[0]) for channel, frame in messages])


class IgnoresLimit(memory.Messenger):
    def read(self, cursors: Mapping[str, bytes], *, limit: int, wait: float) -> Batch:
        return super().read(cursors, limit=1000, wait=wait)


class HidesLoss(memory.Messenger):
    def read(self, cursors: Mapping[str, bytes], *, limit: int, wait: float) -> Batch:
        return super().read(cursors, limit=limit, wait=wait)._replace(lost=frozenset())


class RepeatsLast(memory.Messenger):
    def read(self, cursors: Mapping[str, bytes], *, limit: int, wait: float) -> Batch:
        batch = super().read(cursors, limit=limit, wait=wait)
        return batch._replace(messages=[*batch.messages, *batch.messages[-1:]][:limit])


class NeverWaits(memory.Messenger):
    def read(self, cursors: Mapping[str, bytes], *, limit: int, wait: float) -> Batch:
        return super().read(cursors, limit=limit, wait=0)


class SleepsThrough(memory.Messenger):
    def wake(self) -> None:
        pass


class ForgetsTheCap(memory.Messenger):
    def keep(self, channels: Iterable[str], *, seconds: float, cap: int) -> None:
        super().keep(channels, seconds=seconds, cap=1 << 30)


class NeverRenews(memory.Messenger):
    def keep(self, channels: Iterable[str], *, seconds: float, cap: int) -> None:
        super().keep([name for name in channels if not self._joined().logs.get(name)], seconds=seconds, cap=cap)


class ForgetsAll(memory.Messenger):
    def forget(self, channel: str, upto: bytes | None = None) -> None:
        super().forget(channel)


class FoldsCase(memory.Messenger):
    def write(self, messages: Sequence[tuple[str, bytes]]) -> None:
        super().write([(channel.replace("A", "a"), frame) for channel, frame in messages])


class WritesHalf(memory.Messenger):
    def write(self, messages: Sequence[tuple[str, bytes]]) -> None:
        for message in messages:
            super().write([message])


class WorksClosed(memory.Messenger):
    def close(self) -> None:
        pass


def outcome(check: Callable[..., None], make: Callable[..., Any]) -> str:
    return checks.run_all([check], make)[0][1]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up sooner: here we wait for what does not come."""
    for module in (messenger_checks, queue_checks):
        monkeypatch.setattr(module, "PROMPT", 1.0)
    monkeypatch.setattr(checks.eventually, "__kwdefaults__", {"within": 2.0})


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (DropsEqual, messenger_checks.check_equal_messages),
        (LosesOrder, messenger_checks.check_order),
        (LosesOrder, messenger_checks.check_many_channels),
        (CutsAtNul, messenger_checks.check_any_bytes),
        (IgnoresLimit, messenger_checks.check_limit),
        (HidesLoss, messenger_checks.check_unknown_channel),
        (HidesLoss, messenger_checks.check_forget_channel),
        (HidesLoss, messenger_checks.check_made_again),
        (RepeatsLast, messenger_checks.check_resume),
        (NeverWaits, messenger_checks.check_empty_read),
        (SleepsThrough, messenger_checks.check_wake),
        (ForgetsTheCap, messenger_checks.check_cap),
        (NeverRenews, messenger_checks.check_expiry),
        (ForgetsAll, messenger_checks.check_forget_upto),
        (FoldsCase, messenger_checks.check_channel_names),
        (WritesHalf, messenger_checks.check_largest),
        (WorksClosed, messenger_checks.check_close),
    ],
)
def test_a_broken_messenger_fails(broken: type[memory.Messenger], check: Callable[..., None]) -> None:
    name = next(_names)
    assert outcome(check, lambda: broken(name)).startswith("FAILED: ")


class Unfenced(memory.Queue):
    """Settles by id, whoever holds the task."""

    def settle(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> None:
        tasks = self._joined().tasks
        super().settle(
            [(lease._replace(token=tasks[lease.id].token), what) for lease, what in outcomes if lease.id in tasks]
        )


class Eager(memory.Queue):
    """Knows no delays."""

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        super().submit([Parcel(one.id, body=one.body, queue=one.queue, priority=one.priority) for one in parcels], sink)


class Flat(memory.Queue):
    """Knows no priorities."""

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        super().submit([Parcel(one.id, body=one.body, queue=one.queue, delay=one.delay) for one in parcels], sink)


class NeverExtends(memory.Queue):
    def extend(self, leases: Sequence[Lease]) -> None:
        pass


class BuriesAsReleases(memory.Queue):
    def settle(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> None:
        super().settle([(lease, Outcome("done" if what.kind == "done" else "release")) for lease, what in outcomes])


class Twice(memory.Queue):
    """Gives out a lease to two takers once in a while."""

    count = 0

    def take(self, queues: Sequence[str], *, limit: int, wait: float) -> Sequence[Lease]:
        leases = super().take(queues, limit=limit, wait=wait)
        Twice.count += len(leases)
        if Twice.count > 100 and leases:
            Twice.count = -(10**9)
            super().settle([(leases[0], Outcome("release"))])
        return leases


class CancelsRunning(memory.Queue):
    def cancel(self, task_id: str) -> bool:
        return self._joined().tasks.pop(task_id, None) is not None


class SaysQueued(memory.Queue):
    def state(self, ids: Iterable[str]) -> Mapping[str, EngineState]:
        return dict.fromkeys(ids, "queued")


class KeepsLeases(memory.Queue):
    """Leases that never end."""

    def __init__(self, name: str = "", *, lease: float = 0.0) -> None:
        super().__init__(name, lease=1e6)


class WakesNobody(memory.Queue):
    def wake(self) -> None:
        pass


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Unfenced, queue_checks.check_fencing),
        (Eager, queue_checks.check_delay),
        (Flat, queue_checks.check_priority),
        (NeverExtends, queue_checks.check_extend),
        (BuriesAsReleases, queue_checks.check_bury),
        (Twice, queue_checks.check_many_takers),
        (CancelsRunning, queue_checks.check_cancel),
        (SaysQueued, queue_checks.check_state),
        (KeepsLeases, queue_checks.check_lease_ends),
        (KeepsLeases, queue_checks.check_taker_gone),
        (WakesNobody, queue_checks.check_wake),
    ],
)
def test_a_broken_queue_fails(broken: type[memory.Queue], check: Callable[..., None]) -> None:
    name = next(_names)
    assert outcome(check, lambda **options: broken(name, **options)).startswith("FAILED: ")


def test_what_a_provider_does_not_promise_is_skipped() -> None:
    class Modest(memory.Messenger):
        traits = Traits(max_bytes=1000)

    name = next(_names)
    results = dict(run_checks("messenger", lambda: Modest(name), excused={"overlap": "one thread only"}))
    assert results["replay"] == "skipped: does not replay"
    assert results["overlap"] == "skipped: one thread only"
    assert results["order"] == "ok"
    assert not [result for result in results.values() if result.startswith("FAILED")]
    assert outcome(queue_checks.check_fencing, lambda: memory.Queue(name)).startswith("skipped: has no lease time")


def test_a_check_that_hangs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    class Hangs(memory.Messenger):
        def open(self) -> None:
            over.wait(20)

    monkeypatch.setattr(checks, "GIVE_UP", 0.1)
    assert outcome(messenger_checks.check_order, Hangs) == "FAILED: the check 'order' hangs: not within 0.1 s"
    over.set()


def test_an_unexpected_error_fails_and_is_named() -> None:
    class Raises(memory.Messenger):
        def open(self) -> None:
            raise OSError("no such carrier")

    assert outcome(messenger_checks.check_order, Raises) == "FAILED: OSError: no such carrier"


def test_importing_the_kit_imports_no_pytest() -> None:
    code = "import sys, revolve_assistant.testing; sys.exit('pytest' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
