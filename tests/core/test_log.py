"""The log of a task: readers miss nothing untold, memory is bounded, credit is neither lost nor early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from revolve_assistant.caller.log import BEHIND, GAP, MAX_BYTES, MAX_EVENTS, THIN, Log, Reader
from revolve_assistant.pool.reports import EVENT, PROGRESS


def said(number: int) -> list[Any]:
    return [EVENT, 0, "said", float(number), [number]]


def progress(number: int) -> list[Any]:
    return [PROGRESS, 0, "progress", float(number), None, number, None, ""]


@dataclass
class Place:
    """What the model knows of a reader."""

    reader: Reader
    floor: int  # what is before it was trimmed when the reader came, or dropped
    next: int = 0
    woken: int = 0
    due: int = 0  # how often it should have been woken

    def wake(self) -> None:
        self.woken += 1


class LogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.all: list[Any] = []
        self.places: list[Place] = []
        self.attempts: list[int] = []
        self.bytes = 0
        self.dropped = False
        self.want: int | None = None
        self.asked = 0  # number of the newest `wanted`
        self.granted: list[int] = []
        self.expected: list[int] = []

    def credit(self) -> None:
        """Expect the grant if it is due now."""
        if self.want is not None and all(place.next >= self.want for place in self.places):
            self.want = None
            self.expected.append(self.asked)

    @rule(
        count=st.integers(1, 12) | st.sampled_from([90, 400, 999, 1000, 1001]),
        each=st.sampled_from([40, 40, 5000, 2 << 20]),
    )
    def append(self, count: int, each: int) -> None:
        new = [said(len(self.all) + i) for i in range(count)]
        self.all += new
        self.bytes += count * each
        self.log.append(new, count * each)
        for place in self.places:
            place.due += 1

    @rule()
    def begin_attempt(self) -> None:
        self.log.begin_attempt()
        self.attempts.append(len(self.all))

    @precondition(lambda self: len(self.places) < 4)
    @rule()
    def open(self) -> None:
        place = Place(None, self.log.first)  # type: ignore[arg-type]
        place.reader = self.log.reader(place.wake)
        self.places.append(place)

    @precondition(lambda self: self.places)
    @rule(which=st.integers(0, 3), limit=st.integers(1, 300) | st.sampled_from([100_000, -1, -1]))
    def take(self, which: int, limit: int) -> None:
        place = self.places[which % len(self.places)]
        if limit < 0:  # all but one
            limit = max(0, len(self.all) - max(place.next, place.floor) - 1)
        placed = place.reader.take(limit)
        got = [record for _, _, record in placed]
        if place.next < place.floor:
            kind, _, name, _, arguments = got.pop(0)
            assert (kind, name, arguments) == (GAP, "gap", (place.floor - place.next,))
            assert placed.pop(0)[1] == 0
            place.next = place.floor
        for attempt, seq, record in placed:
            index = int(record[3])
            number = max(1, sum(start <= index for start in self.attempts))
            assert (attempt, seq) == (number, index + 1 - (self.attempts[number - 1] if self.attempts else 0))
        assert got == self.all[place.next : place.next + limit]
        place.next += len(got)
        self.credit()

    @precondition(lambda self: self.places)
    @rule(which=st.integers(0, 3))
    def close(self, which: int) -> None:
        place = self.places.pop(which % len(self.places))
        place.reader.close()
        place.reader.close()  # twice does no harm
        self.credit()

    @rule()
    def wanted(self) -> None:
        self.asked += 1
        self.want = len(self.all)
        self.log.wanted(lambda number=self.asked: self.granted.append(number))
        self.credit()

    @rule()
    def drop(self) -> None:
        self.log.drop()
        self.dropped = True
        for place in self.places:
            place.floor = max(place.floor, len(self.all) - 1)

    @invariant()
    def credit_is_neither_lost_nor_early(self) -> None:
        assert self.granted == self.expected

    @invariant()
    def every_append_woke_every_reader(self) -> None:
        assert all(place.woken == place.due for place in self.places)

    @invariant()
    def keeps_the_newest(self) -> None:
        log = self.log
        assert list(log.records) == self.all[log.first :]
        unread = len(self.all) - min((place.next for place in self.places), default=len(self.all))
        kept = len(log.records)
        assert kept <= max(MAX_EVENTS, unread)
        if kept > max(1, unread):
            assert log.size <= MAX_BYTES
        if self.bytes <= MAX_BYTES and not self.dropped:
            assert kept >= min(len(self.all), MAX_EVENTS)
        assert kept > 0 or not self.all

    @invariant()
    def knows_the_attempts(self) -> None:
        for index in {self.log.first, len(self.all) // 2, max(0, len(self.all) - 1), len(self.all)}:
            number = max(1, sum(start <= index for start in self.attempts))
            begin = self.attempts[number - 1] if self.attempts else 0
            assert self.log.attempt_at(index) == (number, begin)


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=120, stateful_step_count=40)


# --- progress ---------------------------------------------------------------------------------------------------------

batch = st.lists(st.booleans(), min_size=1, max_size=8) | st.tuples(st.just(True)) | st.just([False] * (BEHIND - 3))
step = st.tuples(st.just("append"), batch) | st.tuples(
    st.just("take"), st.tuples(st.integers(0, 1), st.integers(1, 60))
)


@given(st.lists(step, max_size=40))
@example([("append", [False] * BEHIND + [True]), ("take", (0, 100_000)), ("append", [True]), ("append", [True])])
def test_only_progress_that_newer_replaced_is_left_out(steps):
    log = Log()
    readers = [log.reader(lambda: None) for _ in range(2)]
    heard: list[list[Any]] = [[], []]
    spoken: list[Any] = []
    behind = 0
    for what, how in steps:
        if what == "append":
            new = [(progress if one else said)(len(spoken) + i) for i, one in enumerate(how)]
            unread = log.first + len(log.records) + len(new) - min(reader.next for reader in readers)
            behind = max(behind, unread)
            spoken += new
            log.append(list(new), 40 * len(new))
        else:
            which, limit = how
            heard[which] += [record for _, _, record in readers[which].take(limit)]
        if spoken:
            assert log.records[-1] == spoken[-1]  # the newest always arrives
    for reader, mine in zip(readers, heard, strict=True):
        mine += [record for _, _, record in reader.take(100_000)]
        numbers = [int(record[3]) for record in mine]
        assert numbers == sorted(set(numbers))
        assert mine == [spoken[number] for number in numbers]
        for number in set(range(len(spoken))) - set(numbers):
            assert behind > BEHIND
            assert spoken[number][0] == spoken[number + 1][0] == PROGRESS


@given(st.lists(st.integers(1, 300), min_size=1, max_size=10))
def test_progress_alone_costs_a_reader_that_is_behind_one_record(batches):
    log = Log()
    log.reader(lambda: None)
    log.append([said(number) for number in range(BEHIND + 1)] + [progress(-1)], 40 * (BEHIND + 2))
    for count in batches:
        log.append([progress(number) for number in range(count)], 40 * count)
        assert len(log.records) == BEHIND + 2
        assert log.records[-1] == progress(count - 1)
        assert log.size == 40 * (BEHIND + 2)


word = st.sampled_from(["said", "progress", "progress", "attempt"])
step_ = st.tuples(st.just("say"), st.lists(word, min_size=1, max_size=9)) | st.tuples(
    st.just("take"), st.tuples(st.integers(0, 2), st.integers(1, 12))
)


@given(st.lists(step_, max_size=60))
def test_a_reader_that_is_far_behind_gets_all_but_the_older_progress(steps):
    log = Log()
    log.begin_attempt()
    log._thin_at = few = 6
    readers = [log.reader(lambda: None) for _ in range(3)]
    heard: list[list[Any]] = [[], [], []]
    spoken: list[Any] = []
    attempt_of: list[int] = []
    attempt = 1
    for what, how in steps:
        if what == "take":
            which, limit = how
            heard[which] += readers[which].take(limit)
            continue
        for kind in how:
            if kind == "attempt":
                log.begin_attempt()
                attempt += 1
                continue
            spoken.append((progress if kind == "progress" else said)(len(spoken)))
            attempt_of.append(attempt)
            log._thin_at = min(log._thin_at, max(few, 2 * len(log.records)))  # instead of THIN
            log.append([spoken[-1]], 40)
    for reader, mine in zip(readers, heard, strict=True):
        mine += reader.take(100_000)
        numbers = [int(record[3]) for _, _, record in mine]
        assert numbers == sorted(set(numbers))
        places = [(attempt, seq) for attempt, seq, _ in mine]
        assert places == sorted(set(places))
        assert [attempt for attempt, _, _ in mine] == [attempt_of[number] for number in numbers]
        for number in set(range(len(spoken))) - set(numbers):
            assert spoken[number][0] == PROGRESS
            later = range(number + 1, len(spoken))
            assert any(spoken[n][0] == PROGRESS and attempt_of[n] == attempt_of[number] for n in later)
        for attempt, seq, record in mine:  # at most as many came before it in its attempt
            assert seq <= 1 + attempt_of[: int(record[3])].count(attempt)
    assert log.size >= 0


def test_progress_and_a_reader_that_never_takes_cost_the_other_nothing_and_memory_is_bounded():
    log = Log()
    log.begin_attempt()
    slow, fast = log.reader(lambda: None), log.reader(lambda: None)
    for number in range(20_000):
        log.append([progress(number) if number % 1000 else said(number)], 40)
        ((attempt, seq, record),) = fast.take()
        assert (attempt, seq, int(record[3])) == (1, number + 1, number)
        assert len(log.records) <= THIN + 1
    found = slow.take(100_000)
    said_, newest = range(0, 20_000, 1000), 19_999
    numbers = [int(record[3]) for _, _, record in found]
    assert set(said_) <= set(numbers)
    assert numbers[-1] == newest
    assert found[-1][1] == 20_000
