"""The fold that every view reads: however it is told, it says the same; it never goes back; it stays small."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from revolve_assistant.engine import Count
from revolve_assistant.event import ENDS, Event, Progress
from revolve_assistant.views.board import Board
from revolve_assistant.wire.about import About, Running

IDS = ("a", "b", "c")


@st.composite
def lives(draw):
    """What happened to some tasks: (id, event, attempt, time) in the order of time."""
    found = []
    for id in draw(st.lists(st.sampled_from(IDS), min_size=1, unique=True)):
        attempts = draw(st.integers(1, 3))
        for attempt in range(1, attempts + 1):
            if draw(st.booleans()):
                found.append((id, "started", attempt))
            if attempt < attempts:
                found.append((id, "retrying", attempt))
            elif draw(st.booleans()):
                found.append((id, draw(st.sampled_from(sorted(ENDS))), attempt))
    return [(*each, float(when)) for when, each in enumerate(found, 1)]


def hear(board, source, told):
    id, name, attempt, when = told
    if source == "monitor":
        board.entries("w", [(id, "app:f", "q", name, attempt, when)])
    else:
        board.event(Event(id, attempt, 1, name, ("w",) if name == "started" else (), when), "app:f", "q")


def seen(board):
    return {task.id: (task.name, task.state, task.attempt, task.ended) for task in board.tasks}


@given(lives(), st.data())
def test_two_sources_in_any_interleaving_say_what_one_says(told, data):
    one, both = Board(), Board()
    for each in told:
        hear(one, "events", each)
    left = {"monitor": list(told), "events": list(told)}
    while any(left.values()):
        source = data.draw(st.sampled_from([name for name, rest in left.items() if rest]))
        hear(both, source, left[source].pop(0))
    assert seen(both) == seen(one)


@given(lives(), st.data())
def test_a_task_never_goes_back_whatever_is_told_again(told, data):
    board = Board()
    best: dict[str, tuple[int, bool]] = {}
    for each in data.draw(st.lists(st.sampled_from(told), max_size=40)) if told else []:
        hear(board, data.draw(st.sampled_from(["monitor", "events"])), each)
        for task in board.tasks:
            now = (task.attempt, task.state in ENDS)
            assert now >= best.get(task.id, now)
            best[task.id] = now


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["started", "succeeded", "progress"]))), st.integers(1, 8)
)
def test_it_stays_within_its_bound_and_the_oldest_finished_go_first(told, most):
    board, whole = Board(most), []
    for number, name in told:
        before = {task.id for task in board.tasks}
        finished = [task.id for task in reversed(board.tasks) if task.state in ENDS]
        args = (Progress(0.5),) if name == "progress" else ()
        board.event(Event(str(number), 1, 1, name, args, 0.0))
        after = {task.id for task in board.tasks}
        assert len(after) <= most
        gone = before - after
        if gone and finished:
            assert gone == {finished[0]}
        whole += gone
    assert board.dropped == len(whole)


def test_progress_is_of_the_latest_attempt_and_not_of_one_that_is_over():
    board = Board()
    board.event(Event("t", 1, 1, "started", ("w1",), 1.0))
    board.event(Event("t", 1, 2, "progress", (Progress(0.9),), 2.0))
    board.event(Event("t", 1, 3, "retrying", ("it failed", 0.0), 3.0))
    board.event(Event("t", 2, 1, "started", ("w2",), 4.0))
    task = board.task("t")
    assert task is not None
    assert (task.state, task.attempt, task.progress, task.worker, task.started) == ("running", 2, None, "w2", 4.0)
    board.event(Event("t", 1, 2, "progress", (Progress(0.9),), 2.0))
    assert task.progress is None
    board.event(Event("late", 1, 9, "progress", (Progress(0.5),), 9.0))  # when that began is not known yet
    late = board.task("late")
    assert (late.state, late.started) == ("running", 0.0)
    board.introductions(
        [About(name="w", key="k", time=9.0, busy={"q": 1}, running=[Running("late", "f", "q", 1, 3.0)])]
    )
    assert (late.started, late.worker) == (3.0, "w")


def test_queues_are_those_that_hold_something_or_that_somebody_takes_from():
    board = Board()
    running = [Running("t", "app:f", "mail", 2, 5.0)]
    board.introductions([About(name="w", key="k", queues=["mail", "idle"], busy={"mail": 1}, running=running)])
    board.counts([Count("mail", pending=3, oldest=1.5), Count("old", buried=1)])
    assert [(each.queue, each.pending, each.running, each.workers) for each in board.queues] == [
        ("idle", 0, 0, 1),
        ("mail", 3, 1, 1),
        ("old", 0, 0, 0),
    ]
    assert [(task.id, task.state, task.attempt, task.worker) for task in board.tasks] == [("t", "running", 2, "w")]
    board.introductions([])
    board.counts([])
    assert board.queues == []


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from(["started", "succeeded", "progress", "retrying", "look"])),
        max_size=60,
    ),
    st.integers(1, 8),
    st.integers(1, 3),
)
def test_who_applies_the_changes_since_his_last_look_knows_what_the_board_knows(told, most, attempt):
    board, known, version = Board(most), {}, 0
    for number, name in [*told, (0, "look")]:
        if name != "look":
            args = (Progress(number / 12),) if name == "progress" else ()
            board.event(Event(str(number), attempt, 1, name, args, float(number)))
            continue
        found = board.changes(version)
        assert [task.changed for task in found.tasks] == sorted(task.changed for task in found.tasks)
        if found.whole:
            known.clear()
        else:
            assert all(task.changed > version for task in found.tasks)  # no more than what has changed
        for id in found.gone:
            known.pop(id, None)
        known.update((task.id, replace(task)) for task in found.tasks)
        version = found.version
        assert known == {task.id: task for task in board.tasks}
        assert board.changes(version).tasks == []


def test_a_task_whose_end_nobody_heard_goes_once_its_worker_names_others():
    board = Board()
    for id, when in (("old", 10.0), ("new", 99.0), ("unnamed", 50.0)):
        board.entries("w", [(id, "app:f", "q", "started", 1, when)])
    board.entries("other", [("far", "app:f", "q", "started", 1, 10.0)])
    version = board.version

    def introduce(running, busy):
        board.introductions([About(name="w", key="k", time=100.0, busy={"q": busy}, running=running)])
        return {task.id for task in board.tasks}

    # It names the oldest of those it runs, and not all: what began later may be among the others.
    assert introduce([Running("x", "app:f", since=30.0)], 3) == {"new", "unnamed", "far", "x"}
    assert board.changes(version).gone == ["old"]
    assert introduce([Running("x", "app:f", since=30.0)], 1) == {"new", "far", "x"}
    board.entries("w", [("old", "app:f", "q", "succeeded", 1, 101.0)])  # it was told after all
    assert board.task("old").state == "succeeded"
