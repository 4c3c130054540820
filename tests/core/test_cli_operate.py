"""The commands that look into a queue and steer it: real workers on a real Redis, operated by somebody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client, TaskCancelled
from revolve_assistant.cli import stack as stack_command
from revolve_assistant.testing.servers import Redis

SECRET = "a secret of these tests only"
LONG = 40.0  # seconds that nothing here takes

APP = '''
import os, time
from revolve_assistant import ask, current_task, emit

def work(n):
    return n

def other(n):
    return -n

def hold(name):
    """Until there is a file of that name."""
    emit("up", os.getpid())
    while not os.path.exists(name):
        time.sleep(0.01)
    return name

def alone(name):
    """Fails if another one does the same."""
    os.close(os.open(name, os.O_CREAT | os.O_EXCL))
    time.sleep(0.02)
    os.unlink(name)

def meet(folder, n):
    """Until so many run at once."""
    open(os.path.join(folder, current_task().id), "w").close()
    while len(os.listdir(folder)) < n:
        time.sleep(0.01)

def read(name):
    with open(name) as file:
        return file.read()

def listen():
    emit("up")
    name, args = current_task().receive(timeout=60)
    return [name, *args]

def question():
    return ask("how many?", timeout=60)
'''


@pytest.fixture(scope="module")
def server(need: Callable[[str], str]) -> Iterator[Redis]:
    need("redis-server")
    with Redis() as server:
        yield server


@pytest.fixture
def place(server: Redis, tmp_path: Path) -> str:
    """The address of a namespace of this test's own."""
    return f"{server.url}?namespace={tmp_path.name}"


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "fleet_app.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("fleet_app", None)
    yield import_module("fleet_app")
    sys.modules.pop("fleet_app", None)


@pytest.fixture
def said(place: str, tmp_path: Path) -> dict[str, str]:
    """What the environment of every command says."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REVOLVE_")}
    return {
        **kept,
        "REVOLVE_URL": place,
        "REVOLVE_SECRET": SECRET,
        "XDG_DATA_HOME": str(tmp_path),
    }


@pytest.fixture
def run(said: dict[str, str], tmp_path: Path) -> Callable[..., Any]:
    """`run("top", "--once")` is that command, done; `code` is what it has to end with."""

    def run(*words: str, code: int = 0, stdin: str = "", **more: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "revolve_assistant.cli", *words],
            cwd=tmp_path,
            env={**said, **more},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def fleet(revolve: Any, place: str, app: Any) -> Callable[..., list[Any]]:
    """Starts so many workers of two children each; they are ready."""

    def start(number: int = 2, *flags: str) -> list[Any]:
        programs = [revolve("worker", place, "-c", "2", *flags, REVOLVE_SECRET=SECRET) for _ in range(number)]
        for each in programs:
            each.says("ready as")
        return programs

    return start


@pytest.fixture
def client(place: str) -> Iterator[Client]:
    with Client(place, secret=SECRET) as client:
        yield client


def eventually(found: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + LONG
    pause = threading.Event()
    while not (value := found()):
        assert time.monotonic() < deadline, what
        pause.wait(0.05)
    return value


def up(task: Any) -> None:
    """Once the task says that it is."""
    with task.events("up") as events:
        assert next(events).name == "up", task.exception()


def top(run: Callable[..., Any]) -> dict[str, Any]:
    return json.loads(run("top", "--once", "--json").stdout)  # type: ignore[no-any-return]


# ---------------------------------------------------------------- rules


def test_pause_stops_one_function_on_the_whole_fleet_and_only_that(run, fleet, client, app, tmp_path):
    fleet(2)
    go = tmp_path / "go"
    running = client.submit(app.hold, str(go))
    up(running)
    assert run("pause", "fleet_app:work").stdout == "fleet_app:work: paused\n"
    assert run("pause", "fleet_app:hold").stdout == "fleet_app:hold: paused\n"
    kept = [client.submit(app.work, n) for n in range(6)]
    assert [task.result(LONG) for task in [client.submit(app.other, n) for n in range(20)]] == [-n for n in range(20)]
    assert {task.state for task in kept} == {"pending"}
    assert top(run)["queues"][0]["blocked"] == 6
    go.touch()
    assert running.result(LONG) == str(go)  # what runs goes on
    assert run("resume", "fleet_app:work").stdout == "fleet_app:work: no limits\n"
    assert [task.result(LONG) for task in kept] == list(range(6))
    assert run("limit").stdout == "fleet_app:hold: paused\n"
    assert top(run)["rules"] == [
        {"name": "fleet_app:hold", "paused": True, "concurrency": None, "rate": None, "per": 1.0}
    ]


def test_a_limit_of_one_at_once_holds_on_the_whole_fleet(run, fleet, client, app, tmp_path):
    assert "1 at once" in run("limit", "fleet_app:alone", "--concurrency", "1").stdout
    tasks = [client.submit(app.alone, str(tmp_path / "one")) for _ in range(20)]
    fleet(2)
    for task in tasks:
        task.result(LONG)
    (tmp_path / "all").mkdir()
    run("limit", "fleet_app:meet", "--concurrency", "1")
    tasks = [client.submit(app.meet, str(tmp_path / "all"), 4) for _ in range(4)]
    eventually(lambda: os.listdir(tmp_path / "all"), "the first one runs")
    client.submit(app.work, 1).result(LONG)
    assert len(os.listdir(tmp_path / "all")) == 1
    assert run("limit", "fleet_app:meet", "--concurrency", "none").stdout == "fleet_app:meet: no limits\n"
    for task in tasks:
        task.result(LONG)  # all four at once: nothing but the rule kept them apart


def test_a_rate_holds_on_the_whole_fleet(run, fleet, client, app):
    assert run("limit", "fleet_app:work", "--rate", "5/2").stdout == "fleet_app:work: 5 in 2 s\n"
    fleet(2)
    times = []
    tasks = [client.submit(app.work, n) for n in range(12)]
    for task in tasks:
        with task.events("started") as events:
            times.append(next(events).time)
        task.result(LONG)
    times.sort()
    assert all(later - earlier > 1 for earlier, later in zip(times, times[5:], strict=False)), times


def test_a_name_that_nobody_has_is_said_and_the_rule_is_set(run):
    done = run("pause", "fleet_app:wrok")
    assert done.stderr.startswith("revolve pause: no worker here has run fleet_app:wrok yet")
    assert run("limit", "fleet_app:wrok").stdout == "fleet_app:wrok: paused\n"


# ---------------------------------------------------------------- the dead


def test_a_dead_task_is_listed_shown_and_runs_again_after_a_fix(run, fleet, client, app, tmp_path):
    fleet(1)
    name = tmp_path / "input"
    task = client.submit(app.read, str(name))
    assert isinstance(task.exception(LONG), FileNotFoundError)
    eventually(client.buried, "it is buried")
    row = run("dead").stdout.splitlines()[1]
    assert row.startswith(task.id)
    assert "fleet_app:read" in row
    assert "FileNotFoundError" in row
    (only,) = map(json.loads, run("dead", "--json").stdout.splitlines())
    assert only.pop("time") == pytest.approx(time.time(), abs=120)
    assert only.pop("reason").startswith("FileNotFoundError: ")
    assert only == {"id": task.id, "function": "fleet_app:read", "queue": "default", "deliveries": 1}
    assert 'fleet_app.py", line' in run("dead", task.id).stdout
    assert "FileNotFoundError" in json.loads(run("dead", "--json", task.id).stdout)["traceback"]
    assert top(run)["queues"][0]["buried"] == 1

    name.write_text("mended")
    new = run("retry", task.id).stdout.strip()
    assert new != task.id
    assert client.attach(new).result(LONG) == "mended"
    assert run("dead").stdout == ""
    again = run("retry", task.id, code=4).stderr
    assert again.startswith(f"revolve retry: no buried task '{task.id}' at redis://")
    assert len(again.splitlines()) == 1
    assert f"task {task.id} is run again" in run("watch", new).stderr


def test_retry_can_be_watched_and_fails_again(run, fleet, client, app):
    fleet(1)
    task = client.submit(app.read, "/nowhere")
    assert task.exception(LONG)
    eventually(client.buried, "it is buried")
    done = run("retry", "--watch", task.id, code=1)
    assert "failed: FileNotFoundError" in done.stderr
    new = done.stdout.strip()
    assert [each.id for each in eventually(client.buried, "it is buried again")] == [new]


# ---------------------------------------------------------------- single tasks of strangers


def test_a_stranger_cancels_what_runs_and_what_waits(run, fleet, client, app):
    fleet(1)
    running = client.submit(app.hold, "/never/there")
    waiting = client.options(queue="nobodys").submit(app.work, 1)
    up(running)
    waiting.queued()
    done = run("cancel", running.id, waiting.id)
    assert done.stdout.splitlines() == [f"{running.id} cancelled", f"{waiting.id} cancelled"]
    for task in (running, waiting):
        with pytest.raises(TaskCancelled):
            task.result(LONG)
    over = run("cancel", running.id)
    assert over.stdout == f"{running.id} cancelled\n"
    well = client.submit(app.work, 1)
    well.result(LONG)
    assert f"task {well.id} had succeeded" in run("cancel", well.id, code=1).stderr


def test_a_stranger_sees_the_stack(run, fleet, client, app, said, monkeypatch, capsys):
    fleet(1)
    task = client.submit(app.hold, "/never/there")
    up(task)
    assert ", line" in (text := run("stack", task.id).stdout)
    assert "hold" in text

    def elsewhere(id: str) -> str:
        raise LookupError(f"no task {id} runs here")

    monkeypatch.setattr("revolve_assistant.pool.stacks.find_and_dump", elsewhere)
    for name in ("REVOLVE_URL", "REVOLVE_SECRET"):
        monkeypatch.setenv(name, said[name])
    monkeypatch.setattr("revolve_assistant.caller.client._find", lambda _id: None)
    assert stack_command.main([task.id]) == 0
    assert "hold" in capsys.readouterr().out
    run("cancel", task.id)
    assert stack_command.main([task.id]) == 1
    assert "does not run: it was cancelled" in capsys.readouterr().err
    waiting = client.options(queue="nobodys").submit(app.work, 1)
    waiting.queued()
    assert stack_command.main([task.id.replace("0", "f"), "--timeout", "0.3"]) == 4
    capsys.readouterr()
    assert stack_command.main([waiting.id, "--timeout", "0.3"]) == 1
    assert "does not run: it waits" in capsys.readouterr().err
    monkeypatch.delenv("REVOLVE_URL")
    assert stack_command.main([waiting.id]) == 1
    assert "say --url" in capsys.readouterr().err


def test_a_stranger_speaks_and_answers(run, fleet, client, app):
    fleet(1)
    task = client.submit(app.listen)
    up(task)
    run("send", task.id, "word", '{"a": [1, null]}', "plain text", '"3"', "NaN", "--", "-5", "--x")
    assert task.result(LONG) == ["word", {"a": [1, None]}, "plain text", "3", "NaN", -5, "--x"]
    asks = client.submit(app.question)
    run("send", asks.id, "answer", "12")
    assert asks.result(LONG) == 12
    assert "has ended (succeeded): nothing was sent" in run("send", asks.id, "answer", "13", code=1).stderr
    waiting = client.options(queue="nobodys").submit(app.listen)
    waiting.queued()
    late = run("send", waiting.id, "word", "--timeout", "0.3", code=1).stderr
    assert "has not begun within 0.3 s: nothing was sent" in late


# ---------------------------------------------------------------- what there is


def test_top_says_the_truth(run, fleet, client, app, tmp_path):
    fleet(2, "-q", "default,second")
    go = tmp_path / "go"
    running = [client.submit(app.hold, str(go)) for _ in range(3)]
    for task in running:
        up(task)
    failed = client.submit(app.read, "/nowhere")
    assert failed.exception(LONG)
    client.pause(app.work)
    for n in range(2):
        client.submit(app.work, n).queued()
    client.options(delay=3600.0).submit(app.other, 1).queued()
    for n in range(4):
        client.options(queue="nobodys").submit(app.other, n).queued()
    expected = {
        "default": {"pending": 0, "delayed": 1, "blocked": 2, "leased": 3, "running": 3, "buried": 1, "workers": 2},
        "nobodys": {"pending": 4, "delayed": 0, "blocked": 0, "leased": 0, "running": 0, "buried": 0, "workers": 0},
        "second": {"pending": 0, "delayed": 0, "blocked": 0, "leased": 0, "running": 0, "buried": 0, "workers": 2},
    }
    seen: dict[str, Any] = {}

    def found() -> dict[str, Any]:
        nonlocal seen
        seen = top(run)
        return {each["queue"]: {key: each[key] for key in expected["default"]} for each in seen["queues"]}

    eventually(lambda: found() == expected, f"{seen}")
    assert set(seen) == {"version", "time", "place", "namespace", "queues", "workers", "running", "rules"}
    assert seen["version"] == 1
    assert seen["namespace"] == tmp_path.name
    ages = {each["queue"]: each["oldest"] for each in seen["queues"]}
    assert 0 < ages["nobodys"] < LONG
    assert ages["default"] == 0
    assert {each["id"] for each in seen["running"]} == {task.id for task in running}
    assert {each["function"] for each in seen["running"]} == {"fleet_app:hold"}
    assert sorted(each["running"] for each in seen["workers"]) == [1, 2]
    assert {each["state"] for each in seen["workers"]} == {"running"}
    assert all(each["queues"] == ["default", "second"] and each["concurrency"] == 2 for each in seen["workers"])
    table = run("top", "--once").stdout
    assert "nobodys" in table
    assert running[0].id in table
    assert "fleet_app:work  paused" in table
    go.touch()
    for task in running:
        task.result(LONG)
    expected["default"] |= {"leased": 0, "running": 0}
    eventually(lambda: found() == expected, f"{seen}")
    assert seen["running"] == []
    (tmp_path / "go").unlink()


def test_top_knows_a_worker_that_left(run, fleet, app):
    one, other = fleet(2)
    assert len(top(run)["workers"]) == 2
    one.signal(15)
    assert one.wait() == 0
    (left,) = top(run)["workers"]
    assert left["pid"] == other.pid


# ---------------------------------------------------------------- purge


def test_purge_removes_what_waits_and_whoever_waits_is_told(run, fleet, client, app, tmp_path):
    waiting = [client.submit(app.work, n) for n in range(30)]
    late = client.options(delay=3600.0).submit(app.work, 1)
    plain = client.options(history=False).submit(app.work, 1)
    elsewhere = client.options(queue="second").submit(app.work, 1)
    for task in (*waiting, late, plain, elsewhere):
        task.queued()
    with Client(client._engine.place, secret=SECRET) as stranger:
        stranger._known.clear()
        watching = stranger.attach(waiting[0].id)
        assert run("purge", "default", code=2).stderr.count("\n") == 1  # nobody can be asked
        assert run("purge", "default", "--yes").stdout == "32\n"
        for task in (*waiting, late, plain, watching):
            with pytest.raises(TaskCancelled, match="unstarted"):
                task.result(LONG)
    assert "nothing to remove" in run("purge", "default", "--yes").stderr
    assert elsewhere.state == "pending"
    fleet(1, "-q", "default,second")
    assert elsewhere.result(LONG) == 1
    failed = client.submit(app.read, "/nowhere")
    assert failed.exception(LONG)
    eventually(client.buried, "it is buried")
    assert run("purge", "default", "--buried", "-y").stdout == "1\n"
    assert client.buried() == []


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("watch", "nobody"), 4, "no task 'nobody' is known to redis://"),
        (("cancel", "nobody"), 4, "no task 'nobody' is known to redis://"),
        (("stack", "nobody"), 4, "no task 'nobody' is known to redis://"),
        (("send", "nobody", "word"), 4, "no task 'nobody' is known to redis://"),
        (("retry", "nobody"), 4, "no buried task 'nobody' at redis://"),
        (("dead", "nobody"), 4, "no buried task 'nobody' at redis://"),
        (("pause", "nobody"), 2, "'nobody' is not the name of a function: module:qualname"),
        (("limit", "a:b", "--concurrency", "0"), 2, "use `revolve pause`"),
        (("limit", "a:b", "--rate", "5"), 2, "is not N/SECONDS"),
        (("limit", "--rate", "5/1"), 2, "which function?"),
        (("purge", "nobodys", "-y"), 0, "there is nothing to remove from queue 'nobodys'"),
        (("top", "--once", "--url", "gearman://127.0.0.1:1"), 2, "cannot be looked into or steered: redis and sqlite"),
        (("pause", "a:b", "--url", "gearman://127.0.0.1:1"), 2, "cannot be looked into or steered: redis and sqlite"),
        (("top", "--once", "--url", "process://"), 2, "process:// is no queue"),
        (("top", "--once", "redis://127.0.0.1:1"), 1, "nothing listens there"),
        (("cancel",), 2, "the following arguments are required: ID"),
        (("top", "--onec"), 2, "did you mean --once?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_one_clear_line(run, words, code, text):
    done = run(*words, code=code)
    assert text in done.stderr
    assert done.stderr.startswith(f"revolve {words[0]}: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_another_secret_is_said_by_every_command(run, fleet, client, app):
    fleet(1)
    task = client.submit(app.hold, "/never/there")
    up(task)
    for words in (["watch", task.id], ["send", task.id, "word"], ["cancel", task.id]):
        done = run(*words, code=4, REVOLVE_SECRET="not the secret of these tests")
        assert done.stderr.startswith(f"revolve {words[0]}: task {task.id} is signed with the key ")
        assert done.stderr.count("\n") == 1
    failed = client.submit(app.read, "/nowhere")
    assert failed.exception(LONG)
    eventually(client.buried, "it is buried")
    assert run("retry", failed.id, code=1, REVOLVE_SECRET="not the secret of these tests").stderr.count("\n") == 1
    assert client.buried(task_id=failed.id)
    assert task.state == "running"
    run("cancel", task.id)


def test_no_queue_is_named(run):
    done = run("top", "--once", code=2, REVOLVE_URL="")
    assert done.stderr == ("revolve top: which queue? say --url, such as redis://localhost, or set REVOLVE_URL\n")


def test_a_task_of_another_namespace_is_unknown(run, client, app, server):
    task = client.submit(app.work, 1)
    task.queued()
    for command in ("watch", "cancel", "stack"):
        done = run(command, task.id, code=4, REVOLVE_URL=f"{server.url}?namespace=anothers")
        assert "it may be of another namespace" in done.stderr
    assert task.state == "pending"
