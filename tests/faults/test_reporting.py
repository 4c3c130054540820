"""Reporting never fails, blocks or grows because of the watchers' line; and a reporter that dies is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client, TaskLost, emit, report, reporting
from revolve_assistant.caller import reckoning
from revolve_assistant.caller.task import Task
from revolve_assistant.running import line
from revolve_assistant.running.line import _lines
from revolve_assistant.testing import Door
from revolve_assistant.testing.servers import Memcached, Redis, Server

SECRET = "the secret of these tests"


@pytest.fixture(autouse=True)
def line_goes_with_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(line, "LINGER", 0.01)
    yield
    for each in list(_lines.values()):
        if each.thread is not None:
            each.thread.join(20)


@pytest.fixture(params=[Redis, Memcached], ids=["redis", "memcached"])
def server(request: pytest.FixtureRequest, need: Callable[[str], str]) -> Iterator[Server]:
    need(request.param.program)
    with request.param() as it:
        yield it


def line_of(running: Any) -> line.Line:
    found: line.Line = running._port.line
    return found


def address(server: Server) -> str:
    return f"{type(server).__name__.lower()}://{server.host}:{server.port}"


@contextlib.contextmanager
def watching(place: str) -> Iterator[Client]:
    with Client(f"memory://{os.urandom(4).hex()}", messenger=place) as client:
        yield client


def said(task: Task[Any]) -> list[tuple[Any, ...]]:
    return [
        (each.name, *(each.args if each.name not in ("started", "failed", "lost") else ())) for each in task.events()
    ]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


# ---------------------------------------------------------------- the reporter dies

PROGRAM = """
import os, sys, time
from revolve_assistant import emit, reporting
with reporting("job", messenger=sys.argv[1]):
    emit("here", os.getpid())
    time.sleep(60)
"""


def reporter(place: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, place])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_watchers_of_a_reporter_that_was_killed_hear_lost_and_those_who_come_later_its_history_too(
    server: Server, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reckoning, "QUIET", 1.0)  # else it takes 40 s
    monkeypatch.setattr(reckoning, "ANSWER_INSIDE", 1.0)
    with watching(address(server)) as client:
        task = client.attach("job", within=20)
        program = reporter(address(server))
        names = []
        for event in task.events():
            names.append(event.name)
            if event.name == "here":
                program.send_signal(number)
                program.wait()
        assert names == ["started", "here", "lost"]
        with pytest.raises(TaskLost, match="the process that reported it is gone, and said no end"):
            task.result()
    with watching(address(server)) as later:
        assert [name for name, *_ in said(later.attach("job"))] == ["started", "here", "lost"]


def test_who_is_silent_or_stopped_for_a_while_is_not_lost(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reckoning, "QUIET", 0.3)
    with watching(address(server)) as client:
        task = client.attach("job", within=20)
        program = reporter(address(server))
        try:
            events = task.events()
            assert [next(events).name, next(events).name] == ["started", "here"]
            program.send_signal(signal.SIGSTOP)
            with pytest.raises(TimeoutError):
                task.result(3)
            program.send_signal(signal.SIGCONT)
            with pytest.raises(TimeoutError):
                task.result(3)
            assert task.state == "running"
        finally:
            program.kill()
            program.wait()


# ---------------------------------------------------------------- the messenger dies


def test_a_messenger_that_is_away_at_the_start_costs_one_warning_and_all_is_heard_later(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()
    began = time.monotonic()
    with reporting("early", messenger=address(server)) as running:
        for i in range(1000):
            emit("tick", i)
            report(i / 1000)
        running.result = "done"
        assert time.monotonic() - began < 2, "nothing here waits for a server"
        server.start()
    with watching(address(server)) as client:
        heard = said(client.attach("early", within=10))
    assert [each for each in heard if each[0] == "tick"] == [("tick", i) for i in range(1000)]
    assert heard[-1] == ("succeeded", "done")
    warned = warnings_of(caplog)
    assert sum("waits, the program goes on" in each for each in warned) == 1
    assert len(warned) <= 2, "and one that it answers again"


def test_a_messenger_that_never_comes_costs_five_seconds_once_and_bounded_memory(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "LEFT", 10)
    monkeypatch.setattr(line, "LEFT_BYTES", 1 << 20)
    monkeypatch.setattr(line, "PAUSES", (0.05, 0.2))
    with Redis() as server:
        place = address(server)
        server.kill()
        began = time.monotonic()
        for i in range(200):
            with reporting(f"one-{i}", messenger=place) as running:
                emit("block", "x" * 50_000)
        assert 4 < time.monotonic() - began < 10
        ours = line_of(running)
        with ours.lock:
            ours._bell.notify_all()
        deadline = time.monotonic() + 10
        while sum(each.size for each in list(ours._left)) > 1 << 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert sum(each.size for each in list(ours._left)) <= 1 << 20
        assert len(ours._left) <= 21
        server.start()
        ours.thread.join(20)  # it says what is left while there is somebody to hear it
        assert not ours.thread.is_alive()
    warned = warnings_of(caplog)
    assert sum("waits, the program goes on" in each for each in warned) == 1


def test_an_exit_while_the_messenger_is_away_is_not_held_up(tmp_path: Path) -> None:
    with Redis() as server:
        server.kill()
        code = (
            "import sys\nfrom revolve_assistant import reporting\n"
            "with reporting('x', messenger=sys.argv[1]): pass\n"
            "with reporting('y', messenger=sys.argv[1]): pass\n"
        )
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, address(server)], capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == 0
        assert time.monotonic() - began < 9
        assert done.stderr.count("\n") <= 1, done.stderr


def test_the_loop_is_not_blocked_by_a_messenger_that_hangs(need: Callable[[str], str]) -> None:
    need("redis-server")

    async def main(place: str) -> float:
        worst = 0.0

        async def beat() -> None:
            nonlocal worst
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                worst = max(worst, time.monotonic() - before)

        pulse = asyncio.create_task(beat())
        async with reporting("loop", messenger=place):
            emit("tick")
            await asyncio.sleep(0.1)
        pulse.cancel()
        return worst

    with Redis() as server:
        server.freeze()
        try:
            assert asyncio.run(main(address(server))) < 1.0
        finally:
            server.thaw()
            for each in list(_lines.values()):
                assert each.thread is not None
                each.thread.join(30)


def test_a_restarted_messenger_shows_what_it_lost_as_a_gap_or_not_at_all(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with reporting("job", messenger=address(server)) as running:
        emit("before")
        with watching(address(server)) as client:
            task = client.attach("job", within=10)
            assert [each.name for each in islice(task.events(), 2)] == ["started", "before"]
        server.restart()
        emit("after")
        running.result = 1
    with watching(address(server)) as client:
        heard = said(client.attach("job", within=10))
    assert heard[-1] == ("succeeded", 1)
    assert ("after",) in heard


def test_a_line_that_is_cut_now_and_then_loses_nothing_and_repeats_nothing(need: Callable[[str], str]) -> None:
    need("redis-server")
    with Redis() as server, Door(server.port) as door:
        with reporting("cut", messenger=f"redis://{door.host}:{door.port}") as running:
            for i in range(300):
                emit("tick", i)
                if i % 60 == 30:
                    door.cut()
                time.sleep(0.002)
            running.result = "whole"
        with watching(address(server)) as client:
            heard = said(client.attach("cut", within=10))
        assert [each[1] for each in heard if each[0] == "tick"] == list(range(300))
        assert heard[-1] == ("succeeded", "whole")


def test_garbage_on_the_control_channel_and_in_the_log_is_dropped(server: Server) -> None:
    from revolve_assistant.providers import registry
    from revolve_assistant.providers.url import Url

    with reporting("job", messenger=address(server)) as running:
        emit("before")
        ours = line_of(running)
        with watching(address(server)) as client:
            task = client.attach("job", within=10)
            events = task.events()
            assert [next(events).name, next(events).name] == ["started", "before"]
            stranger = registry.messenger(Url.parse(address(server)))
            stranger.open()
            try:
                for garbage in (b"", b"x", b"\xf7" * 30, os.urandom(2000)):
                    stranger.write([(ours.control, garbage), ("t.job", garbage)])
            finally:
                stranger.close()
            emit("still here")
            assert next(events).name == "still here"
            task.send("hello")
            message = running.receive(timeout=20)
            assert message is not None
            assert message.name == "hello"
