"""The plugin for pytest, as projects use it: each test here is a small project of its own, run by pytest itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from revolve_assistant import Client, Progress, UsageError, emit, report, track
from revolve_assistant.testing import assert_events

pytest_plugins = ["pytester"]

LONG = 30.0  # seconds that nothing here takes
WORK = """
import os, time
from pathlib import Path
from revolve_assistant import emit, report, track

def import_rows(rows, path=None):
    for number, row in enumerate(rows):
        emit("row", row)
        if path:
            with open(path, "a") as file:
                file.write(f"{row}\\n")
        if row is None:
            emit("skipped", number)
    return len(rows)

def walk(count):
    for _ in track(range(count), "walking"):
        pass
    report(1.0)

async def import_rows_async(rows):
    return import_rows(rows)

def generate(count):
    for number in range(count):
        yield number

def slow():
    time.sleep(60)

def prepared():
    emit("prepared", os.environ.get("PREPARED"))
    return os.environ.get("PREPARED")

def prepare(word):
    os.environ["PREPARED"] = word
"""
CONFTEST = 'pytest_plugins = ["revolve_assistant.testing.plugin"]\n'


@pytest.fixture
def project(pytester: pytest.Pytester):
    """Runs pytest in a project with the plugin and `work.py`; the outcome of these tests."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(work=WORK)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")

    def run(tests: str, *flags: str) -> pytest.RunResult:
        heading = "import pytest\nfrom revolve_assistant import TaskLost\nfrom work import *\n"
        pytester.makepyfile(test_it=f"{heading}{tests}")
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *flags, timeout=LONG)

    return run


# ---------------------------------------------------------------- inline_client, assert_events


def test_the_fixtures_do_what_a_test_wants(project):
    result = project("""
def test_rows(inline_client, assert_events):
    task = inline_client.submit(import_rows, ["a", None, "b"])
    assert_events(task, [("row", "a"), "row", ("skipped", 1), ("row", "b")])
    assert_events(task, ["row", ..., ("row", "b")])
    assert task.result() == 3

@pytest.mark.xfail(reason="it says so", raises=AssertionError, strict=True)
def test_wrong(inline_client, assert_events):
    assert_events(inline_client.submit(import_rows, ["a"]), ["row", "row"])
""")
    result.assert_outcomes(passed=1, xfailed=1)


def test_a_failure_shows_both_lists_and_no_line_of_ours(project):
    result = project("""
def test_rows(inline_client, assert_events):
    task = inline_client.submit(import_rows, ["a", None, "b"])
    assert_events(task, [("row", "a"), ("row", "x"), "saved"])
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*test_it.py*",
            "E*task work:import_rows (*) said 4 events, not as expected:",
            "E*  expected       said",
            "E*  ('row', 'a')   ('row', 'a')",
            "E*> ('row', 'x')   ('row', None)",
            "E*  'saved'        ('skipped', 1)",
            "E*  (no more)      ('row', 'b')",
            "E*it ended as ('succeeded'*",
        ]
    )
    result.stdout.no_fnmatch_line("*testing/events.py*")


def said(*events: str) -> int:
    for name in events:
        emit(name)
    return len(events)


@pytest.mark.parametrize(
    ("events", "expected", "fits"),
    [
        ("", [], True),
        ("", [...], True),
        ("", ["a"], False),
        ("a", [], False),
        ("a", ["a"], True),
        ("ab", ["a"], False),
        ("ab", ["b", "a"], False),
        ("ab", ["a", ...], True),
        ("ab", [..., "b"], True),
        ("ab", [..., "a"], False),
        ("aab", [..., "a", "b"], True),
        ("abab", ["a", ..., "a", "b"], True),
        ("abcabd", [..., "a", "b", "d"], True),
        ("abcabd", [..., "b", ..., "b", "d", ...], True),
        ("abcabd", [..., "c", ..., "c", ...], False),
        ("ab", [..., "a", ..., ..., "b", ...], True),
        ("a", [("a",)], True),
        ("a", [("a", 1)], False),
        ("a", ["started", "a", "succeeded"], True),
        ("a", ["a", "failed"], False),
    ],
)
def test_expectations(events, expected, fits):
    with Client("inline://") as client:
        task = client.submit(said, *events)
        if fits:
            assert_events(task, expected)
        else:
            with pytest.raises(AssertionError, match="not as expected"):
                assert_events(task, expected)


def halfway() -> None:
    report(0.5)
    emit("half")
    raise ValueError("that is all")


def test_progress_is_left_out_unless_it_is_expected_and_a_failure_is_said():
    with Client("inline://") as client:
        task = client.submit(halfway)
        assert [event.name for event in assert_events(task, ["half"])] == ["half"]
        assert_events(task, [("progress", Progress(0.5)), "half"])
        assert_events(task, ["half", "failed"])
        with pytest.raises(AssertionError, match=r"it ended as \('failed', .*that is all"):
            assert_events(task, [])


def test_a_long_difference_is_cut_around_its_place():
    with Client("inline://") as client:
        task = client.submit(said, *"a" * 450, "b", *"a" * 450)
        with pytest.raises(AssertionError) as info:
            assert_events(task, ["a"] * 901)
    text = str(info.value)
    assert "said 901 events" in text
    assert "… 435 that are as expected" in text
    assert "> 'a'         ('b',)" in text
    assert len(text.splitlines()) < 40


def count_for_ever() -> None:
    for _ in track(iter(int, 1)):
        pass


def test_a_task_that_does_not_end_is_said():
    with Client("thread://") as client:
        task = client.submit(count_for_ever)
        with pytest.raises(AssertionError, match=r"count_for_ever \(.*\) has not ended within 0.05 s: it is running"):
            assert_events(task, [], timeout=0.05)
        task.cancel()
        assert_events(task, ["cancelled"])


@pytest.mark.parametrize("wrong", [1, (), (1, "a"), None])
def test_what_is_no_expectation_is_refused(wrong):
    with Client("inline://") as client, pytest.raises(UsageError, match="an expected event is"):
        assert_events(client.submit(said), [wrong])


# ---------------------------------------------------------------- kill_at_event


def test_a_child_is_killed_right_after_an_event_that_arrives(project):
    result = project("""
def test_death(kill_at_event, assert_events, tmp_path):
    client = kill_at_event(2)
    task = client.submit(import_rows, "abc", str(tmp_path / "rows"))
    with pytest.raises(TaskLost, match="SIGKILL"):
        task.result(30)
    assert_events(task, [("row", "a"), ("row", "b"), "lost"])
    assert (tmp_path / "rows").read_text() == "a\\n"  # nothing after the event was done

def test_another_attempt(kill_at_event, tmp_path):
    client = kill_at_event(3, "row")
    assert client.options(retries=1).submit(import_rows, "abcd", str(tmp_path / "rows")).result(30) == 4
    assert (tmp_path / "rows").read_text().split() == [*"ab", *"abcd"]

@pytest.mark.parametrize("times", [2, 3])
def test_several_attempts(kill_at_event, times):
    client = kill_at_event(1, times=times)
    task = client.options(retries=2).submit(import_rows, "a")
    if times == 2:
        assert task.result(30) == 1
    else:
        with pytest.raises(TaskLost):
            task.result(30)

def test_each_task(kill_at_event):
    client = kill_at_event(2, max_workers=2)
    tasks = [client.submit(import_rows, "ab") for _ in range(3)]
    for task in tasks:
        with pytest.raises(TaskLost):
            task.result(30)

def test_names(kill_at_event, assert_events):
    task = kill_at_event(1, "skipped").submit(import_rows, ["a", None, "b"])
    assert_events(task, [("row", "a"), ("row", None), ("skipped", 1), "lost"])

def test_progress(kill_at_event, assert_events):
    task = kill_at_event(1, "progress").submit(walk, 1000)
    assert_events(task, [..., "progress", "lost"])

@pytest.mark.parametrize("work", [import_rows_async])
def test_coroutines(kill_at_event, assert_events, work):
    assert_events(kill_at_event(2).submit(work, "abc"), [("row", "a"), ("row", "b"), "lost"])

def test_generators(kill_at_event, assert_events):
    assert_events(kill_at_event(2).submit(generate, 5), [("item", 0), ("item", 1), "lost"])

def test_an_initializer_of_ones_own(kill_at_event, assert_events):
    client = kill_at_event(1, initializer=prepare, initargs=("yes",))
    assert_events(client.submit(prepared), [("prepared", "yes"), "lost"])
""")
    result.assert_outcomes(passed=10)


def test_a_test_that_killed_nobody_fails(project):
    result = project("""
def test_too_few(kill_at_event):
    client = kill_at_event(3, "row")
    client.submit(import_rows, ["a", None]).result(30)

def test_no_task(kill_at_event):
    kill_at_event(1)

def test_progress_does_not_count(kill_at_event):
    kill_at_event(1).submit(walk, 10).result(30)
""")
    result.assert_outcomes(passed=3, errors=3)
    result.stdout.fnmatch_lines(
        [
            "*kill_at_event(3, 'row'): no child was killed, for no task came to that event:",
            "    * said 3: 'row', 'row', 'skipped'",
            "*kill_at_event(1): no child was killed, for its client was given no task",
            "*kill_at_event(1): no child was killed, for no task came to that event:",
        ]
    )


def test_what_cannot_be_counted_is_refused(project):
    result = project("""
def test_zero(kill_at_event):
    kill_at_event(0)

def test_lifecycle(kill_at_event):
    kill_at_event(1, "succeeded")
""")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*kill_at_event(0): events are counted from 1", "*a task says that not by itself"])


# ---------------------------------------------------------------- who does not ask for it has nothing of it


def test_a_project_that_does_not_ask_has_none_of_it(pytester):
    pytester.makepyfile("""
import sys
from pathlib import Path

def test_nothing_is_here(request):
    assert not [name for name in sys.modules if name.startswith("revolve_assistant")]
    with __import__("pytest").raises(Exception):
        request.getfixturevalue("inline_client")
""")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)


def test_the_kit_imports_no_pytest():
    code = "import sys, revolve_assistant.testing, revolve_assistant.testing.killing; print('pytest' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_the_page_about_it_is_true(pytester):
    page = (Path(__file__).parents[2] / "docs" / "howto" / "test-your-tasks.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", page, re.M | re.S)
    assert [name for name, _ in blocks] == ["conftest.py", "shop.py", "test_shop.py"]
    for name, text in blocks:
        (pytester.path / name).write_text(text, encoding="utf-8")
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error").assert_outcomes(passed=3)
