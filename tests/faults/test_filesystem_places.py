"""A directory of messages in a bad place: open to others, read-only, far away, silent. And Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from revolve_assistant.errors import Overloaded, Unreachable, UsageError
from revolve_assistant.providers.filesystem import Messenger, folder, network, reading, record

ROOT = os.geteuid() == 0
Make = Callable[..., Messenger]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "messages"


@pytest.fixture
def make(base: Path) -> Iterator[Make]:
    made = []

    def make(path: Path = base, **options: object) -> Messenger:
        messenger = Messenger(path, **options)  # type: ignore[arg-type]
        messenger.open()
        made.append(messenger)
        return messenger

    yield make
    for messenger in made:
        messenger.close()


def frames(messenger: Messenger, channel: str = "a", cursor: bytes = b"") -> list[bytes]:
    """All that is there now."""
    found = []
    while True:
        batch = messenger.read({channel: cursor}, limit=1000, wait=0)
        assert not batch.lost
        if not batch.messages:
            return found
        found += [message.frame for message in batch.messages]
        cursor = batch.messages[-1].cursor


def log_of(base: Path, channel: str = "a") -> Path:
    (log,) = (path for path in (base / folder.hash_of(channel)).iterdir() if "." in path.name)
    return log


def written(base: Path, sent: Sequence[bytes], channel: str = "a") -> tuple[Path, bytes, list[int]]:
    """A log with these messages by a writer that is gone: its file, its bytes, and where each record begins."""
    with contextlib.closing(Messenger(base)) as writer:
        writer.open()
        writer.keep([channel], seconds=600, cap=1 << 30)
        for frame in sent:
            writer.write([(channel, frame)])
    log = log_of(base, channel)
    starts = [0]
    for frame in sent:
        starts.append(starts[-1] + record.HEADER + len(frame))
    assert starts[-1] == log.stat().st_size
    return log, log.read_bytes(), starts


# ---- rights and traps


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777, 0o720])
def test_a_directory_that_others_can_write_to_is_refused(make: Make, base: Path, mode: int) -> None:
    base.mkdir()
    base.chmod(mode)
    with pytest.raises(UsageError, match=f"{base} can be written by others .*: chmod 700 {base}"):
        make()
    base.chmod(0o755)
    make()


@pytest.mark.skipif(not ROOT, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(make: Make, base: Path) -> None:
    base.mkdir(mode=0o700)
    os.chown(base, 65534, 65534)
    with pytest.raises(UsageError, match=f"{base} belongs to user 65534, not to 0"):
        make()


def test_a_symbolic_link_is_refused(make: Make, base: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    base.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=f"{base} is a symbolic link.*name the directory itself, .*elsewhere"):
        make()
    base.unlink()
    base.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is a symbolic link"):
        make()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_something_that_is_no_directory(make: Make, base: Path) -> None:
    base.touch()
    with pytest.raises(Unreachable, match=f"{base} failed: Not a directory"):
        make()
    with pytest.raises(Unreachable, match="Not a directory"):
        make(base / "deeper" / "still")


def test_symbolic_links_inside_are_not_followed(make: Make, base: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_bytes(b"x")
    messenger = make()
    messenger.keep(["a", "b"], seconds=600, cap=1000)
    shutil.copytree(base / folder.hash_of("a"), victim, dirs_exist_ok=True)
    before = {path.name: path.read_bytes() for path in victim.iterdir()}
    shutil.rmtree(base / folder.hash_of("a"))
    (base / folder.hash_of("a")).symlink_to(victim)
    fresh = make()
    for call in (
        lambda: fresh.keep(["a"], seconds=600, cap=1),
        lambda: fresh.write([("a", b"x")]),
        lambda: fresh.read({"a": b""}, limit=1, wait=0),
        lambda: fresh.forget("a", bytes(20)),
    ):
        with pytest.raises(Unreachable, match=f"{base}/{folder.hash_of('a')}"):
            call()
    fresh.forget("a")  # removes the link, not what it leads to
    assert not (base / folder.hash_of("a")).is_symlink()
    assert {path.name: path.read_bytes() for path in victim.iterdir()} == before
    for name in (f"{'0' * 12}.00000", "floor-x"):
        (base / folder.hash_of("b") / name).symlink_to(victim / "precious")
    with pytest.raises(Unreachable):
        fresh.read({"b": b""}, limit=1, wait=0)
    fresh.forget("b")
    assert (victim / "precious").read_bytes() == b"x"


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Makes `tmp_path / "disk"` read-only when called."""
    place = tmp_path / "disk"
    place.mkdir()
    if not ROOT:  # then the mode is enough
        yield lambda: place.chmod(0o500) or [path.chmod(0o500) for path in place.rglob("*") if path.is_dir()]
        for path in [place, *place.rglob("*")]:
            path.chmod(0o700)
        return
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "x", place], check=False).returncode:
        pytest.skip("root writes everywhere, and mounting is not permitted here")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_directory_that_is_read_only(read_only: Callable[[], None], make: Make, tmp_path: Path) -> None:
    base = tmp_path / "disk" / "messages"
    with contextlib.closing(Messenger(base)) as first:
        first.open()
        first.keep(["a"], seconds=600, cap=1000)
        first.write([("a", b"x")])
        cursor = first.read({"a": b""}, limit=1, wait=0).messages[0].cursor
    read_only()
    messenger = make(base)
    assert frames(messenger) == [b"x"]
    for call in (
        lambda: messenger.write([("a", b"y")]),
        lambda: messenger.keep(["b"], seconds=600, cap=1),
        lambda: messenger.forget("a"),
        lambda: messenger.forget("a", cursor),
    ):
        with pytest.raises(Unreachable, match=str(base)) as caught:
            call()
        assert not isinstance(caught.value, Overloaded)
    assert frames(messenger) == [b"x"]
    with pytest.raises(Unreachable, match=str(base.parent)):
        make(base.parent / "new")


def test_the_directory_is_removed_under_our_hands(make: Make, base: Path) -> None:
    messenger, other = make(), make()
    messenger.keep(["a"], seconds=600, cap=1000)
    messenger.write([("a", b"x")])
    assert frames(other) == [b"x"]
    shutil.rmtree(base)
    assert other.read({"a": b""}, limit=1, wait=5).lost == {"a"}
    messenger.write([("a", b"dropped")])
    messenger.keep(["a"], seconds=600, cap=1000)
    messenger.write([("a", b"y")])
    assert frames(other) == [b"y"]
    assert frames(make()) == [b"y"]


@pytest.fixture
def whole_seconds(tmp_path: Path, need: Callable[[str], str]) -> Iterator[Path]:
    """A file system whose times are of whole seconds."""
    make_it, image, place = need("mkfs.ext2"), tmp_path / "image", tmp_path / "disk"
    if not ROOT:
        pytest.skip("only root can mount a file system")
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run([make_it, "-q", "-I", "128", image], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", image, place], check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        place.chmod(0o700)
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_where_times_are_of_whole_seconds(whole_seconds: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = make(whole_seconds)
    monkeypatch.setattr(reader._folder, "now", time.time_ns)
    reader.keep(["a"], seconds=600, cap=1 << 20)
    monkeypatch.setattr(reading.Inotify, "open", lambda: None)
    cursor = b""
    for n in range(20):  # each writer makes a file, many within one second
        make(whole_seconds).write([("a", b"%d" % n)])
        (message,) = reader.read({"a": cursor}, limit=9, wait=5).messages
        assert message.frame == b"%d" % n
        cursor = message.cursor
    began = time.monotonic()
    reader.keep(["b"], seconds=0.5, cap=1)
    while not reader.read({"b": b""}, limit=1, wait=0.1).lost:
        assert time.monotonic() - began < 10
    assert time.monotonic() - began >= 0.5


# ---- network file systems


def test_a_rename_that_reports_failure_though_it_was_done(
    make: Make, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = os.rename

    def rename(*args: object, **options: object) -> None:
        usual(*args, **options)  # type: ignore[arg-type]
        raise FileNotFoundError(2, "No such file or directory")

    messenger = make()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        messenger.keep(["a"], seconds=600, cap=1000)
    messenger.write([("a", b"x")])
    assert frames(messenger) == [b"x"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        messenger.forget("a")
    assert messenger.read({"a": b""}, limit=1, wait=5).lost == {"a"}


def test_pages_that_arrive_in_any_order_are_waited_for(make: Make, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [b"one", b"two", b"three"]
    log, data, starts = written(base, sent)
    log.chmod(0o600)
    hole = bytearray(data)
    hole[starts[1] : starts[2]] = bytes(starts[2] - starts[1])
    reader = make(network=True)
    log.write_bytes(hole)
    batch = reader.read({"a": b""}, limit=9, wait=0.05)
    assert [message.frame for message in batch.messages] == [b"one"]
    cursor = batch.messages[-1].cursor
    assert frames(reader, cursor=cursor) == []
    log.write_bytes(data)
    assert frames(reader, cursor=cursor) == [b"two", b"three"]
    log.write_bytes(hole)
    assert frames(reader) == [b"one"]
    monkeypatch.setattr(reading, "DOUBT", 0.0)
    assert frames(reader) == [b"one", b"three"]


def test_a_fuse_mount_counts_as_a_network_file_system(make: Make, need: Callable[[str], str], tmp_path: Path) -> None:
    bindfs, umount = need("bindfs"), need("umount")
    behind, mount = tmp_path / "behind", tmp_path / "mount"
    behind.mkdir(mode=0o700)
    mount.mkdir()
    one = Messenger(mount / "messages")
    with subprocess.Popen([bindfs, "-f", behind, mount], stderr=subprocess.PIPE) as server:
        try:
            while not os.path.ismount(mount):
                if server.poll() is not None:
                    pytest.skip(f"mounting is not permitted here: {server.communicate()[1].decode()}")
            other = make(behind / "messages")
            one.open()
            assert not one.traits.waits
            one.keep(["a", "b"], seconds=600, cap=1 << 20)
            for n in range(3):  # neither is told of what the other does, and the kernel believes itself for a second
                one.write([("a", b"%d" % n)])
                other.write([("b", b"%d" % n)])
                assert frames(other, "a") == [b"%d" % i for i in range(n + 1)]
                deadline = time.monotonic() + 10
                while len(found := frames(one, "b")) <= n:
                    assert time.monotonic() < deadline
                assert found == [b"%d" % i for i in range(n + 1)]
            cursor = one.read({"b": b""}, limit=100, wait=0).messages[-1].cursor
            later = threading.Timer(0.05, other.write, [[("b", b"later")]])
            later.start()
            assert one.read({"b": cursor}, limit=1, wait=20).messages[0].frame == b"later"
            later.join()
            other.forget("b")
            assert one.read({"b": b""}, limit=1, wait=20).lost == {"b"}
        finally:
            one.close()
            subprocess.run([umount, mount], check=False)
            server.wait(10)


def test_an_ordinary_directory_is_none(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert not network.is_network(fd)
    finally:
        os.close(fd)


# ---- inotify is not to be had, or loses something

POLLING = """
import sys, threading
from revolve_assistant.providers.filesystem import Messenger
reader, writer = Messenger(sys.argv[1]), Messenger(sys.argv[1])
reader.open(); writer.open()
reader.keep(["a"], seconds=60, cap=1000)
cursor = b""
for n in range(20):
    timer = threading.Timer(0.002, writer.write, [[("a", b"%d" % n)]])
    timer.start()
    (message,) = reader.read({"a": cursor}, limit=1, wait=20).messages
    assert message.frame == b"%d" % n
    cursor = message.cursor
    timer.join()
print("watching" if reader._reader._inotify and reader._reader._watched else "polling")
"""


@pytest.mark.parametrize("limit", ["max_inotify_instances", "max_inotify_watches"])
def test_without_inotify_it_polls(need: Callable[[str], str], base: Path, limit: str) -> None:
    script = f'echo 0 > /proc/sys/user/{limit} && exec "$0" -c "$1" "$2"'
    command = [need("unshare"), "-U", "-r", "sh", "-c", script, sys.executable, POLLING, str(base)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "/proc/sys/user" in done.stderr:
        pytest.skip(f"user namespaces are not permitted here: {done.stderr.strip()}")
    assert (done.returncode, done.stdout) == (0, "polling\n"), done.stderr


def test_a_queue_of_inotify_that_overflows_loses_nothing(make: Make) -> None:
    writer, reader = make(), make()
    names = ["a", "b", "c"]
    reader.keep(names, seconds=600, cap=1 << 30)
    reader.read(dict.fromkeys(names, b""), limit=1, wait=0)
    assert reader._reader is not None
    reader._reader._every = 1e9  # it does not look by itself
    count = 8000  # of each: more than the queue holds
    for n in range(count):
        writer.write([(name, b"%d" % n) for name in names])
    cursors = dict.fromkeys(names, b"")
    found: dict[str, list[int]] = {name: [] for name in names}
    while any(len(each) < count for each in found.values()):
        batch = reader.read(cursors, limit=1000, wait=5)
        assert batch.messages, {name: len(each) for name, each in found.items()}
        for message in batch.messages:
            found[message.channel].append(int(message.frame))
            cursors[message.channel] = message.cursor
    assert all(each == list(range(count)) for each in found.values())


def test_a_channel_made_anew_while_a_reader_begins_is_watched(make: Make) -> None:
    writer, reader = make(), make()
    reader.keep(["a"], seconds=600, cap=1000)
    reader.read({}, limit=1, wait=0)
    assert reader._reader is not None
    inotify = reader._reader._inotify
    if inotify is None:
        pytest.skip("no inotify")
    usual = inotify.add

    def add(path: str) -> int | None:
        watch = usual(path)
        inotify.add = usual  # type: ignore[method-assign]
        writer.forget("a")
        writer.keep(["a"], seconds=600, cap=1000)
        return watch

    inotify.add = add  # type: ignore[method-assign]
    assert reader.read({"a": b""}, limit=1, wait=0).messages == []
    reader._reader._every = 1e9  # it does not look by itself
    later = threading.Timer(0.02, writer.write, [[("a", b"x")]])
    later.start()
    began = time.monotonic()
    while not (found := reader.read({"a": b""}, limit=1, wait=10).messages):
        assert time.monotonic() - began < 5
    assert found[0].frame == b"x"
    later.join()


def test_what_nobody_tells_of_is_found_by_looking(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = make(), make()
    reader.keep(["a"], seconds=600, cap=1 << 20)
    reader.read({"a": b""}, limit=1, wait=0)
    assert reader._reader is not None
    if reader._reader._inotify is not None:
        monkeypatch.setattr(reader._reader._inotify, "events", lambda: iter(()))
    writer.write([("a", b"x")])
    deadline = time.monotonic() + 10
    while not reader.read({"a": b""}, limit=1, wait=0).messages:
        assert time.monotonic() < deadline


# ---- Ctrl-C at the worst moment


@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupted_read_loses_and_doubles_nothing(make: Make, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    writers, reader = [make() for _ in range(count)], make()
    reader.keep(["a"], seconds=600, cap=1 << 20)
    sent = [b"%d" % n for n in range(60)]
    for n, frame in enumerate(sent):
        writers[n % 3 % count].write([("a", frame)])
    found: list[bytes] = []
    cursor, left = b"", 0

    def message(*args: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return usual(*args)

    usual = reading.Message
    monkeypatch.setattr(reading, "Message", message)
    for attempt in range(10_000):
        left = attempt % 11
        try:
            batch = reader.read({"a": cursor}, limit=1 + attempt % 7, wait=0)
        except KeyboardInterrupt:
            continue
        if not batch.messages:
            break
        found += [each.frame for each in batch.messages]
        cursor = batch.messages[-1].cursor
    assert found == sent


def test_after_an_interrupted_write_nothing_is_written_over(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = make(), make()
    reader.keep(["a"], seconds=600, cap=1 << 20)
    writer.write([("a", b"0")])
    usual = os.pwrite

    def pwrite(*args: object) -> int:
        usual(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(KeyboardInterrupt):
            writer.write([("a", b"1")])
    batch = reader.read({"a": b""}, limit=9, wait=0)
    assert [message.frame for message in batch.messages] == [b"0", b"1"]
    writer.write([("a", b"a longer one")])
    writer.write([("a", b"2")])
    assert frames(reader, cursor=batch.messages[-1].cursor) == [b"a longer one", b"2"]
