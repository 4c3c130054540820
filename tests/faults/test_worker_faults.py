"""What a Client, its workers and gearmand do to each other when each of them is killed, stopped, cut off or lied to.

Real `revolve worker` processes on a real gearmand. Whatever happens: every task ends, by name; no event of one run is
mixed with another's; the worker goes on; nothing is left.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client, Task, TaskCancelled, TaskLost
from revolve_assistant.engine import Parcel
from revolve_assistant.errors import Untrusted
from revolve_assistant.protocols.gearman import GearmanClient
from revolve_assistant.providers import registry
from revolve_assistant.testing import Door
from revolve_assistant.testing.servers import Gearmand
from revolve_assistant.wire import envelope
from revolve_assistant.wire.seal import Purpose
from revolve_assistant.wire.secret import keyring

SECRET = "a secret of these tests only"
LONG = 50.0  # seconds that nothing here takes
ENDS = {"succeeded", "failed", "cancelled", "lost"}

APP = '''
import os, subprocess, time
from revolve_assistant import current_task, emit

def double(value):
    return value * 2

def where():
    return os.getppid()

def hold(gate):
    """Say where it runs, wait for the file, say a number of things, return where it ran."""
    emit("up", os.getpid(), os.getppid(), current_task().attempt)
    while not os.path.exists(gate):
        time.sleep(0.01)
    for number in range(20):
        emit("said", os.getpid(), number)
    return os.getpid()

def steps(count, pause):
    for number in range(count):
        emit("step", os.getpid(), number)
        time.sleep(pause)
    return count

def offspring(path):
    """Starts a program of its own and waits for it."""
    child = subprocess.Popen(["sleep", "1000"])
    emit("up", os.getpid(), child.pid)
    child.wait()

def note(path, word):
    with open(path, "a") as file:
        file.write(word + "\\n")
    return word
'''


@pytest.fixture
def server(need: Callable[[str], str]) -> Iterator[Gearmand]:
    need("gearmand")
    with Gearmand() as server:
        yield server


def at(server: Any, options: str = "") -> str:
    return f"gearman://127.0.0.1:{server.port}/faults{options}"


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "fault_app.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("fault_app", None)
    yield import_module("fault_app")
    sys.modules.pop("fault_app", None)


@pytest.fixture
def worker(revolve: Any, server: Gearmand, app: Any) -> Callable[..., Any]:
    def start(*flags: str, url: str = "", **environment: str) -> Any:
        environment.setdefault("REVOLVE_SECRET", SECRET)
        program = revolve("worker", url or at(server), "-c", "1", *flags, **environment)
        program.says("ready as")
        return program

    return start


@pytest.fixture
def client(server: Gearmand) -> Iterator[Client]:
    with Client(at(server), secret=SECRET) as client:
        yield client


def first(task: Task[Any], name: str, number: int = 1) -> tuple[Any, ...]:
    events = iter(task.events(name))
    for _ in range(number):
        event = next(events)
    assert event.name == name, f"it ended: {event}"
    return event.args


def names(task: Task[Any]) -> list[str]:
    return [event.name for event in task.events()]


def eventually(found: Callable[[], Any], what: str, seconds: float = LONG) -> Any:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (value := found()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        pause.wait(0.02)
    return value


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def one_story(task: Task[Any]) -> None:
    """Every run speaks in one piece, its numbers are in order, and the end comes last, once."""
    events = list(task.events())
    assert [event.name for event in events if event.name in ENDS] == [events[-1].name]
    runs: list[list[Any]] = [[]]
    for event in events[:-1]:
        if event.name == "started":
            runs.append([])
        if event.name in ("said", "step"):
            runs[-1].append(event.args)
    for run in runs:
        assert len({pid for pid, _ in run}) <= 1, "two runs in one"
        numbers = [number for _, number in run]
        assert numbers == list(range(len(numbers)))


# --- workers that go


@pytest.mark.parametrize("whom", ["supervisor", "child"])
def test_killed_in_the_middle_it_runs_again_and_the_caller_hears_so(worker, client, app, tmp_path, whom):
    gate = tmp_path / "gate"
    workers = {}
    for _ in range(2):
        program = worker()
        workers[program.pid] = program
    task = client.submit(app.hold, str(gate))
    child, supervisor, _ = first(task, "up")
    if whom == "supervisor":
        workers[supervisor].process.kill()
    else:
        os.kill(child, signal.SIGKILL)
    again, other, _ = first(task, "up", 2)
    assert again != child
    assert whom == "child" or other != supervisor
    gate.touch()
    assert task.result(LONG) == again
    assert names(task).count("retrying") == 1
    one_story(task)


def test_a_worker_that_is_stopped_and_woken_goes_on_as_if_nothing_was(worker, client, app, tmp_path):
    gate = tmp_path / "gate"
    program = worker()
    task = client.submit(app.hold, str(gate))
    first(task, "up")
    program.signal(signal.SIGSTOP)
    gate.touch()
    assert not task.done()
    program.signal(signal.SIGCONT)
    task.result(LONG)
    assert names(task).count("started") == 1
    one_story(task)


def test_a_worker_that_lost_its_task_while_it_was_away_is_fenced(server, worker, client, app, tmp_path):
    """Its connections are cut while it is stopped, another one runs the task: what it says once awake is not heard."""
    gates = tmp_path / "first", tmp_path / "second"
    with Door(server.port) as door:
        stopped = worker(url=at(door))
        task = client.submit(app.hold, str(gates[0]))
        child, _, _ = first(task, "up")
        stopped.signal(signal.SIGSTOP)
        door.shut()
        door.cut()
        other = worker()
        again, supervisor, _ = first(task, "up", 2)
        assert supervisor == other.pid
        assert again != child
        door.open()
        stopped.signal(signal.SIGCONT)
        gates[0].touch()  # both may end now
        assert task.result(LONG) == again
        assert names(task).count("started") == 2
        one_story(task)
        assert client.submit(app.double, 4).result(LONG) == 8
        stopped.signal(signal.SIGTERM)
        assert stopped.wait() == 0


def test_nothing_of_a_killed_worker_stays(worker, client, app):
    program = worker()
    task = client.submit(app.offspring, "")
    child, grandchild = first(task, "up")
    program.process.kill()
    program.wait()
    eventually(lambda: gone(child) and gone(grandchild), "its child and what that started are gone")
    task.cancel()


def test_nothing_stays_of_what_a_drained_worker_interrupted(worker, client, app):
    program = worker("--grace", "0.1")
    task = client.submit(app.offspring, "")
    child, grandchild = first(task, "up")
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    eventually(lambda: gone(child) and gone(grandchild), "its child and what that started are gone")
    assert not task.done()
    task.cancel()


def test_a_shutdown_is_no_attempt(worker, client, app, tmp_path):
    gate = tmp_path / "gate"
    task = client.submit(app.hold, str(gate))
    for number in range(1, 4):  # three that counted would bury it
        program = worker("--grace", "0.1")
        assert first(task, "up", number)[2] == 1
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    worker()
    assert first(task, "up", 4)[2] == 1
    gate.touch()
    task.result(LONG)
    one_story(task)


def test_workers_killed_at_random_lose_nothing(worker, client, app):
    """Two workers, one of them killed every now and then: all tasks end well, each with one story."""
    programs = [worker(), worker()]
    tasks = [client.submit(app.steps, 20, 0.005) for _ in range(40)]
    chance = random.Random(3)
    for number in range(3):
        next(iter(tasks[8 * (number + 1)].events("step")))
        victim = programs.pop(chance.randrange(2))
        victim.process.kill()
        programs.append(worker())
    for task in tasks:
        assert task.result(LONG) == 20
        one_story(task)


def test_two_workers_that_write_at_once_mix_nothing(worker, client, app):
    worker("-c", "2")
    worker("-c", "2")
    tasks = [client.submit(app.steps, 100, 0.0) for _ in range(60)]
    for task in tasks:
        assert task.result(LONG) == 100
        assert names(task) == ["started", *["step"] * 100, "succeeded"]
        one_story(task)


# --- gearmand goes


def test_gearmand_killed_and_restarted_empty(server, worker, client, app, tmp_path):
    """What ran goes on and ends; what waited in its memory is sent again; nothing hangs."""
    gate = tmp_path / "gate"
    worker()
    running = client.submit(app.hold, str(gate))
    first(running, "up")
    waiting = [client.submit(app.double, number) for number in range(20)]
    for task in waiting:
        task.queued()
    began = time.monotonic()
    server.restart()
    gate.touch()
    assert [task.result(LONG) for task in waiting] == [number * 2 for number in range(20)]
    running.result(LONG)
    assert time.monotonic() - began < 40.0
    one_story(running)
    assert client.submit(app.double, 50).result(LONG) == 100


def test_gearmand_is_away_for_a_while(server, worker, client, app, tmp_path):
    gate = tmp_path / "gate"
    worker()
    task = client.submit(app.hold, str(gate))
    first(task, "up")
    server.kill()
    gate.touch()
    during = [client.submit(app.double, number) for number in range(10)]  # no I/O, so no error
    eventually(lambda: client._engine.away_since, "the client knows")
    assert not any(each.done() for each in during)
    server.start()
    assert [each.result(LONG) for each in during] == [number * 2 for number in range(10)]
    task.result(LONG)
    one_story(task)


def test_gearmand_is_not_there_at_all(server, app):
    server.kill()
    with Client(at(server), secret=SECRET) as client:
        task = client.submit(app.double, 1)
        with pytest.raises(Exception, match=r"127\.0\.0\.1"):
            task.queued(timeout=1.0)
        began = time.monotonic()
    assert time.monotonic() - began < 15.0
    assert task.done()
    server.start()


@pytest.mark.parametrize("seconds", [1.0, 8.0], ids=["shortly", "past the time-out"])
def test_gearmand_is_frozen(server, worker, client, app, tmp_path, seconds):
    gate = tmp_path / "gate"
    worker()
    task = client.submit(app.hold, str(gate))
    first(task, "up")
    server.freeze()
    thaw = threading.Timer(seconds, server.thaw)
    thaw.start()
    try:
        gate.touch()
        later = [client.submit(app.double, number) for number in range(5)]
        assert [each.result(LONG) for each in later] == [number * 2 for number in range(5)]
        task.result(LONG)
        one_story(task)
    finally:
        thaw.join()


# --- connections go


@pytest.mark.parametrize("side", ["client", "worker"])
@pytest.mark.parametrize("way", ["cut", "half-way", "swallowed"])
def test_connections_break_in_the_middle(server, worker, app, tmp_path, side, way):
    """Cut, cut in the middle of a message, or half-open: the server, or the network, takes no notice of it."""
    options = "?timeout=1"
    with (
        Door(server.port) as door,
        Client(at(door if side == "client" else server, options), secret=SECRET) as client,
    ):
        worker(url=at(door if side == "worker" else server, options))
        tasks = [client.submit(app.steps, 60, 0.01) for _ in range(3)]
        first(tasks[0], "step", 10)
        if way == "cut":
            door.cut()
        elif way == "half-way":
            door.cut_after(door.carried("to_client") + 100, "to_client")
        else:
            door.swallow()
            first_known = eventually(lambda: _noticed(client, door, side), "somebody notices")
            assert first_known
            door.heal()
            door.cut()
        for task in tasks:
            with contextlib.suppress(TaskLost):
                assert task.result(LONG) == 60
            one_story(task)
        assert client.submit(app.double, 1).result(LONG) == 2


def _noticed(client: Client, door: Door, side: str) -> Any:
    return client._engine.away_since if side == "client" else door.accepted > 4


# --- the caller goes


def test_a_caller_that_is_killed_disturbs_nobody(server, worker, client, app, tmp_path):
    gate, path = tmp_path / "gate", tmp_path / "path"
    program = worker()
    script = textwrap.dedent(f"""
        import sys
        from revolve_assistant import Client
        import fault_app
        client = Client({at(server)!r}, secret={SECRET!r})
        task = client.submit(fault_app.hold, {str(gate)!r})
        print(next(iter(task.events("up"))).args, flush=True)
        client.submit(fault_app.note, {str(path)!r}, "ran").queued()
        print("queued", flush=True)
        task.result()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as caller:
        assert caller.stdout is not None
        caller.stdout.readline()
        assert caller.stdout.readline() == "queued\n"
        caller.kill()
    gate.touch()
    eventually(path.exists, "the rest of its tasks run")
    assert client.submit(app.where).result(LONG) == program.pid
    assert "Traceback" not in program.text


# --- strangers


def test_secrets_that_differ_are_told_to_both_sides_within_5_seconds(server, worker, app):
    program = worker(REVOLVE_SECRET="the secret of the worker")
    with Client(at(server), secret=SECRET) as client:
        began = time.monotonic()
        with pytest.raises(Untrusted, match="give both the same secret"):
            client.submit(app.double, 1).result(LONG)
        assert time.monotonic() - began < 5.0
    program.says("was refused and parked", seconds=5.0)
    with Client(at(server), secret="the secret of the worker") as right:
        assert right.submit(app.double, 1).result(LONG) == 2


def test_what_strangers_put_in_the_queue_is_parked_and_the_worker_goes_on(server, worker, client, app, tmp_path):
    """Unsigned, forged, truncated, moved, replayed; raw bytes in the function; a pickle that would say so if it ran."""
    path = tmp_path / "ran"
    keys = keyring(SECRET)
    good = client.submit(app.note, str(path), "once")
    caught: list[bytes] = []
    hand_over = client._engine.queue.submit
    client._engine.queue.submit = lambda parcels, sink: (
        caught.extend(p.body for p in parcels),
        hand_over(parcels, sink),
    )[1]
    again = client.submit(app.note, str(path), "twice")
    again.queued()
    queue = registry.engine(at(server))
    queue.open()
    sealed = keys.seal(Purpose.TASK, "faults/default", b"not an envelope")
    bodies = {
        "unsigned": envelope.wrap("i.nobody", b"x" * 200),
        "forged": envelope.wrap("i.nobody", sealed[:-1] + bytes([sealed[-1] ^ 1])),
        "truncated": caught[0][:-10],
        "moved": envelope.wrap("i.nobody", keys.seal(Purpose.TASK, "faults/other", b"x")),
        "stale": envelope.wrap("i.nobody", keys.seal(Purpose.TASK, "faults/default", b"x", expires=1.0)),
        "another-key": envelope.wrap(
            "i.nobody", keyring("a stranger's own secret").seal(Purpose.TASK, "faults/default", b"x")
        ),
        "another-id": caught[0],
        "empty": b"",
    }
    queue.submit([Parcel(id, body=body) for id, body in bodies.items()], None)  # type: ignore[arg-type]
    with GearmanClient([("127.0.0.1", server.port)]) as stranger:
        for text in (b"", b"hello", b"\x80\x05cos\nsystem\n(S'touch pwned'\ntR.", os.urandom(500)):
            stranger.submit("faults.q.default", text, background=True)
    program = worker()
    assert good.result(LONG) == "once"
    assert again.result(LONG) == "twice"
    for id in bodies:
        program.says(f"task {id} of queue default was refused and parked")
    assert client.submit(app.double, 1).result(LONG) == 2
    assert sorted(path.read_text().split()) == ["once", "twice"]
    assert not (tmp_path / "pwned").exists()
    queue.submit([Parcel(again.id, body=caught[0])], None)  # type: ignore[arg-type]
    assert client.submit(app.double, 2).result(LONG) == 4
    assert sorted(path.read_text().split()) == ["once", "twice"], "a replayed task ran again"
    queue.close()


# --- upgrades


def test_a_function_that_only_the_newer_release_has_runs_there(revolve, server, app, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    (old / "fault_app.py").write_text(APP.replace("def where", "def elsewhere"))
    older = revolve("worker", at(server), "-c", "1", cwd=old, REVOLVE_SECRET=SECRET)
    older.says("ready as")
    with Client(at(server), secret=SECRET) as client:
        assert client.submit(app.double, 2).result(LONG) == 4
        task = client.submit(app.where)
        assert "fault_app:where" in first(task, "waiting")[0]
        newer = revolve("worker", at(server), "-c", "1", REVOLVE_SECRET=SECRET)
        newer.says("ready as")
        # the older one may meet it a few times more
        assert task.result(LONG) == newer.pid
        assert names(task)[-1] == "succeeded"


def test_a_cancelled_task_stops_wherever_it_runs(worker, client, app, tmp_path):
    programs = [worker(), worker()]
    tasks = [client.submit(app.hold, str(tmp_path / "never")) for _ in range(2)]
    for task in tasks:
        first(task, "up")
        assert task.cancel()
    for task in tasks:
        with pytest.raises(TaskCancelled):
            task.result(LONG)
    for program in programs:
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
