"""Tubes of other programs, served by our workers: raw jobs, put by a shell, by PHP, by any client."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from revolve_assistant import Client
from revolve_assistant.errors import Unsupported, UsageError
from revolve_assistant.protocols.beanstalkd import BeanstalkdClient, fields
from revolve_assistant.protocols.beanstalkd import commands as ask
from revolve_assistant.testing.checks import eventually
from revolve_assistant.testing.servers import Beanstalkd
from revolve_assistant.worker import Worker

WAIT = 20.0  # seconds that nothing here should take

APP = """
import json, os
from revolve_assistant import emit, track

def note(*args, **kwargs):
    for _ in track(range(3)):
        emit("working")
    with open("notes", "a") as file:
        file.write(json.dumps([repr(args), kwargs], sort_keys=True) + "\\n")

def fail(n):
    raise ValueError(f"no {n}")

def die(n):
    with open("deaths", "a") as file:
        file.write("x")
    os.kill(os.getpid(), 9)
"""
SHELL = r"""
exec 3<>"/dev/tcp/127.0.0.1/$1"
body='{"path": "a.jpg", "width": 80}'
printf 'use thumbs\r\nput 1024 0 60 %d\r\n%s\r\n' "${#body}" "$body" >&3
read -r used <&3; read -r said <&3
echo "$said"
"""
PHP = r"""
$server = stream_socket_client("tcp://127.0.0.1:" . $argv[1]);
$body = json_encode(["b.jpg", 90]);
fwrite($server, "use thumbs\r\nput 1024 0 60 " . strlen($body) . "\r\n" . $body . "\r\n");
fgets($server);
echo fgets($server);
"""


@pytest.fixture
def server(need):
    need("beanstalkd")
    with Beanstalkd() as server:
        yield server


@pytest.fixture
def app(tmp_path, monkeypatch):
    """A module that children can import, in the current folder."""
    (tmp_path / "beans_foreign.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("beans_foreign", None)


def serving(server, **options):
    expose = {"thumbs": "beans_foreign:note", "fails": "beans_foreign:fail", "dies": "beans_foreign:die"}
    return Worker(server.url, expose=expose, concurrency=1, **options)


def jobs(server, tube):
    with BeanstalkdClient(server.address) as client:
        said = fields(client.ask(ask.stats_tube(tube))[0].body)
    return {name: int(said.get(f"current-jobs-{name}", 0)) for name in ("ready", "reserved", "buried")}


def notes(app, count):
    path = app / "notes"
    return eventually(
        lambda: path.exists() and len(found := path.read_text().splitlines()) == count and [*map(json.loads, found)],
        f"{count} notes",
        within=WAIT,
    )


def test_a_shell_and_php_put_jobs_that_our_worker_runs(server, app, revolve, need):
    need("bash")
    need("php")
    port = str(server.port)
    worker = revolve("worker", server.url, "--expose", "thumbs=beans_foreign:note", "-c", "1", cwd=app)
    done = subprocess.run(["bash", "-c", SHELL, "put", port], capture_output=True, timeout=WAIT, text=True, check=True)
    assert done.stdout.startswith("INSERTED")
    done = subprocess.run(["php", "-r", PHP, port], capture_output=True, timeout=WAIT, text=True, check=True)
    assert done.stdout.startswith("INSERTED")
    with BeanstalkdClient(server.address) as client:
        client.put([b"plain \xff bytes", b"[]"], "thumbs")
    assert notes(app, 4) == [
        ["()", {"path": "a.jpg", "width": 80}], ["('b.jpg', 90)", {}], ["(b'plain \\xff bytes',)", {}], ["()", {}],
    ]  # fmt: skip
    eventually(lambda: jobs(server, "thumbs") == {"ready": 0, "reserved": 0, "buried": 0}, "the jobs are gone")
    worker.signal(15)
    assert worker.wait() == 0


def test_what_fails_is_buried_and_what_kills_its_worker_does_not_do_so_for_ever(server, app):
    with serving(server) as worker, Client(server.url) as client:
        assert worker.wait_ready(WAIT)
        with BeanstalkdClient(server.address) as stranger:
            stranger.put([b"[1]"], "fails", ttr=1)
            stranger.put([b"[2]"], "dies", ttr=1)
        eventually(lambda: jobs(server, "fails")["buried"] and jobs(server, "dies")["buried"], "both end", within=WAIT)
        assert (app / "deaths").read_text() == "x"  # the child died, not the worker, which says so
        reasons = {each.queue: each.reason for each in client.buried()}
        assert "ValueError: no 1" in reasons["fails"]
        assert "SIGKILL" in reasons["dies"]
        assert client.submit(int, "7").result(WAIT) == 7  # and our own tasks run beside
        with BeanstalkdClient(server.address) as stranger:  # as any tool does it
            stranger.ask(ask.use("fails"), ask.kick(10))
        eventually(lambda: jobs(server, "fails")["buried"] == 1, "it fails again")


def test_a_worker_that_stops_gives_back_what_it_did_not_begin(server, app):
    with BeanstalkdClient(server.address) as stranger:
        stranger.put([b"[%d]" % n for n in range(50)], "thumbs")
    with serving(server) as worker:
        assert worker.wait_ready(WAIT)
        notes_path = app / "notes"
        eventually(notes_path.exists, "it has begun", within=WAIT)
    left = jobs(server, "thumbs")
    done = len(notes_path.read_text().splitlines())
    assert (left["ready"], left["buried"]) == (50 - done, 0)
    with serving(server) as worker:
        notes(app, 50)


def test_what_cannot_be_exposed_or_called(server, app):
    for name in ("assistant.default", "assistant;c.x", "two words", ""):
        with pytest.raises(UsageError, match="tube"):
            Worker(server.url, expose={name: "beans_foreign:note"})
    with Client(server.url) as client, pytest.raises(Unsupported, match="calls no functions of other programs"):
        client.submit("thumbs", b"x")
