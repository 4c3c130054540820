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
from revolve_assistant.testing import checks, managing, planning, run_checks
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
    for module in (messenger_checks, queue_checks, managing, planning):
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


class HoldsNoKeys(memory.Queue):
    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> Any:
        for parcel in parcels:
            parcel.unique = None
        return super().submit(parcels, sink)


class KeepsKeysOfTheBuried(memory.Queue):
    def settle(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> None:
        store = self._joined()
        keys = {
            store.tasks[lease.id].unique: lease.id
            for lease, what in outcomes
            if what.kind == "bury" and lease.id in store.tasks
        }
        super().settle(outcomes)
        store.uniques.update({key: id for key, id in keys.items() if key is not None})


class PausesNothing(memory.Queue):
    def set_rule(self, name: str, **changes: Any) -> Any:
        return super().set_rule(name, **{**changes, "paused": False})


class ResumesInSilence(memory.Queue):
    """Takers that wait do not hear of a rule."""

    def set_rule(self, name: str, **changes: Any) -> Any:
        store = self._joined()
        takers, store.takers = store.takers, {}
        try:
            return super().set_rule(name, **changes)
        finally:
            store.takers = takers


class OneTooMany(memory.Queue):
    def set_rule(self, name: str, **changes: Any) -> Any:
        if changes.get("concurrency"):
            changes["concurrency"] += 1
        return super().set_rule(name, **changes)


class FixedWindows(memory.Queue):
    """Counts what is taken in each window by itself."""

    def take(self, queues: Sequence[str], *, limit: int, wait: float) -> Sequence[Lease]:
        store = self._joined()
        with store.lock:
            for name, started in store.started.items():
                per = store.rules[name].per
                while started and started[0] // per < store.clock() // per:
                    started.popleft()
        return super().take(queues, limit=limit, wait=min(wait, 0.05))


class FiresForAll(memory.Queue):
    def fire(self, plan: Any, next: float, parcel: Parcel | None) -> bool:
        return super().fire(plan, next, parcel) or True


class FiresAnyTime(memory.Queue):
    """Does not look whether the plan is still due then."""

    def fire(self, plan: Any, next: float, parcel: Parcel | None) -> bool:
        now = [each for each in self.plans() if each.key == plan.key]
        return bool(now) and super().fire(now[0], next, parcel)


class OldestFirst(memory.Queue):
    def buried(self, *, limit: int = 100) -> Any:
        return list(super().buried(limit=100_000))[::-1][:limit]


class ExhumesTheTaken(memory.Queue):
    def exhume(self, task_id: str) -> Any:
        store = self._joined()
        task = store.tasks.get(task_id)
        if task is not None and task.stage == "leased":
            store.make_ready(task)
        return super().exhume(task_id)


class PurgesAtOnce(memory.Queue):
    def purge(self, queue: str, *, buried: bool = False, limit: int = 1000) -> Any:
        return super().purge(queue, buried=buried)


class StaysKnown(memory.Queue):
    def _leave(self) -> None:
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
        (HoldsNoKeys, managing.check_unique),
        (HoldsNoKeys, managing.check_unique_race),
        (HoldsNoKeys, planning.check_fire_unique),
        (KeepsKeysOfTheBuried, managing.check_unique),
        (PausesNothing, managing.check_pause),
        (ResumesInSilence, managing.check_pause),
        (ResumesInSilence, managing.check_concurrency_now),
        (OneTooMany, managing.check_concurrency),
        (OneTooMany, managing.check_concurrency_now),
        (KeepsLeases, managing.check_concurrency_of_the_lost),
        (FixedWindows, managing.check_rate),
        (FiresForAll, planning.check_fire),
        (FiresAnyTime, planning.check_fire),
        (OldestFirst, managing.check_buried),
        (ExhumesTheTaken, managing.check_exhume),
        (PurgesAtOnce, managing.check_purge),
        (StaysKnown, managing.check_workers),
        (KeepsLeases, managing.check_silent_worker),
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
