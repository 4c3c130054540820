"""The blocks of the page on Gearman with other languages do what it says, on a gearmand of their own port."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from revolve_assistant.protocols.gearman import GearmanAdmin
from revolve_assistant.testing.servers import Gearmand

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "gearman-with-other-languages.md"
WAIT = 20.0  # seconds that nothing here should take


@pytest.fixture
def server(need):
    need("gearmand")
    need("gearman")
    with Gearmand() as server:
        yield server


@pytest.fixture
def blocks(server):
    """The blocks of a language, with the server's port."""
    text = PAGE.read_text(encoding="utf-8").replace("4730", str(server.port))
    return lambda language: re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def run(*words, folder, stdin=None):
    environment = {**os.environ, "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])}
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=WAIT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@contextlib.contextmanager
def running(server, functions, words, folder):
    """A worker, entered once the server knows its functions; ended as its operator would."""
    environment = {**os.environ, "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])}
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stderr=log)
    try:
        deadline = time.monotonic() + WAIT
        with GearmanAdmin(server.address) as admin:
            while not all(name in admin.status() and admin.status()[name].workers for name in functions):
                assert time.monotonic() < deadline, (folder / "log").read_text()
                threading.Event().wait(0.01)
        yield
    finally:
        process.terminate()
        process.wait(WAIT)


def test_ours_is_called(server, blocks, need, tmp_path):
    (tmp_path / "app.py").write_text(blocks("python")[0])
    serve, call, _ = blocks("sh")
    php, perl = blocks("php")[0], blocks("perl")[0]
    with running(server, ["reverse", "mail"], serve.split(), tmp_path):
        lines = [run("sh", "-c", line, folder=tmp_path) for line in call.splitlines()]
        assert lines[0] == "olleh"
        assert lines[1].startswith('{"event":"sent","args":["ann@example.org"]}\n{"to":"ann@example.org","copies":2}')
        assert lines[2] == ""
        said = run(need("perl", "-MGearman::Client", "-e1"), "-", folder=tmp_path, stdin=perl)
        assert said == "olleh\n"
        said = run(need("php", "-r", "exit(extension_loaded('gearman') ? 0 : 1);"), folder=tmp_path, stdin=php)
        assert said.startswith("olleh\n")
        assert "3 of 3\n" in said
        assert said.endswith(
            'event: {"event":"sent","args":["ann@example.org"]}\nresult: {"to":"ann@example.org","copies":3}\n'
        )


def test_theirs_are_called(server, blocks, need, tmp_path):
    (tmp_path / "worker.php").write_text(blocks("php")[1])
    (tmp_path / "worker.pl").write_text(blocks("perl")[1])
    (tmp_path / "call.py").write_text(blocks("python")[1])
    php = need("php", "-r", "exit(extension_loaded('gearman') ? 0 : 1);")
    perl = need("perl", "-MGearman::Worker", "-e1")
    with (
        running(server, ["upper"], [php, "worker.php"], tmp_path),
        running(server, ["count"], [perl, "worker.pl"], tmp_path),
        running(server, ["sort"], blocks("sh")[2].split(), tmp_path),
    ):
        lines = run(sys.executable, "-W", "error", "call.py", folder=tmp_path).splitlines()
    assert lines[0].startswith("started ")
    assert lines[1:] == [
        "progress (Progress(fraction=0.5, done=1, total=2, message=None),)",
        "data (b'half way',)",
        "succeeded (b'HELLO',)",
        "b'HELLO'",
        "b'8'",
        "b'a\\nb\\n'",
    ]
