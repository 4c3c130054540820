"""Whatever is lost, doubled or out of order on the way: each event once, in order, gaps counted, one end."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revolve_assistant.caller.inbox import Inbox, RemoteJob
from revolve_assistant.caller.log import LOCAL
from revolve_assistant.engine import Parcel
from revolve_assistant.errors import Untrusted
from revolve_assistant.pool.reports import (
    EVENT,
    REPORT_CANCELLED,
    REPORT_EVENTS,
    REPORT_FAILED,
    REPORT_LOST,
    REPORT_RAISED,
    REPORT_RETRYING,
    REPORT_RETURNED,
    REPORT_STARTED,
    REPORT_SUCCEEDED,
    REPORT_WAITING,
)
from revolve_assistant.wire import frames as wire
from revolve_assistant.wire.remote import pack_error

ENDS = {REPORT_CANCELLED, REPORT_FAILED, REPORT_LOST, REPORT_RAISED, REPORT_RETURNED, REPORT_SUCCEEDED}
Frame = tuple[str, bytes, int, list[Any]]


NAMES = {REPORT_STARTED: "started", REPORT_RETRYING: "retrying", REPORT_WAITING: "waiting"}


class Heard:
    """A client with the tasks `ids`, and what its inbox makes of frames."""

    def __init__(self, *ids: str) -> None:
        self.jobs = {id: RemoteJob(Parcel(id), self) for id in ids}  # type: ignore[arg-type]
        for job in self.jobs.values():
            job.parcel._ = job
        self.begun: list[str] = []
        self.inbox = Inbox(self.jobs, lambda job: self.begun.append(job.parcel.id))
        self.told: dict[str, list[Any]] = defaultdict(list)

    def hear(self, *frames: Any, sender: str = "w.1") -> None:
        for _sink, report in self.inbox.take(list(frames), 1.0, sender=sender):
            self.told[report[0].id].append(report[1:])

    def events(self, id: str) -> list[Any]:
        """What a task's listeners get: events as `(run, number)`, gaps as their count, the rest by name."""
        found: list[Any] = []
        for kind, *more in self.told[id]:
            if kind == REPORT_EVENTS:
                for record in more[0]:
                    if record[0] == LOCAL:
                        found.append(record[4][0] if record[2] == "gap" else record[2])
                    else:
                        found.append((record[4][0], record[4][1]))
            else:
                found.append(NAMES.get(kind, "end"))
        return found


def event(run: int, number: int) -> list[Any]:
    return [EVENT, 0, "event", 0.0, [run, number]]


def started(control: str = "w.1") -> list[Any]:
    return [wire.STARTED, "host:1", 0.0, control]


ENDINGS = [
    [wire.RETURNED, "result", []],
    [wire.FAILED, b"", []],
    [wire.CANCELLED, "flag", []],
    [wire.LOST, pack_error(ValueError("gone")), []],
    [wire.SUCCEEDED, b"", [], []],
]


@st.composite
def runs(draw: st.DrawFn) -> list[Frame]:
    """The frames of several runs of a task, as their workers wrote them."""
    frames: list[Frame] = []
    for run in range(draw(st.integers(1, 4))):
        records = [started(f"w.{run}"), *(event(run, number) for number in range(2, draw(st.integers(2, 9))))]
        last = draw(st.sampled_from([None, [wire.RETRYING, "why", 0.0], *ENDINGS]))
        if last is not None:
            records.append(last)
        first = 1
        while records:
            size = draw(st.integers(1, 4))
            frames.append(("task", bytes([run] * 8), first, records[:size]))
            first += len(records[:size])
            records = records[size:]
    return frames


@st.composite
def deliveries(draw: st.DrawFn) -> list[Frame]:
    """Those frames in any order, some lost, some doubled."""
    return draw(st.lists(st.sampled_from(draw(runs())), max_size=30))


def check(heard: Heard, delivered: list[Frame]) -> None:
    told = heard.events("task")
    # one end, and nothing after it
    ends = [at for at, each in enumerate(told) if each == "end"]
    assert ends in ([], [len(told) - 1])
    # each event once; those of a run in order; a run that was left never speaks again
    events = [each for each in told if isinstance(each, tuple)]
    assert len(set(events)) == len(events)
    order: list[int] = []
    for run, _ in events:
        if not order or order[-1] != run:
            order.append(run)
    assert len(set(order)) == len(order)
    for run in order:
        numbers = [number for each, number in events if each == run]
        assert numbers == sorted(numbers)


@settings(max_examples=500)
@given(deliveries())
def test_any_loss_doubling_and_reordering_gives_each_event_once_in_order_and_one_end(delivered):
    heard = Heard("task")
    for frame in delivered:
        heard.hear(frame)
    check(heard, delivered)


@settings(max_examples=300)
@given(deliveries(), st.integers(1, 10))
def test_it_makes_no_difference_how_frames_are_gathered_in_messages(delivered, size):
    one, many = Heard("task"), Heard("task")
    for frame in delivered:
        one.hear(frame)
    for start in range(0, len(delivered), size):
        many.hear(*delivered[start : start + size])
    assert many.events("task") == one.events("task")


@settings(max_examples=300)
@given(runs(), st.data())
def test_gaps_count_exactly_what_is_missing(frames, data):
    """What was lost of a run up to the last of its frames that came is in its gaps, neither more nor less."""
    kept = data.draw(st.lists(st.booleans(), min_size=len(frames), max_size=len(frames)))
    came = [frame for frame, keep in zip(frames, kept, strict=True) if keep]
    heard = Heard("task")
    for frame in came:
        heard.hear(frame)
    if any(frame[3][-1][0] in wire.ENDS for frame in came):
        last = next(at for at, frame in enumerate(came) if frame[3][-1][0] in wire.ENDS)
        came = came[: last + 1]
    told = heard.events("task")
    missing = 0
    for run in dict.fromkeys(frame[1] for frame in came):
        mine = [frame for frame in came if frame[1] == run]
        missing += mine[-1][2] + len(mine[-1][3]) - 1 - sum(len(frame[3]) for frame in mine)
    assert sum(each for each in told if isinstance(each, int)) == missing
    expected = [(record[4][0], record[4][1]) for frame in came for record in frame[3] if record[0] == EVENT]
    assert [each for each in told if isinstance(each, tuple)] == expected


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 20)), max_size=40))
def test_tasks_do_not_disturb_each_other(order):
    heard = Heard("a", "b", "c")
    for id, start in order:
        numbers = range(start + 1, start + 4)
        heard.hear((id, id.encode() * 8, start + 1, [event(ord(id), number) for number in numbers]))
    for id in "abc":
        alone = Heard(id)
        for each, start in order:
            if each == id:
                numbers = range(start + 1, start + 4)
                alone.hear((id, id.encode() * 8, start + 1, [event(ord(id), number) for number in numbers]))
        assert heard.events(id) == alone.events(id)


# --- by name


def test_the_picture_in_the_module_is_true():
    heard = Heard("task")
    a, b = b"a" * 8, b"b" * 8
    heard.hear(("task", a, 1, [event(0, 1), event(0, 2), event(0, 3)]))
    heard.hear(("task", b, 1, [event(1, 1), event(1, 2)]))
    heard.hear(("task", a, 7, [event(0, 7), event(0, 8)]))
    heard.hear(("task", b, 5, [event(1, 5), event(1, 6), ENDINGS[0]]))
    assert heard.events("task") == [(0, 1), (0, 2), (0, 3), "retrying", (1, 1), (1, 2), 2, (1, 5), (1, 6), "end"]


def test_the_end_of_a_fenced_run_is_kept_aside():
    heard = Heard("task")
    heard.hear(("task", b"a" * 8, 1, [started()]), ("task", b"b" * 8, 1, [started()]))
    heard.hear(("task", b"a" * 8, 2, [ENDINGS[0]]))
    job = heard.jobs["task"]
    assert heard.events("task") == ["started", "retrying", "started"]
    assert not job.ended
    assert job.spare is not None
    assert job.spare[1:] == (REPORT_RETURNED, "result")
    heard.hear(("task", b"b" * 8, 2, [ENDINGS[2]]))  # the newer run goes on, and counts
    assert heard.told["task"][-1] == (REPORT_CANCELLED, "flag")


def test_what_was_said_between_two_runs_is_for_the_second():
    heard = Heard("task")
    job = heard.jobs["task"]
    heard.hear(("task", b"a" * 8, 1, [started()]))
    assert job.started
    heard.hear(("task", b"a" * 8, 2, [[wire.RETRYING, "why", 1.0]]))
    assert (job.over, job.started) == (True, False)
    heard.hear(("task", b"b" * 8, 1, [started("w.2")]))
    assert (job.over, job.started, job.control) == (False, True, "w.2")
    assert heard.begun == ["task", "task"]
    assert heard.events("task") == ["started", "retrying", "started"]  # one retrying: the run said so itself


def test_a_run_whose_start_was_lost_is_known_to_run_and_where():
    heard = Heard("task")
    heard.hear(("task", b"a" * 8, 5, [event(0, 5)]), sender="w.7")
    job = heard.jobs["task"]
    assert heard.events("task") == [4, (0, 5)]
    assert (job.started, job.control, heard.begun) == (True, "w.7", ["task"])


def test_a_task_that_only_waited_has_not_started():
    heard = Heard("task")
    heard.hear(("task", b"a" * 8, 1, [[wire.WAITING, "no such module"]]))
    assert heard.events("task") == ["waiting"]
    assert (heard.jobs["task"].started, heard.begun) == (False, [])


def test_a_refusal_counts_only_before_the_start():
    heard = Heard("a", "b")
    heard.hear(("b", b"b" * 8, 1, [started()]))
    heard.hear(("a", b"x" * 8, 0, [[wire.REFUSED, "why"]]), ("b", b"x" * 8, 0, [[wire.REFUSED, "why"]]))
    assert isinstance(heard.told["a"][-1][1], Untrusted)
    assert not heard.jobs["b"].ended


def test_frames_of_strangers_are_counted():
    heard = Heard("task")
    heard.hear(("nobody", b"a" * 8, 1, [started()]))
    assert heard.inbox.unknown == 1
    assert heard.told == {}


@pytest.mark.parametrize(
    "records",
    [[[]], [[wire.STARTED]], [[None]], [[[], 1]], ["text"], [7], [[wire.RETURNED]], [[wire.LOST, b"\xc1", []]], [{}]],
    ids=repr,
)
def test_nonsense_from_a_worker_ends_nobody_s_day(records):
    heard = Heard("task", "other")
    heard.hear(("task", b"a" * 8, 1, records), ("other", b"b" * 8, 1, [started(), ENDINGS[0]]))
    assert heard.events("other") == ["started", "end"]


@settings(max_examples=100)
@given(st.binary(max_size=300), st.integers(1, 60))
def test_pieces_in_any_order_make_the_message_again(message, room):
    limit = room + 17  # the head of a piece
    pieces = wire.pieces(b"\x01" + message, limit)
    assert all(len(piece) <= limit for piece in pieces)
    joiner = wire.Joiner()
    found = [whole for piece in reversed(pieces) if (whole := joiner.join(piece)) is not None]
    assert found == [b"\x01" + message]
