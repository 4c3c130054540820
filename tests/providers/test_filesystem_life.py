"""Waiting, descriptors, flushing and forks of the filesystem Messenger."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from revolve_assistant.errors import ClientClosed, Unreachable
from revolve_assistant.providers.filesystem import Messenger, folder, reading, writing

Make = Callable[..., Messenger]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "messages"


@pytest.fixture
def make(base: Path) -> Iterator[Make]:
    """Opened messengers on one directory."""
    made = []

    def make(**options: object) -> Messenger:
        messenger = Messenger(base, **options)  # type: ignore[arg-type]
        messenger.open()
        made.append(messenger)
        return messenger

    yield make
    for messenger in made:
        messenger.close()


def frames(messenger: Messenger, channel: str = "a", cursor: bytes = b"", limit: int = 1000) -> list[bytes]:
    """All that is there now."""
    found = []
    while True:
        batch = messenger.read({channel: cursor}, limit=limit, wait=0)
        assert not batch.lost
        if not batch.messages:
            return found
        found += [message.frame for message in batch.messages]
        cursor = batch.messages[-1].cursor


def last(messenger: Messenger, channel: str = "a") -> bytes:
    return messenger.read({channel: b""}, limit=100_000, wait=0).messages[-1].cursor


def place(base: Path, channel: str = "a") -> Path:
    return base / folder.hash_of(channel)


def logs(base: Path, channel: str = "a") -> list[Path]:
    return sorted(path for path in place(base, channel).iterdir() if "." in path.name)


# ---- waiting


def test_close_ends_a_waiting_read(make: Make) -> None:
    messenger = make()
    messenger.keep(["a"], seconds=60, cap=1)
    raised = threading.Event()

    def read() -> None:
        try:
            while True:
                messenger.read({"a": b""}, limit=1, wait=60)
        except ClientClosed:
            raised.set()

    reading = threading.Thread(target=read)
    reading.start()
    while messenger._reader is None:
        time.sleep(0)
    messenger.close()
    reading.join(10)
    assert raised.is_set()


def test_a_reader_is_told_of_a_channel_made_anew(make: Make) -> None:
    reader, other = make(), make()
    other.keep(["a"], seconds=60, cap=1000)
    for n in range(10):
        assert reader.read({"a": b""}, limit=1, wait=0).messages == []
        other.forget("a")
        other.keep(["a"], seconds=60, cap=1000)
        timer = threading.Timer(0.01, other.write, [[("a", b"%d" % n)]])
        timer.start()
        assert [message.frame for message in reader.read({"a": b""}, limit=1, wait=20).messages] == [b"%d" % n]
        timer.join()
        other.forget("a")
        other.keep(["a"], seconds=60, cap=1000)


def test_how_often_a_polled_directory_is_looked_at(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = make(network=True)
    reader.keep(["a"], seconds=600, cap=1000)
    pauses: list[float] = []
    clock = [1000.0]
    monkeypatch.setattr(reader._bell, "wait", lambda seconds, also: (pauses.append(seconds), _pass(seconds)))
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def _pass(seconds: float) -> None:
        clock[0] += seconds

    reader._came = clock[0]
    reader.read({"a": b""}, limit=1, wait=1.0)
    assert max(pauses) <= 0.008
    pauses.clear()
    reader.read({"a": b""}, limit=1, wait=30.0)
    assert max(pauses) == 0.25
    reader._came = clock[0]
    pauses.clear()
    reader.read({"a": b""}, limit=1, wait=30.0)
    assert min(pauses[:-1]) < 0.008
    assert sum(pauses) == pytest.approx(30.0)


# ---- descriptors


def held(base: Path) -> int:
    count = 0
    for each in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{each}").startswith(f"{base}/")
        except OSError:
            pass
    return count


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_descriptors_are_bounded(make: Make, base: Path) -> None:
    writer, reader = make(), make()
    names = [f"c{n}" for n in range(400)]
    reader.keep(names, seconds=60, cap=1 << 20)
    cursors = dict.fromkeys(names, b"")
    found: dict[str, list[bytes]] = {name: [] for name in names}
    for n in range(3):
        writer.write([(name, b"%d" % n) for name in names])
        count = 0
        while count < len(names):
            for message in reader.read(cursors, limit=150, wait=5).messages:
                found[message.channel].append(message.frame)
                cursors[message.channel] = message.cursor
                count += 1
        assert held(base) <= writing.OPEN_FILES + reading.OPEN_FILES
    assert all(each == [b"0", b"1", b"2"] for each in found.values())
    assert len(logs(base, "c0")) == 1  # opened again, not begun anew


def test_logs_that_are_remembered_are_bounded(make: Make, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LOGS", 5)
    messenger = make()
    names = [f"c{n}" for n in range(20)]
    messenger.keep(names, seconds=60, cap=1 << 20)
    for n in range(2):
        messenger.write([(name, b"%d" % n) for name in names])
    assert all(frames(messenger, name) == [b"0", b"1"] for name in names)
    assert messenger._writers is not None
    assert len(messenger._writers._logs) == 5
    assert stat.S_IMODE(logs(base, "c0")[0].stat().st_mode) == 0o400  # says that it is done


# ---- on the disk


def test_each_batch_is_flushed_when_asked(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(writing, "_flush", flushed.append)
    messenger, lazy = make(sync="batch"), make()
    messenger.keep(["a", "b"], seconds=60, cap=1000)
    for _ in range(3):
        messenger.write([("a", b"1"), ("b", b"2"), ("a", b"3")])
    assert len(flushed) == 6
    lazy.write([("a", b"1")])
    lazy.close()
    assert len(flushed) == 6


def test_what_was_written_is_flushed_in_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = threading.Event()
    monkeypatch.setattr(writing, "_flush", lambda fd: flushed.set())
    messenger = make(sync=0.01)
    messenger.keep(["a"], seconds=60, cap=1000)
    for _ in range(3):
        messenger.write([("a", b"1")])
        assert flushed.wait(10)
        flushed.clear()
    messenger.close()
    messenger.open()
    messenger.write([("a", b"1")])
    assert flushed.wait(10)


@pytest.mark.parametrize("sync", ["batch", 0.01])
def test_after_a_failed_flush_the_file_is_left_alone(
    make: Make, base: Path, monkeypatch: pytest.MonkeyPatch, sync: object
) -> None:
    failed = threading.Event()

    def fail(fd: int) -> None:
        failed.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    messenger = make(sync=sync)
    messenger.keep(["a"], seconds=60, cap=1000)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_flush", fail)
        if sync != "batch":
            messenger.write([("a", b"1")])
            assert failed.wait(10)
        with messenger._writing:  # until the thread that flushes is out of it
            pass
        with pytest.raises(Unreachable, match=str(base)):
            messenger.write([("a", b"1")])
    messenger.write([("a", b"3")])
    assert len(logs(base)) == 2
    assert frames(messenger) == [b"1", b"3"]


# ---- fork


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_writes_a_file_of_its_own_and_reads(make: Make, base: Path) -> None:
    messenger = make(sync=0.01)
    messenger.keep(["a"], seconds=60, cap=1 << 20)
    messenger.write([("a", b"parent 0")])
    assert frames(messenger) == [b"parent 0"]
    with messenger._writing, messenger._reading, messenger._state:  # as other threads might hold them at the fork
        child = os.fork()
        if child == 0:
            code = 1
            try:
                messenger.wake()
                messenger.read({"a": b""}, limit=1, wait=30)
                for n in range(100):
                    messenger.write([("a", b"child %d" % n)])
                assert b"child 99" in frames(messenger)
                messenger.close()
                code = 0
            finally:
                os._exit(code)
    for n in range(1, 100):
        messenger.write([("a", b"parent %d" % n)])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(logs(base)) == 2
    found = frames(messenger)
    for who in (b"parent", b"child"):
        assert [frame for frame in found if frame.startswith(who)] == [b"%b %d" % (who, n) for n in range(100)]
    assert [stat.S_IMODE(path.stat().st_mode) for path in logs(base)].count(0o400) == 1  # the child's alone is done
    cursor = last(messenger)
    messenger.wake()
    began = time.monotonic()
    assert messenger.read({"a": cursor}, limit=1, wait=30).messages == []
    assert time.monotonic() - began < 5
