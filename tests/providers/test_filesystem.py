"""The file system's own: what lies in the directory, who may use it, what stays and what goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revolve_assistant.errors import ClientClosed, UsageError
from revolve_assistant.providers import registry
from revolve_assistant.providers.filesystem import Messenger, folder, writing
from revolve_assistant.testing import MessengerConformance

Make = Callable[..., Messenger]


class TestMessenger(MessengerConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], object]:
        return lambda: registry.messenger(f"file://{tmp_path}/messages")


class TestPolled(MessengerConformance):
    """As on a network file system: polled, each batch flushed."""

    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], object]:
        return lambda: registry.messenger(f"filesystem://{tmp_path}/messages?network=yes")


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


# ---- addresses and options


def test_both_schemes_name_the_same_directory(tmp_path: Path) -> None:
    one, other = registry.messenger(f"file://{tmp_path}/x"), registry.messenger(f"filesystem://{tmp_path}/x")
    one.open()
    other.open()
    one.keep(["a"], seconds=60, cap=1000)
    one.write([("a", b"x")])
    assert frames(other) == [b"x"]
    one.close()
    other.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("file://tmp/x", "three slashes"),
        ("file:///", "name a directory of your own"),
        ("file:///x?sync=often", "sync='often' must be a number"),
        ("file:///x?sync=0", "sync='0'"),
        ("file:///x?network=perhaps", "one of auto, yes, no"),
        ("file:///x?snyc=batch", "did you mean 'sync'"),
    ],
)
def test_wrong_addresses(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        registry.messenger(url)


def test_options_as_keywords(tmp_path: Path) -> None:
    messenger = registry.messenger(f"file://{tmp_path}/x", sync=0.5, network="yes")
    messenger.open()
    messenger.keep(["a"], seconds=60, cap=1000)
    assert not messenger.traits.waits
    assert Messenger.traits.waits
    messenger.close()


def test_calls_before_open_say_so(base: Path) -> None:
    with pytest.raises(ClientClosed, match=r"call open\(\) first"):
        Messenger(base).write([])
    assert not base.exists()


# ---- what lies there


def test_everything_is_private_whatever_the_umask(make: Make, base: Path) -> None:
    usual = os.umask(0)
    try:
        messenger = make()
        messenger.keep(["a"], seconds=60, cap=1000)
        messenger.write([("a", b"x")])
        messenger.forget("a", last(messenger))
    finally:
        os.umask(usual)
    for path in [base, *base.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_names_never_become_paths(make: Make, base: Path) -> None:
    messenger = make()
    names = ["../../x", "/etc/passwd", "a/b", "", ".", "\0", "\udcff", "x" * 5000, "lease", "clock"]
    messenger.keep(names, seconds=60, cap=1000)
    messenger.write([(name, name.encode("utf-8", "surrogatepass")) for name in names])
    for name in names:
        assert frames(messenger, name) == [name.encode("utf-8", "surrogatepass")]
    assert [path.name for path in base.parent.iterdir()] == ["messages"]
    assert {len(path.name) for path in base.iterdir()} == {32, len("clock"), len("swept")}


def test_a_cursor_holds_a_position_for_each_writer(make: Make) -> None:
    reader, *writers = [make() for _ in range(6)]
    reader.keep(["a"], seconds=60, cap=1 << 20)
    for number, writer in enumerate(writers, 1):
        writer.write([("a", b"x")])
        assert len(last(reader)) == 8 + 12 * number


def test_writers_are_merged_by_time_and_replays_agree(make: Make) -> None:
    reader, *writers = [make() for _ in range(4)]
    reader.keep(["a", "b"], seconds=60, cap=1 << 20)
    sent = [(channel, b"%d" % n) for n, channel in enumerate("aababbbaabab" * 20)]
    for n, message in enumerate(sent):
        writers[n % 3].write([message])
    both = reader.read({"b": b"", "a": b""}, limit=1000, wait=0)
    assert [(message.channel, message.frame) for message in both.messages] == sent
    for limit in (1, 7, 1000):
        assert frames(reader, "a", limit=limit) == [frame for channel, frame in sent if channel == "a"]


def test_what_a_slow_writer_adds_with_an_earlier_time_is_not_passed_over(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, fast, slow = make(), make(), make()
    reader.keep(["a"], seconds=60, cap=1 << 20)
    fast.write([("a", b"fast")])
    (message,) = reader.read({"a": b""}, limit=10, wait=0).messages
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: 1)
        slow.write([("a", b"slow")])
    assert frames(reader, "a", message.cursor) == [b"slow"]
    assert frames(make(), "a", message.cursor) == [b"slow"]
    assert frames(reader) == [b"slow", b"fast"]


def test_a_clock_that_goes_back_changes_no_order(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer, other = make(), make(), make()
    reader.keep(["a"], seconds=60, cap=1 << 20)
    other.write([("a", b"other")])
    moments = iter(range(1000, 0, -100))
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    for n in range(9):
        writer.write([("a", b"%d" % n)])
    assert [frame for frame in frames(reader) if frame != b"other"] == [b"%d" % n for n in range(9)]


# ---- segments, cap, forgetting


def test_what_was_read_and_forgotten_takes_no_room(make: Make, base: Path) -> None:
    writer, reader = make(), make()
    cap = 1 << 20
    reader.keep(["a"], seconds=60, cap=cap)
    cursor, seen = b"", 0
    for n in range(0, 3000, 10):
        writer.write([("a", b"%d " % i + bytes(1000)) for i in range(n, n + 10)])
        for message in reader.read({"a": cursor}, limit=100, wait=0).messages:
            assert int(message.frame.partition(b" ")[0]) == seen
            cursor, seen = message.cursor, seen + 1
        reader.forget("a", cursor)
        assert sum(path.stat().st_size for path in logs(base)) <= cap // 8 + 20_000
    assert seen == 3000
    assert frames(make()) == []


def test_the_newest_message_outlives_any_cap(make: Make) -> None:
    messenger = make()
    messenger.keep(["a"], seconds=60, cap=1)
    for n in range(50):
        messenger.write([("a", b"%d " % n + bytes(3000))])
        assert frames(messenger)[-1].startswith(b"%d " % n)
    assert len(frames(messenger)) == 1


def test_a_smaller_cap_holds_at_once(make: Make, base: Path) -> None:
    messenger = make()
    messenger.keep(["a"], seconds=60, cap=1 << 20)
    messenger.write([("a", bytes(10_000))] * 100)
    messenger.keep(["a"], seconds=60, cap=1 << 18)
    assert sum(path.stat().st_size for path in logs(base)) <= 1 << 18
    messenger.keep(["a"], seconds=60, cap=1 << 20)
    assert frames(messenger)


def test_a_file_goes_once_its_writer_is_done(make: Make, base: Path) -> None:
    reader, writer, other = make(), make(), make()
    reader.keep(["a"], seconds=60, cap=1 << 20)
    writer.write([("a", b"1")])
    other.write([("a", b"2")])
    cursor = last(reader)
    reader.forget("a", cursor)
    assert len(logs(base)) == 2  # both may go on
    writer.close()
    reader.forget("a", cursor)
    assert len(logs(base)) == 1
    other.write([("a", b"3")])
    assert frames(reader) == frames(reader, cursor=cursor) == [b"3"]


def test_a_file_goes_once_its_writer_is_silent_for_long(make: Make, base: Path) -> None:
    reader, writer = make(), make()
    reader.keep(["a"], seconds=60, cap=1 << 20)
    writer.write([("a", b"1")])
    cursor = last(reader)
    (log,) = logs(base)
    hour_ago = time.time() - 3600
    os.utime(log, (hour_ago, hour_ago))
    reader.forget("a", cursor)
    assert logs(base) == []
    writer.write([("a", b"2")])  # it was not dead after all
    assert frames(reader) == frames(reader, cursor=cursor) == [b"2"]


def test_a_writer_that_was_silent_for_long_begins_a_new_file(
    make: Make, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messenger = make()
    messenger.keep(["a"], seconds=60, cap=1 << 20)
    messenger.write([("a", b"1")])
    monkeypatch.setattr(writing, "IDLE", -1.0)
    messenger.write([("a", b"2")])
    assert [path.name[-5:] for path in logs(base)] == ["00000", "00001"]
    assert frames(messenger) == [b"1", b"2"]


def test_forgotten_for_all_readers_and_never_back(make: Make) -> None:
    writer, one, other = make(), make(), make()
    writer.keep(["a"], seconds=60, cap=1 << 20)
    writer.write([("a", b"%d" % n) for n in range(6)])
    cursors = [message.cursor for message in one.read({"a": b""}, limit=9, wait=0).messages]
    one.forget("a", cursors[1])
    other.forget("a", cursors[3])
    one.forget("a", cursors[2])
    for reader in (writer, one, other):
        assert frames(reader) == [b"4", b"5"]
    one.forget("a", b"no cursor of ours")
    one.forget("a", b"x" * 20)
    assert frames(make()) == [b"4", b"5"]


def test_one_incarnation_does_not_take_the_place_of_another(make: Make) -> None:
    writer, reader = make(), make()
    reader.keep(["a"], seconds=60, cap=1 << 20)
    for n in range(50):
        writer.write([("a", b"%d" % n)])
        assert frames(reader) == [b"%d" % n]
        cursor = last(reader)
        reader.forget("a")
        assert reader.read({"a": cursor}, limit=1, wait=0).lost == {"a"}
        reader.keep(["a"], seconds=60, cap=1 << 20)
        assert reader.read({"a": cursor}, limit=1, wait=0).lost == {"a"}


def test_a_reader_at_the_start_goes_over_to_the_new_channel(make: Make) -> None:
    writer, reader, other = make(), make(), make()
    other.keep(["a"], seconds=60, cap=1 << 20)
    assert frames(reader) == []
    other.forget("a")
    other.keep(["a"], seconds=60, cap=1 << 20)
    writer.write([("a", b"x")])
    assert frames(reader) == [b"x"]


def test_any_cursor_goes_on_exactly_where_it_stands(base: Path) -> None:
    """Whoever wrote, rolled, closed, forgot or read meanwhile; with cursors made from cursors."""

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(1, 9)), max_size=60))
    def check(steps: list[tuple[int, int, int]]) -> None:
        shutil.rmtree(base, ignore_errors=True)
        sent: list[list[bytes]] = [[], [], []]
        positions = [(b"", [0, 0, 0])]  # cursors, and how many of each writer come before them
        forgotten = [0, 0, 0]
        with contextlib.ExitStack() as stack:

            def fresh() -> Messenger:
                messenger = Messenger(base)
                stack.callback(messenger.close)
                messenger.open()
                return messenger

            reader, writers = fresh(), [fresh(), fresh(), fresh()]
            reader.keep(["a"], seconds=600, cap=1 << 24)
            for what, who, count in steps:
                if what < 4:
                    frames = [b"%d %d" % (who, len(sent[who]) + n) for n in range(count)]
                    writers[who].write([("a", frame) for frame in frames])
                    sent[who] += frames
                elif what < 5:
                    writers[who].close()
                    writers[who].open()
                elif what < 6:
                    cursor, before = positions[(who * 9 + count) % len(positions)]
                    if cursor:
                        fresh().forget("a", cursor)
                        forgotten = [max(pair) for pair in zip(forgotten, before, strict=True)]
                else:
                    cursor, before = positions[(who * 9 + count) % len(positions)]
                    start = [max(pair) for pair in zip(forgotten, before, strict=True)]
                    here = fresh() if what < 8 else reader
                    messages = here.read({"a": cursor}, limit=100_000 if who else count, wait=0).messages
                    # One that has begun may still get what others forget meanwhile.
                    now = list(before if here is reader else start)
                    for message in messages:
                        own, number = map(int, message.frame.split())
                        assert number == now[own] or now[own] < number <= start[own]
                        now[own] = number + 1
                    now = [max(pair) for pair in zip(start, now, strict=True)]
                    if who:
                        assert now == [len(each) for each in sent]
                    if messages:
                        positions.append((messages[-1].cursor, now))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "SEGMENT", 300)
        patch.setattr(writing, "LEAST_SEGMENT", 1)
        check()


# ---- leases


def test_a_lease_never_gets_shorter(make: Make, base: Path) -> None:
    messenger = make()
    messenger.keep(["a"], seconds=1000, cap=10)
    ends = (place(base) / "lease").stat().st_mtime
    messenger.keep(["a"], seconds=1, cap=10)
    assert (place(base) / "lease").stat().st_mtime == ends
    assert 990 < ends - (base / "clock").stat().st_mtime < 1010
    messenger.keep(["a"], seconds=2000, cap=10)
    assert (place(base) / "lease").stat().st_mtime > ends + 900
    messenger.keep(["a"], seconds=1e300, cap=10)
    assert frames(messenger) == []


def end_lease(base: Path, channel: str = "a", ago: float = 60.0) -> None:
    then = time.time() - ago
    os.utime(place(base, channel) / "lease", (then, then))


def test_an_expired_channel_is_lost_to_readers_and_writers(make: Make, base: Path) -> None:
    reader, writer = make(), make()
    reader.keep(["a", "b"], seconds=60, cap=1000)
    writer.write([("a", b"old"), ("b", b"old")])
    cursor = last(reader)
    end_lease(base, ago=1.0)
    assert reader.read({"a": cursor}, limit=1, wait=5).lost == {"a"}
    assert make().read({"a": b""}, limit=1, wait=5).lost == {"a"}
    assert frames(reader, "b") == [b"old"]
    fresh = make()
    fresh.write([("a", b"dropped")])
    reader.keep(["a"], seconds=60, cap=1000)
    fresh.write([("a", b"new")])
    assert frames(reader) == [b"new"]
    assert reader.read({"a": cursor}, limit=1, wait=0).lost == {"a"}


def test_the_clock_of_the_host_does_not_matter(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = make()
    reader.keep(["a"], seconds=60, cap=1000)
    for off in (-1e9, 1e9):
        monkeypatch.setattr(time, "time", lambda off=off, usual=time.time: usual() + off)
        monkeypatch.setattr(time, "time_ns", lambda off=off, usual=time.time_ns: usual() + int(off * 1e9))
        other = make()
        other.keep(["b"], seconds=60, cap=1000)
        other.write([("a", b"x"), ("b", b"x")])
        assert frames(reader, "b")
        assert frames(reader) == frames(other)


def test_the_sweep_removes_what_has_expired_and_what_was_left_half_done(
    make: Make, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messenger = make()
    names = [f"c{n}" for n in range(20)]
    messenger.keep([*names, "stays"], seconds=600, cap=1000)
    messenger.write([(name, b"x") for name in names])
    for name in names:
        end_lease(base, name)
    make()  # somebody has just swept
    assert len(list(base.iterdir())) == len(names) + 3
    monkeypatch.setattr(folder, "SWEEP_EVERY", 0.0)
    (base / "not ours").mkdir()
    (base / f"new-{'0' * 16}").mkdir()
    (base / f"gone-{'1' * 16}").mkdir()
    (base / f"gone-{'1' * 16}" / "left").touch()
    (base / ("e" * 32)).mkdir()
    make()  # sweeps at its opening
    left = {"clock", "swept", "not ours", folder.hash_of("stays")}
    young = {f"new-{'0' * 16}", f"gone-{'1' * 16}", "e" * 32}  # somebody may be at work on these
    assert {path.name for path in base.iterdir()} == left | young
    monkeypatch.setattr(folder, "SETTLED", -1.0)
    make()
    assert {path.name for path in base.iterdir()} == left


def test_a_writer_sweeps_now_and_then(make: Make, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messenger = make()
    messenger.keep(["a", "b"], seconds=60, cap=1000)
    end_lease(base)
    messenger.write([("b", b"x")])
    assert place(base).exists()
    monkeypatch.setattr(folder, "SWEEP_EVERY", 0.0)
    monkeypatch.setattr("revolve_assistant.providers.filesystem.messenger.SWEEP_EVERY", 0.0)
    messenger.write([("b", b"x")])
    assert not place(base).exists()


def test_a_channel_that_was_renewed_meanwhile_is_put_back(make: Make, base: Path) -> None:
    messenger = make()
    messenger.keep(["a"], seconds=60, cap=1000)
    messenger.write([("a", b"x")])
    messenger._folder.remove(folder.hash_of("a"), only_dead=True)
    assert frames(messenger) == [b"x"]


def test_expiry_ends_a_waiting_read(make: Make) -> None:
    messenger = make()
    messenger.keep(["a"], seconds=0.3, cap=1)
    began = time.monotonic()
    assert messenger.read({"a": b""}, limit=1, wait=30).lost == {"a"}
    assert time.monotonic() - began < 5
