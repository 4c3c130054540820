"""`revolve worker` as its operators run it: real processes on a real gearmand, real signals, real probes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client
from revolve_assistant.testing.servers import Gearmand, free_port

SECRET = "a secret of these tests only"
LONG = 40.0  # seconds that nothing here takes

APP = '''
import os, signal, sys, time
from pathlib import Path
from revolve_assistant import current_task, emit

VERSION = 1

def pid():
    return os.getpid()

def parent():
    return os.getppid()

def version():
    return VERSION

def hold(name):
    """Until there is a file of that name."""
    emit("up", os.getpid(), os.getppid())
    while not os.path.exists(name):
        time.sleep(0.01)
    return name

def stubborn():
    emit("up", os.getpid(), os.getppid())
    while True:
        try:
            while True:
                time.sleep(0.01)
        except BaseException:
            pass

def hog(megabytes):
    kept = bytearray(megabytes << 20)
    emit("up", len(kept))
    time.sleep(60)

def prepared():
    return os.environ.get("PREPARED", "no")

def secrets():
    return [name for name in os.environ if "SECRET" in name]

def prepare():
    os.environ["PREPARED"] = "yes"

class prepare_and_clean_up:
    def __enter__(self):
        os.environ["PREPARED"] = "inside"
    def __exit__(self, *exc):
        Path("cleaned").touch()

def broken():
    raise OSError("the database is away")
'''


@pytest.fixture(scope="module")
def server(need: Callable[[str], str]) -> Iterator[Gearmand]:
    need("gearmand")
    with Gearmand() as server:
        yield server


@pytest.fixture
def place(server: Gearmand, tmp_path: Path) -> str:
    """The address of a namespace of this test's own."""
    return f"gearman://{server.host}:{server.port}/{tmp_path.name}"


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The application's module, here and in the worker's folder."""
    (tmp_path / "worker_app.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("worker_app", None)
    yield import_module("worker_app")
    sys.modules.pop("worker_app", None)


@pytest.fixture
def worker(revolve: Any, place: str, app: Any) -> Callable[..., Any]:
    """Starts one that is ready, with these flags."""

    def start(*flags: str, ready: int = 1, **environment: str) -> Any:
        if "REVOLVE_SECRET_FILE" not in environment:
            environment["REVOLVE_SECRET"] = SECRET
        program = revolve("worker", place, *flags, **environment)
        if ready:
            program.says("ready as", ready)
        return program

    return start


@pytest.fixture
def client(place: str) -> Iterator[Client]:
    with Client(place, secret=SECRET) as client:
        yield client


def get(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url, timeout=5.0) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            body = error.read()
            return error.code, json.loads(body) if body.startswith(b"{") else {}


def eventually(found: Callable[[], Any], what: str, seconds: float = LONG) -> Any:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (value := found()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        pause.wait(0.02)
    return value


def up(task: Any) -> tuple[int, int]:
    """(pid of the child, pid of its supervisor) once the task says so."""
    return next(iter(task.events("up"))).args  # type: ignore[no-any-return]


# --- life


def test_it_says_when_it_is_ready_and_with_which_key_and_drains_at_the_first_signal(worker, client, app, tmp_path):
    program = worker("-c", "2")
    line = program.says("ready as")
    assert "queues default" in line
    assert "2 × process" in line
    assert SECRET not in program.text
    assert client.submit(app.parent).result(LONG) == program.pid
    task = client.submit(app.hold, "gate")
    up(task)
    program.signal(signal.SIGTERM)
    program.says("draining")
    (tmp_path / "gate").touch()
    assert task.result(LONG) == "gate"
    assert program.wait() == 0


def test_without_work_it_ends_at_once(worker):
    program = worker()
    began = time.monotonic()
    program.signal(signal.SIGINT)
    assert program.wait() == 0
    assert time.monotonic() - began < 10.0


def test_the_second_signal_stops_at_once_and_the_task_goes_to_another_worker(worker, client, app):
    first = worker("-c", "1")
    task = client.submit(app.stubborn)
    child, _ = up(task)
    first.signal(signal.SIGTERM)
    first.says("draining")
    first.signal(signal.SIGTERM)
    assert first.wait() == 128 + signal.SIGTERM
    assert not os.path.exists(f"/proc/{child}")
    second = worker("-c", "1")
    events = iter(task.events("up"))
    next(events)
    assert next(events).args[1] == second.pid
    second.signal(signal.SIGINT)
    second.says("draining")
    second.signal(signal.SIGINT)
    assert second.wait() == 128 + signal.SIGINT


def test_after_the_grace_what_runs_is_given_back(worker, client, app, tmp_path):
    first = worker("-c", "1", "--grace", "0.2")
    task = client.submit(app.hold, "gate")
    up(task)
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    assert [event.name for event in _until(task, "retrying")] == ["started", "up", "retrying"]
    worker("-c", "1")
    (tmp_path / "gate").touch()
    assert task.result(LONG) == "gate"


def _until(task: Any, name: str) -> Iterator[Any]:
    for event in task.events():
        yield event
        if event.name == name:
            return


def test_ctrl_c_of_a_terminal_reaches_children_only_through_the_supervisor(worker, client, app, tmp_path):
    program = worker("-c", "1")
    task = client.submit(app.hold, "gate")
    child, _ = up(task)
    assert os.getsid(child) != os.getsid(program.pid)
    (tmp_path / "gate").touch()
    task.result(LONG)


# --- what it is told


@pytest.mark.parametrize("pool", ["process", "thread", "inline"])
def test_pools(worker, client, app, pool):
    program = worker("--pool", pool, "-c", "2")
    found = client.submit(app.pid).result(LONG)
    assert (found == program.pid) == (pool != "process")


def test_queues_and_concurrency(worker, client, app, tmp_path):
    worker("-q", "high,default", "-c", "3")
    tasks = [client.options(queue=queue).submit(app.hold, "gate") for queue in ("high", "default", "high")]
    assert len({up(task)[0] for task in tasks}) == 3
    (tmp_path / "gate").touch()
    for task in tasks:
        task.result(LONG)


def test_a_share_of_the_cpus(worker):
    assert "1 × process" in worker("-c", "1%").says("ready as")


def test_flags_come_from_the_environment_too(worker):
    program = worker(REVOLVE_WORKER_CONCURRENCY="3", REVOLVE_WORKER_QUEUES="a,b")
    line = program.says("ready as")
    assert "queues a, b" in line
    assert "3 × process" in line


def test_the_address_comes_from_the_environment_too(revolve, place):
    revolve("worker", REVOLVE_URL=place, REVOLVE_SECRET=SECRET).says("ready as")


def test_a_child_is_replaced_after_so_many_tasks(worker, client, app):
    worker("-c", "1", "--max-tasks-per-child", "2")
    pids = [client.submit(app.pid).result(LONG) for _ in range(6)]
    assert len(set(pids)) == 3


def test_a_child_has_so_much_memory(worker, client, app):
    worker("-c", "1", "--memory-limit", "200M")
    task = client.submit(app.hog, 400)
    reason = next(iter(task.events("retrying"))).args[0]
    assert "memory_limit=200 MiB" in reason
    task.cancel()


def test_setup_runs_in_each_child(worker, client, app):
    worker("-c", "1", "--setup", "worker_app:prepare")
    assert client.submit(app.prepared).result(LONG) == "yes"


def test_setup_may_be_a_context_manager(worker, client, app, tmp_path):
    program = worker("-c", "1", "--setup", "worker_app:prepare_and_clean_up")
    assert client.submit(app.prepared).result(LONG) == "inside"
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert (tmp_path / "cleaned").exists()


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("worker_app:broken", "OSError: the database is away"),
        ("worker_app:nothing", "AttributeError"),
        ("no_such_module:nothing", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_setup_that_fails_ends_the_worker_before_it_takes_anything(worker, client, app, target, says):
    program = worker("-c", "1", "--setup", target, ready=0)
    task = client.submit(app.version)
    assert program.wait() == 1
    assert f"cannot set up a child: {says}" in program.text
    assert "ready as" not in program.text
    worker("-c", "1")
    assert task.result(LONG) == 1


def test_the_log_level(worker, client, app):
    quiet = worker("--log-level", "error")
    quiet.signal(signal.SIGTERM)
    assert quiet.wait() == 0
    assert "draining" not in quiet.text


def test_the_namespace_of_the_address_counts(worker, client, app, server):
    program = worker("--namespace", "another")
    assert client.submit(app.parent).result(LONG) == program.pid


# --- secrets


def test_the_secret_comes_from_a_file_and_no_child_sees_it(worker, client, app, tmp_path):
    path = tmp_path / "secret"
    path.write_text(f"# ours\n{SECRET}\nan older secret of ours, for a while\n")
    path.chmod(0o600)
    program = worker(REVOLVE_SECRET_FILE=str(path))
    assert len(program.says("ready as").partition("key ")[2].split(",")) == 2
    assert client.submit(app.secrets).result(LONG) == []


def test_a_secret_file_that_others_can_change_is_refused(worker, tmp_path):
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    path.chmod(0o666)
    program = worker(ready=0, REVOLVE_SECRET_FILE=str(path))
    assert program.wait() == 2
    assert "chmod 600" in program.text
    assert SECRET not in program.text


# --- wrong calls


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "needs the address of a queue"),
        (["gearman://127.0.0.1", "another"], "one argument too many"),
        (["--pol", "thread"], "did you mean --pool?"),
        (["--pool", "threads"], "invalid choice: 'threads'"),
        (["-c", "0"], "neither a number of workers"),
        (["--processes", "0"], "at least 1"),
        (["--grace", "-1"], "no positive number of seconds"),
        (["--setup", "app"], "MODULE:FUNCTION"),
        (["--expose", "reverse"], "NAME=MODULE:FUNCTION"),
        (["gearman://127.0.0.1", "--memory-limit", "1G", "--pool", "thread"], "pool='process'"),
        (["--memory-limit", "lots"], "no size in bytes"),
        (["gearmann://127.0.0.1"], "did you mean"),
        (["thread://"], "no queue"),
        (["gearman://example.com"], "REVOLVE_SECRET"),
        (["gearman://127.0.0.1", "--health-port", "99999"], "cannot be opened"),
        (["gearman://127.0.0.1", "--health-file", "/no/such/folder/file"], "cannot be written"),
        (["-q", " ", "gearman://127.0.0.1"], "at least one queue"),
        (["--processes", "2", "thread://"], "no queue"),
    ],
)
def test_a_wrong_call_is_one_line_and_code_2(revolve, words, says):
    program = revolve("worker", *words)
    assert program.wait() == 2
    assert says in program.text
    assert "Traceback" not in program.text


def test_a_port_that_is_taken(worker):
    first = worker("--health-port", "0")
    port = _port(first)
    second = worker("--health-port", str(port), ready=0)
    assert second.wait() == 2
    assert f"127.0.0.1:{port} cannot be opened" in second.text


# --- health


def _port(program: Any) -> int:
    return int(program.says("health on").partition("127.0.0.1:")[2].partition("/")[0])


def test_probes_tell_live_from_ready(worker, client, app, tmp_path):
    program = worker("-c", "1", "--health-port", "0")
    url = f"http://127.0.0.1:{_port(program)}"
    code, found = get(f"{url}/ready")
    assert (code, found["state"], found["ready"], found["live"]) == (200, "running", True, True)
    assert get(f"{url}/live")[0] == 200
    assert get(f"{url}/")[0] == 200
    assert get(f"{url}/nothing")[0] == 404
    task = client.submit(app.hold, "gate")
    up(task)
    assert get(f"{url}/ready")[1]["running"] == 1
    program.signal(signal.SIGTERM)
    program.says("draining")
    code, found = get(f"{url}/ready")
    assert (code, found["state"]) == (503, "draining")
    assert get(f"{url}/live")[0] == 200
    (tmp_path / "gate").touch()
    task.result(LONG)
    assert program.wait() == 0
    with pytest.raises(urllib.error.URLError):
        get(f"{url}/live")


def test_readiness_follows_the_server_and_liveness_does_not(revolve, need, app):
    need("gearmand")
    with Gearmand() as server:
        place = f"gearman://{server.host}:{server.port}/health"
        program = revolve("worker", place, "--health-port", "0", REVOLVE_SECRET=SECRET)
        program.says("ready as")
        url = f"http://127.0.0.1:{_port(program)}"
        assert get(f"{url}/ready")[0] == 200
        server.kill()
        eventually(lambda: get(f"{url}/ready")[0] == 503, "not ready without its server")
        assert get(f"{url}/live")[0] == 200
        server.start()
        eventually(lambda: get(f"{url}/ready")[0] == 200, "ready again")
        assert program.text.count("ready as") == 1


def test_a_worker_whose_server_is_not_there_yet_waits_for_it(revolve, need, app):
    need("gearmand")
    port = free_port()
    program = revolve("worker", f"gearman://127.0.0.1:{port}", "--health-port", "0", REVOLVE_SECRET=SECRET)
    url = f"http://127.0.0.1:{_port(program)}"
    program.says("trying again")
    assert get(f"{url}/ready")[0] == 503
    assert get(f"{url}/live")[0] == 200
    server = Gearmand()
    server.port = port
    with server:
        program.says("ready as")
        program.signal(signal.SIGTERM)
        assert program.wait() == 0


def test_a_worker_without_its_server_ends_at_a_signal(revolve):
    program = revolve("worker", f"gearman://127.0.0.1:{free_port()}", REVOLVE_SECRET=SECRET)
    program.says("trying again")
    program.signal(signal.SIGTERM)
    assert program.wait(20.0) == 0


def test_the_health_file(worker, tmp_path):
    path = tmp_path / "health"
    program = worker("--health-file", str(path))
    eventually(lambda: path.read_text().startswith("ready\n"), "it says ready")
    assert json.loads(path.read_text().partition("\n")[2])["worker"].endswith(f":{program.pid}")
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert not path.exists()


# --- several


def test_two_processes_and_one_that_dies_is_replaced(worker, client, app):
    program = worker("--processes", "2", "-c", "1", "--health-port", "0", ready=2)
    url = f"http://127.0.0.1:{_port(program)}"
    eventually(lambda: [each["ready"] for each in get(f"{url}/ready")[1]["workers"]] == [True, True], "both are ready")
    assert get(f"{url}/ready")[0] == 200
    supervisor = client.submit(app.parent).result(LONG)
    assert supervisor != program.pid
    os.kill(supervisor, signal.SIGKILL)
    program.says(f"{supervisor} ended with -9; another one follows")
    program.says("ready as", 3)
    assert client.submit(app.parent).result(LONG) != supervisor
    assert get(f"{url}/live")[0] == 200
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert program.text.count("ready as") == 3


def test_processes_from_the_environment_are_not_started_by_each_of_them(worker):
    program = worker(REVOLVE_WORKER_PROCESSES="2", ready=2)
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert program.text.count("ready as") == 2


def test_workers_drain_when_their_parent_is_killed(worker, client, app, tmp_path):
    program = worker("--processes", "2", "-c", "1", ready=2)
    task = client.submit(app.hold, "gate")
    child, supervisor = up(task)
    program.process.kill()
    program.says("draining", 2)
    (tmp_path / "gate").touch()
    assert task.result(LONG) == "gate"
    program.wait()
    eventually(lambda: not os.path.exists(f"/proc/{supervisor}"), "its worker is gone")
    assert not os.path.exists(f"/proc/{child}")


def test_a_second_signal_reaches_all(worker, client, app):
    program = worker("--processes", "2", "-c", "1", ready=2)
    tasks = [client.submit(app.stubborn) for _ in range(2)]
    children = [up(task)[0] for task in tasks]
    program.signal(signal.SIGTERM)
    program.says("draining", 2)
    program.signal(signal.SIGTERM)
    assert program.wait() == 128 + signal.SIGTERM
    for child in children:
        assert not os.path.exists(f"/proc/{child}")


def test_several_that_cannot_be_set_up_end_with_1(worker):
    program = worker("--processes", "2", "--setup", "worker_app:broken", ready=0)
    assert program.wait() == 1


def test_reload_runs_new_code(worker, client, app, tmp_path):
    program = worker("--reload", "-c", "1")
    assert client.submit(app.version).result(LONG) == 1
    path = tmp_path / "worker_app.py"
    path.write_text(APP.replace("VERSION = 1", "VERSION = 22"))
    program.says("worker_app.py changed: starting again")
    program.says("ready as", 2)
    assert client.submit(app.version).result(LONG) == 22
    program.signal(signal.SIGTERM)
    assert program.wait() == 0


def test_reload_waits_for_a_change_when_the_worker_cannot_start(worker, client, app, tmp_path):
    program = worker("--reload", "-c", "1", "--setup", "worker_app:prepare_more", ready=0)
    program.says("it ended with 1; a change of a file starts it again")
    path = tmp_path / "worker_app.py"
    path.write_text(APP + "\ndef prepare_more():\n    prepare()\n")
    program.says("ready as")
    assert client.submit(app.prepared).result(LONG) == "yes"
    program.signal(signal.SIGTERM)
    assert program.wait() == 0


def test_a_supervisor_killed_leaves_no_child(worker, client, app):
    program = worker("-c", "1")
    task = client.submit(app.stubborn)
    child, _ = up(task)
    program.process.kill()
    program.wait()
    eventually(lambda: not os.path.exists(f"/proc/{child}"), "its child is gone")
    with contextlib.suppress(Exception):
        task.cancel()
