"""Plain functions over Gearman, both ways: the C tool, PHP's extension and Perl's modules call ours, we call theirs."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from revolve_assistant import Client
from revolve_assistant.errors import (
    NotCarriable,
    RemoteError,
    Unsupported,
    UsageError,
)
from revolve_assistant.event import Progress
from revolve_assistant.protocols.gearman import GearmanAdmin, GearmanClient, JobFailed
from revolve_assistant.running.exposed import arguments, result
from revolve_assistant.testing import Door
from revolve_assistant.testing.servers import Gearmand
from revolve_assistant.worker import Worker
from revolve_assistant.worker.served import answers_of, status, targets

WAIT = 20.0  # seconds that nothing here should take
PHP_HAS = ("-r", "exit(extension_loaded('gearman') ? 0 : 1);")
PERL_HAS = ("-MGearman::Client", "-MGearman::Worker", "-e1")

APP = """
import asyncio, os, time
from revolve_assistant import emit, report, track

def reverse(data):
    assert type(data) is bytes
    return data[::-1]

def add(a, b=10):
    return {"sum": a + b}

def steps(n):
    for _ in track(range(n)):
        pass
    emit("found", 3, "x", None)
    emit("data", b"raw\\0bytes")
    emit("warning", b"careful")
    report(0.5)
    return "d\\u00f6n"

def boom(data):
    raise ValueError("bad \\u00fc")

def die(data):
    os.kill(os.getpid(), 9)

def generate(n):
    for i in range(n):
        yield i
    return [n]

async def later(n):
    await asyncio.sleep(0)
    return n * 2

async def stream(n):
    for i in range(n):
        yield {"i": i}

def odd(data):
    return object()

def nothing():
    return None

def big(n):
    return b"x" * n

def flood(n):
    for i in range(n):
        emit("data", b"%06d" % i + b"." * 65530)
    return str(n)

def mark(path):
    with open(path, "ab") as file:
        file.write(b"x")

def wait_for(path, other):
    mark(other)
    while not os.path.exists(path):
        time.sleep(0.01)
    return str(os.getpid())

def pid():
    return os.getpid()

number = 3
"""


@pytest.fixture
def server(need):
    need("gearmand")
    with Gearmand() as server:
        yield server


@pytest.fixture
def app(tmp_path, monkeypatch):
    """A module that children can import; its name."""
    (tmp_path / "foreign_app.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "foreign_app"
    sys.modules.pop("foreign_app", None)


@pytest.fixture
def serving(server, app):
    """`with serving("reverse", …) as worker`: a Worker with these functions of the app."""

    @contextlib.contextmanager
    def serving(*names, to=server, query="", **options):
        expose = {name: f"{app}:{name}" for name in names} | options.pop("expose", {})
        options.setdefault("concurrency", 1)
        with Worker(url(to) + query, expose=expose, **options) as worker:
            assert worker.wait_ready(WAIT)
            yield worker

    return serving


@pytest.fixture
def ask(server):
    """A plain client of the protocol: `ask("reverse", b"abc")` is the result."""
    with GearmanClient([server.address]) as client:
        yield lambda function, data=b"": client.submit(function, data).result(timeout=WAIT)


def url(*servers):
    return "gearman://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)


def run(*words, stdin=b""):
    """A program's exit code, output and errors."""
    done = subprocess.run(words, input=stdin, capture_output=True, timeout=WAIT, check=False)
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def program(server, function, *words):
    """A program that serves the function; entered once the server knows."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    try:
        with GearmanAdmin(server.address) as admin:
            until(lambda: admin.status().get(function, (0, 0, 0))[2])
        yield process
    finally:
        process.kill()
        process.wait()


def said(task):
    """What came as WORK_DATA."""
    return [event.args[0] for event in task.events("data") if event.name == "data"]


def until(condition):
    """Wait for what only somebody else can say."""
    deadline = time.monotonic() + WAIT
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline
        pause.wait(0.01)
    return value


# ---------------------------------------------------------------- their clients, our functions


def test_the_c_tool_calls_ours(need, server, serving, tmp_path):
    tool = (need("gearman"), "-h", "127.0.0.1", "-p", str(server.port))
    path = tmp_path / "marked"
    with serving("reverse", "add", "steps", "boom", "mark", concurrency=2):
        assert run(*tool, "-f", "reverse", "hello") == (0, b"olleh", b"")
        assert run(*tool, "-f", "reverse", stdin=b"from stdin\0") == (0, b"\0nidts morf", b"")
        assert run(*tool, "-n", "-N", "-f", "reverse", stdin=b"ab\ncd\n") == (0, b"badc", b"")
        assert run(*tool, "-f", "add", "[1, 2]") == (0, b'{"sum":3}', b"")
        assert run(*tool, "-f", "add", '{"a": 5}') == (0, b'{"sum":15}', b"")
        code, out, errors = run(*tool, "-f", "steps", "[2]")
        assert (code, errors) == (0, b"careful")
        assert b'{"event":"found","args":[3,"x",null]}\nraw\0bytes' in out
        assert b"50% Complete" in out
        assert "dön".encode() in out
        assert run(*tool, "-f", "boom", "x") == (1, b"", "ValueError: bad ü\nJob failed\n".encode())
        assert run(*tool, "-b", "-f", "mark", f'["{path}"]')[0] == 0
        until(path.exists)


PHP_CLIENT = """<?php
$client = new GearmanClient(); $client->addServer("127.0.0.1", (int)$argv[1]); $client->setTimeout(10000);
echo $client->doNormal("reverse", "abc"), "\n";
foreach (["Data", "Warning", "Complete", "Exception"] as $kind)
    $client->{"set{$kind}Callback"}(function ($task) use ($kind) { echo "$kind ", trim($task->data()), "\n"; });
$client->setStatusCallback(function ($t) { echo "Status ", $t->taskNumerator(), "/", $t->taskDenominator(), "\n"; });
$client->setFailCallback(function ($task) { echo "Fail\n"; });
foreach ([["add", json_encode(["a" => 1, "b" => 2])], ["steps", "[2]"], ["boom", "x"]] as $call) {
    $client->addTask($call[0], $call[1]);
    $client->runTasks();
}
$client->doBackground("mark", json_encode([$argv[2]]));
"""


@pytest.mark.parametrize("exceptions", [False, True])
def test_phps_client_calls_ours(need, server, serving, tmp_path, exceptions):
    php = need("php", *PHP_HAS)
    script, path = tmp_path / "client.php", tmp_path / "marked"
    script.write_text(PHP_CLIENT)
    query = "?exceptions=yes" if exceptions else ""
    with serving("reverse", "add", "steps", "boom", "mark", query=query):
        code, out, errors = run(php, script, str(server.port), str(path))
        assert (code, errors) == (0, b"")
        lines = out.decode().splitlines()
        assert [line for line in lines if line not in ("Status 0/2", "Status 1/2")] == [
            "cba",
            'Complete {"sum":3}',
            "Status 2/2",
            'Data {"event":"found","args":[3,"x",null]}',
            "Data raw\0bytes",
            "Warning careful",
            "Status 500/1000",
            "Complete dön",
            *(["Exception ValueError: bad ü"] if exceptions else ["Warning ValueError: bad ü", "Fail"]),
        ]
        until(path.exists)


PERL_CLIENT = """
use Gearman::Client; $| = 1; binmode STDOUT;
my $client = Gearman::Client->new(job_servers => ["127.0.0.1:$ARGV[0]"], exceptions => $ARGV[2]);
print ${ $client->do_task("reverse", "abc", {timeout => 10}) }, "\n";
for my $call (["add", "[1, 2]"], ["steps", "[2]"], ["boom", "x"]) {
    my $set = $client->new_task_set;
    $set->add_task($call->[0], $call->[1], {
        on_complete => sub { print "complete ${$_[0]}\n" }, on_status => sub { print "status $_[0]/$_[1]\n" },
        on_data => sub { print "data ${$_[0]}\n" }, on_warning => sub { print "warning ${$_[0]}\n" },
        on_fail => sub { print "fail\n" }, on_exception => sub { print "exception $_[0]\n" },
    });
    $set->wait(timeout => 10);
}
$client->dispatch_background("mark", "[\\"$ARGV[1]\\"]") or die;
"""


@pytest.mark.parametrize("exceptions", [False, True])
def test_perls_client_calls_ours(need, server, serving, tmp_path, exceptions):
    perl = need("perl", *PERL_HAS)
    path = tmp_path / "marked"
    with serving("reverse", "add", "steps", "boom", "mark", query="?exceptions=yes" if exceptions else ""):
        code, out, errors = run(perl, "-e", PERL_CLIENT, str(server.port), str(path), str(int(exceptions)))
        assert (code, errors) == (0, b"")
        lines = [line for line in out.decode().splitlines() if line and line not in ("status 0/2", "status 1/2")]
        assert lines == [
            "cba",
            'complete {"sum":3}',
            "status 2/2",
            'data {"event":"found","args":[3,"x",null]}',
            "data raw\0bytes",
            "warning careful",
            "status 500/1000",
            "complete dön",
            *(["exception ValueError: bad ü"] if exceptions else ["warning ValueError: bad ü", "fail"]),
        ]
        until(path.exists)


# ---------------------------------------------------------------- their workers, called by us


def test_the_c_tools_worker_is_called(need, server):
    tool = (need("gearman"), "-h", "127.0.0.1", "-p", str(server.port), "-w")
    with Client(url(server)) as client:
        with program(server, "up", *tool, "-f", "up", "--", "tr", "a-z", "A-Z"):
            task = client.submit("up", b"hello")
            assert task.result(WAIT) == b"HELLO"
            assert (task.name, task.state) == ("up", "succeeded")
            assert client.submit("up", "text").result(WAIT) == b"TEXT"
            assert client.submit("up", {"a": "bäh"}, 2).result(WAIT) == '[{"A":"BäH"},2]'.encode()
        with program(server, "lines", *tool, "-n", "-N", "-f", "lines", "--", "cat"):
            task = client.submit("lines", b"one\ntwo\n")
            assert said(task)[0] == b"one"
            assert task.state == "succeeded"
        with program(server, "bad", *tool, "-f", "bad", "--", "false"):
            assert str(client.submit("bad", b"").exception(WAIT)) == "bad failed"


PHP_WORKER = """<?php
$worker = new GearmanWorker(); $worker->addServer("127.0.0.1", (int)$argv[1]);
$worker->addFunction("raise", function ($job) { $job->sendException("no such thing"); });
$worker->addFunction("fail", function ($job) { $job->sendWarning("it is late"); $job->sendFail(); });
$worker->addFunction("steps", function ($job) {
    $job->sendStatus(1, 4); $job->sendData("part\\0one"); $job->sendWarning("careful"); $job->sendStatus(4, 4);
    return strtoupper($job->workload());
});
while ($worker->work());
"""


def test_phps_worker_is_called(need, server, tmp_path):
    php = need("php", *PHP_HAS)
    script = tmp_path / "worker.php"
    script.write_text(PHP_WORKER)
    with program(server, "steps", php, script, str(server.port)), Client(url(server)) as client:
        task = client.submit("steps", b"abc")
        events = [(event.name, event.args) for event in task.events()]
        assert events[0][0] == "started"
        assert str(server.port) in events[0][1][0]
        assert events[1:] == [
            ("progress", (Progress(0.25, 1, 4),)),
            ("data", (b"part\0one",)),
            ("warning", (b"careful",)),
            ("progress", (Progress(1.0, 4, 4),)),
            ("succeeded", (b"ABC",)),
        ]
        assert task.progress == Progress(1.0, 4, 4)
        with pytest.raises(RemoteError, match="raise failed: no such thing"):
            client.submit("raise", b"").result(WAIT)
        with pytest.raises(RemoteError, match="fail failed; its last warning: it is late"):
            client.submit("fail", b"").result(WAIT)


PERL_WORKER = """
use Gearman::Worker;
my $worker = Gearman::Worker->new(job_servers => ["127.0.0.1:$ARGV[0]"]);
$worker->register_function("undone", sub { return undef });
$worker->register_function("sorry", sub { die "sorry\\n" });
$worker->register_function("steps", sub {
    my $job = shift; $job->set_status(1, 2); $job->set_status(2, 2); return uc $job->arg;
});
$worker->work while 1;
"""


def test_perls_worker_is_called(need, server):
    perl = need("perl", *PERL_HAS)
    with program(server, "steps", perl, "-e", PERL_WORKER, str(server.port)), Client(url(server)) as client:
        task = client.submit("steps", b"abc")
        assert [(event.name, event.args) for event in task.events()][1:] == [
            ("progress", (Progress(0.5, 1, 2),)),
            ("progress", (Progress(1.0, 2, 2),)),
            ("succeeded", (b"ABC",)),
        ]
        assert str(client.submit("undone", b"").exception(WAIT)) == "undone failed"
        assert str(client.submit("sorry", b"").exception(WAIT)) == "sorry failed: sorry"  # not as Storable froze it


# ---------------------------------------------------------------- what an exposed function gets and gives


@pytest.mark.parametrize(
    ("data", "args", "kwargs"),
    [
        (b"[1,null]", (1, None), {}),
        (b" [ ] ", (), {}),
        (b'{"a":[1]}', (), {"a": [1]}),
        (b"{}", (), {}),
        (b"", (b"",), {}),
        (b"plain", (b"plain",), {}),
        (b"[1,", (b"[1,",), {}),
        (b"[" * 100_000, (b"[" * 100_000,), {}),
        (b'"text"', (b'"text"',), {}),
        (b"3", (b"3",), {}),
        (b"\xff[1]", (b"\xff[1]",), {}),
        (b'["\xff"]', (b'["\xff"]',), {}),
    ],
)
def test_arguments(data, args, kwargs):
    assert arguments(data) == (args, kwargs)


def test_results():
    assert result("f", b"\0") == result("f", bytearray(b"\0")) == b"\0"
    assert result("f", "ä") == "ä".encode()
    assert result("f", None) == b"null"
    assert result("f", {"a": (1, 2.5)}) == b'{"a":[1,2.5]}'
    for value in (object(), "\ud800", {"a": object()}):
        with pytest.raises(NotCarriable, match="result of f"):
            result("f", value)


def test_progress_as_whole_numbers():
    def numbers(*progress):
        answer = status(*progress)
        return answer and (answer.done, answer.total)

    assert numbers(0.5, 3, 6) == (3, 6)
    assert numbers(0.25, None, None) == (250, 1000)
    assert numbers(None, 7, None) == (7, 0)
    assert numbers(0.5, 0.5, 1) == (500, 1000)
    assert numbers(None, 1e12, 4e12) == (250, 1000)
    assert numbers(None, None, None) is None
    assert numbers(None, -1, None) is None


def test_of_many_progress_events_the_newest_is_said():
    from revolve_assistant.pool.reports import EVENT, PACKED, PROGRESS

    said = answers_of([
        *((PROGRESS, 1, "progress", 0.0, None, n, 9, None) for n in range(5)),
        (EVENT, 1, "data", 0.0, ["text"]),
        (PACKED, 1, "odd", 0.0, b"a pickle", ["<shown>"]),
    ])  # fmt: skip
    assert [answer.kind for answer in said] == ["status", "data", "data"]
    assert said[0].done == 4
    assert json.loads(said[1].data) == {"event": "data", "args": ["text"]}
    assert json.loads(said[2].data) == {"event": "odd", "shown": ["<shown>"]}


@pytest.mark.parametrize("pool", ["process", "thread", "inline"])
def test_kinds_of_functions(serving, server, pool):
    with serving("generate", "later", "stream", "nothing", "boom", pool=pool), Client(url(server)) as client:
        task = client.submit("generate", 2)
        assert [json.loads(data)["args"] for data in said(task)] == [[0], [1]]
        assert task.result(WAIT) == b"[2]"
        assert client.submit("later", 4).result(WAIT) == b"8"
        task = client.submit("stream", 2)
        assert [json.loads(data)["args"] for data in said(task)] == [[{"i": 0}], [{"i": 1}]]
        assert task.result(WAIT) == b"null"
        assert client.submit("nothing").result(WAIT) == b"null"
        with pytest.raises(RemoteError, match="ValueError: bad ü"):
            client.submit("boom", b"").result(WAIT)


def test_what_cannot_be_imported_or_carried_or_called_says_so(serving, ask):
    expose = {"gone": "no_such_module:x", "lost": "foreign_app:absent", "number": "foreign_app:number"}
    with serving("odd", "add", query="?exceptions=yes", expose=expose):
        for name, why in [
            ("gone", "gone is exposed as no_such_module:x, which this worker cannot import"),
            ("lost", "cannot import"),
            ("number", "no callable but int"),
            ("odd", "the result of odd is no bytes"),
            ("add", "missing 1 required positional argument"),
        ]:
            with pytest.raises(JobFailed, match=why):
                ask(name, b"[]" if name == "add" else b"x")


def test_a_job_whose_child_is_killed_fails_with_the_reason(serving, ask):
    with serving("die", "reverse", query="?exceptions=yes"):
        with pytest.raises(JobFailed, match=r"TaskLost.*SIGKILL"):
            ask("die", b"x")
        assert ask("reverse", b"ab") == b"ba"


def test_large_results_and_floods(serving, server):
    with serving("big", "flood"), Client(url(server)) as client:
        assert client.submit("big", 20 << 20).result(WAIT) == b"x" * (20 << 20)
        with pytest.raises(RemoteError, match="more than one job may carry"):
            client.submit("big", 65 << 20).result(WAIT)
        numbers = []
        task = client.submit("flood", 300)  # 20 MB: more than the credit of a child
        task.add_listener("data", lambda data: numbers.append(int(data[:6])))
        assert task.result(WAIT) == b"300"
        until(lambda: len(numbers) == 300)
        assert numbers == list(range(300))


def test_a_worker_that_shuts_down_leaves_its_job_to_another(serving, server, app, tmp_path):
    go, begun = tmp_path / "go", tmp_path / "begun"
    with Client(url(server)) as client:
        with serving("wait_for") as first:
            task = client.submit("wait_for", str(go), str(begun))
            until(begun.exists)
            first.stop(grace=0.0)
        assert not task.done()
        with serving("wait_for"):
            until(lambda: begun.read_bytes() == b"xx")
            go.touch()
            assert task.result(WAIT).isdigit()


def test_a_job_that_was_begun_is_finished_within_the_grace(serving, server, tmp_path):
    go, begun = tmp_path / "go", tmp_path / "begun"
    with Client(url(server)) as client, serving("wait_for") as worker:
        task = client.submit("wait_for", str(go), str(begun))
        until(begun.exists)
        stopping = threading.Thread(target=worker.stop)
        stopping.start()
        until(lambda: worker.state == "draining" or worker.taker._draining)
        go.touch()
        assert task.result(WAIT).isdigit()
        stopping.join(WAIT)


def test_exposed_functions_and_tasks_share_the_children(serving, server, app):
    import foreign_app

    with serving("reverse", concurrency=1), Client(url(server)) as client:
        calls = [client.submit("reverse", b"%d!" % n) for n in range(200)]
        tasks = [client.submit(foreign_app.add, n) for n in range(200)]
        assert [call.result(WAIT) for call in calls] == [(b"%d!" % n)[::-1] for n in range(200)]
        assert [task.result(WAIT) for task in tasks] == [{"sum": n + 10} for n in range(200)]


def test_a_server_that_dies_and_returns(serving, server, ask):
    with serving("reverse", query="?timeout=1"):
        assert ask("reverse", b"ab") == b"ba"
        server.restart()
        with GearmanClient([server.address]) as client:
            assert client.submit("reverse", b"cd").result(timeout=WAIT) == b"dc"


def test_what_a_lost_connection_leaves_is_done_again(serving, server, tmp_path):
    go, begun = tmp_path / "go", tmp_path / "begun"
    with (
        Door(server.port) as door,
        Client(url(server)) as client,
        serving("wait_for", to=door, concurrency=2) as worker,
    ):
        task = client.submit("wait_for", str(go), str(begun))
        until(begun.exists)
        door.cut()
        until(lambda: begun.read_bytes() == b"xx")
        go.touch()
        assert task.result(WAIT).isdigit()
        until(lambda: not worker.taker.held)


@pytest.mark.parametrize("target", ["app", "app:", ":f", "app:f()", "a b:c", 3, None, lambda: 1])
def test_a_target_must_be_importable(target):
    with pytest.raises(UsageError):
        targets({"name": target})


def test_a_target_may_be_a_function():
    assert targets({"dumps": json.dumps}) == {"dumps": "json:dumps"}


@pytest.mark.parametrize(
    "name",
    ["assistant.q.default", "assistant.delayed", "assistant.c.x", "assistant.buried.x", "a b", "", "x" * 513, "a\n"],
)
def test_a_name_that_cannot_be_is_refused_on_both_sides(name):
    with pytest.raises(UsageError):
        Worker("gearman://127.0.0.1:1", expose={name: "app:f"})
    with Client("gearman://127.0.0.1:1") as client, pytest.raises(UsageError):
        client.submit(name, b"")


def test_only_where_there_are_other_programs():
    with pytest.raises(Unsupported, match="memory"):
        Worker("memory://", expose={"f": "app:f"})
    for place in ("memory://", "thread://", "process://"):
        with Client(place) as client, pytest.raises(Unsupported, match=place[:6]):
            client.submit("f", b"")


def test_the_command_serves_functions(need, server, app, tmp_path):
    tool = (need("gearman"), "-h", "127.0.0.1", "-p", str(server.port))
    words = (
        sys.executable,
        "-m",
        "revolve_assistant.cli",
        "worker",
        url(server),
        "-c",
        "1",
        "--expose",
        f"reverse={app}:reverse",
    )
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE)
    try:
        assert run(*tool, "-f", "reverse", "hello") == (0, b"olleh", b"")
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=WAIT)
    assert process.returncode == 0, errors
