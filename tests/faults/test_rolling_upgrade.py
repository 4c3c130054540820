"""Workers of two versions of an application under load, one function only in the newer one: all tasks succeed."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from revolve_assistant import Client
from revolve_assistant.testing.servers import Gearmand

SECRET = "a secret of these tests only"
LONG = 50.0

OLD = """
from revolve_assistant import emit

VERSION = 1

def stable(number):
    emit("said", number)
    return VERSION, number
"""
NEW = (
    OLD.replace("VERSION = 1", "VERSION = 2")
    + """
def fresh(number):
    emit("said", number)
    return VERSION, -number
"""
)


@pytest.fixture(params=["gearman"])
def url(request, need) -> Iterator[str]:
    need("gearmand")
    with Gearmand() as server:
        yield f"gearman://{server.host}:{server.port}/upgrade"


def start(url: str, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "revolve_assistant.cli", "worker", url, "-c", "1"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "REVOLVE_SECRET": SECRET},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "ready as" in line:
            return process
    raise AssertionError(f"the worker ended with {process.wait()}")


def end(process: subprocess.Popen[str]) -> str:
    process.terminate()
    return process.communicate(timeout=LONG)[1]


def test_nothing_fails_while_workers_are_replaced_one_by_one(url, tmp_path, monkeypatch):
    folders = {}
    for name, text in (("old", OLD), ("new", NEW)):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        (folders[name] / "rolling_app.py").write_text(text)
    monkeypatch.syspath_prepend(str(folders["new"]))
    app = import_module("rolling_app")
    workers = [start(url, folders["old"]), start(url, folders["old"])]
    numbers = itertools.count()
    try:
        with Client(url, secret=SECRET) as client:
            tasks = []

            def load(count: int) -> None:
                tasks.extend(
                    (number, client.submit(app.stable, number), client.submit(app.fresh, number))
                    for number in itertools.islice(numbers, count)
                )

            load(100)
            assert tasks[-1][1].result(LONG) == (1, tasks[-1][0])
            waiting = next(iter(tasks[0][2].events("waiting")))  # nobody can import it yet: it waits, and says so
            assert "rolling_app:fresh" in waiting.args[0]
            for at in (0, 1):
                workers.append(start(url, folders["new"]))
                load(100)
                end(workers[at])
                load(100)
            for number, stable, fresh in tasks:
                version, value = stable.result(LONG)
                assert version in (1, 2)
                assert value == number
                assert fresh.result(LONG) == (2, -number)
                assert [event.name for event in fresh.events()][-2:] == ["said", "succeeded"]
    finally:
        for process in workers:
            end(process) if process.poll() is None else process.stderr.close()
        sys.modules.pop("rolling_app", None)
