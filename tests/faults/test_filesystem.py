"""Messages in a directory while everything around them breaks: writers, disks, bits."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from revolve_assistant.errors import Overloaded, ProtocolError, ProviderError, Unreachable
from revolve_assistant.messenger import Message
from revolve_assistant.providers.filesystem import Messenger, folder, record, writing

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


# ---- torn and damaged records


def test_a_record_torn_at_every_byte_is_not_yet_there(make: Make, base: Path) -> None:
    sent = [b"one", b"two", b"three is longer"]
    log, data, starts = written(base, sent)
    reader = make()
    for size in range(starts[2], len(data) + 1):
        log.chmod(0o600)
        log.write_bytes(data[:size])
        whole = sent[: 3 if size == len(data) else 2]
        assert frames(reader) == whole, size
        # and for a reader that is there when the rest comes
        batch = reader.read({"a": b""}, limit=9, wait=0)
        log.write_bytes(data)
        assert frames(reader, cursor=batch.messages[-1].cursor) == sent[len(whole) :], size


def test_the_rest_of_a_torn_record_wakes_the_reader(make: Make, base: Path) -> None:
    log, data, _ = written(base, [b"whole", b"x" * 200_000])
    log.chmod(0o600)
    log.write_bytes(data[:1000])
    reader = make()
    (message,) = reader.read({"a": b""}, limit=9, wait=0).messages

    def write() -> None:
        with log.open("ab") as file:
            for at in range(1000, len(data), 7000):
                file.write(data[at : at + 7000])
                file.flush()

    writing = threading.Timer(0.01, write)
    writing.start()
    cursor, deadline = message.cursor, time.monotonic() + 20
    while not (found := reader.read({"a": cursor}, limit=9, wait=20).messages):
        assert time.monotonic() < deadline
    writing.join()
    assert found[0].frame == b"x" * 200_000


def test_a_flipped_bit_costs_its_own_record_only(make: Make, base: Path, caplog: pytest.LogCaptureFixture) -> None:
    sent = [b"one", b"two", b"three"]
    log, data, starts = written(base, sent)
    log.chmod(0o600)
    reader = make()
    for at in range(starts[1], starts[2]):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            log.write_bytes(damaged)
            caplog.clear()
            assert frames(reader) == [b"one", b"three"], (at, bit)
            (entry,) = caplog.records
            assert str(log) in entry.getMessage()
            assert f"byte {starts[1]}" in entry.getMessage()


def test_a_flipped_bit_at_the_end_waits_for_what_follows(make: Make, base: Path) -> None:
    sent = [b"one", b"two", b"three"]
    log, data, starts = written(base, sent)
    log.chmod(0o600)
    reader = make()
    for at in range(starts[1], starts[2]):
        damaged = bytearray(data)
        damaged[at] ^= 1
        log.write_bytes(damaged[: starts[2]])
        batch = reader.read({"a": b""}, limit=9, wait=0)
        assert [message.frame for message in batch.messages] == [b"one"]
        log.write_bytes(damaged)
        assert frames(reader, cursor=batch.messages[-1].cursor) == [b"three"]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_done_to_a_log_no_wrong_message_comes(base: Path, data: st.DataObject) -> None:
    shutil.rmtree(base, ignore_errors=True)
    sent = [b"%d " % n + b"x" * data.draw(st.integers(0, 60)) for n in range(12)]
    log, content, _ = written(base, sent)
    log.chmod(0o600)
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        piece = data.draw(st.binary(max_size=40) | st.just(record.MAGIC) | st.just(bytes(100)))
        match data.draw(st.sampled_from(["over", "insert", "cut", "copy"])):
            case "over":
                damaged[at : at + len(piece)] = piece
            case "insert":
                damaged[at:at] = piece
            case "cut":
                del damaged[at : at + data.draw(st.integers(1, 100))]
            case "copy":
                start = data.draw(st.integers(0, len(content)))
                damaged[at:at] = content[start : start + 150]
    log.write_bytes(damaged)
    logging.getLogger("revolve_assistant").disabled = True
    try:
        with contextlib.closing(Messenger(base)) as reader:
            reader.open()
            found = frames(reader)
    finally:
        logging.getLogger("revolve_assistant").disabled = False
    numbers = [int(frame.partition(b" ")[0]) for frame in found]
    assert numbers == sorted(set(numbers))
    assert all(frame == sent[number] for frame, number in zip(found, numbers, strict=True))


def test_a_copy_of_a_log_inside_a_message_is_not_taken_for_messages(make: Make, base: Path) -> None:
    _, other, _ = written(base, [b"wrong"] * 5, "other")
    log, _, _ = written(base, [b"old"] * 5)
    sent = [b"first", other + log.read_bytes(), b"last"]
    (base / folder.hash_of("a") / log.name).unlink()
    log, data, starts = written(base, sent)
    log.chmod(0o600)
    damaged = bytearray(data)
    damaged[starts[1] + 5] ^= 0xFF
    log.write_bytes(damaged)
    assert frames(make()) == [b"first", b"last"]


def test_a_file_that_was_renamed_gives_nothing(make: Make, base: Path) -> None:
    log, _, _ = written(base, [b"x"])
    log.rename(log.with_name(f"{'0' * 12}.00000"))
    assert frames(make()) == []


def test_files_that_are_not_ours_do_no_harm(make: Make, base: Path) -> None:
    log, _, _ = written(base, [b"x"])
    for name in ("README.txt", "zz.00000", f"{'0' * 12}.99999", f"{'0' * 12}.x", "floor-x", f"{'1' * 12}.00000"):
        (log.parent / name).write_bytes(b"\xf5RVl" * 100)
    reader = make()
    assert frames(reader) == [b"x"]
    reader.forget("a", reader.read({"a": b""}, limit=9, wait=0).messages[-1].cursor)
    assert frames(reader) == []
    reader.forget("a")
    assert not log.parent.exists()


def test_a_torn_end_with_another_segment_after_it_is_passed(make: Make, base: Path) -> None:
    writer, reader = make(), make()
    reader.keep(["a"], seconds=600, cap=1 << 20)
    writer.write([("a", b"1")])
    (message,) = reader.read({"a": b""}, limit=9, wait=0).messages
    with log_of(base).open("ab") as file:
        file.write(b"\xf5RVl half a record")
    writer._writers._close(folder.hash_of("a"))  # type: ignore[union-attr]
    writer.write([("a", b"2")])  # sees at its opening that somebody was at it
    assert frames(reader, cursor=message.cursor) == [b"2"]
    assert frames(make()) == [b"1", b"2"]


def test_a_damaged_lease_is_a_lost_channel(make: Make, base: Path) -> None:
    messenger = make()
    messenger.keep(["a"], seconds=600, cap=1000)
    lease = base / folder.hash_of("a") / "lease"
    data = lease.read_bytes()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        lease.write_bytes(damaged)
        os.utime(lease, (time.time() + 600,) * 2)
        assert make().read({"a": b""}, limit=1, wait=5).lost == {"a"}
    messenger.keep(["a"], seconds=600, cap=1000)
    messenger.write([("a", b"x")])
    assert frames(messenger) == [b"x"]


def test_a_directory_of_a_later_release_says_so(make: Make, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messenger = make()
    with monkeypatch.context() as patch:
        patch.setattr(record, "_VERSION", 2)
        messenger.keep(["a"], seconds=600, cap=1000)
    with pytest.raises(ProtocolError, match="upgrade"):
        messenger.read({"a": b""}, limit=1, wait=0)


# ---- no space


def fill_up(writer: Messenger, at_most: int = 1 << 20) -> tuple[list[bytes], ProviderError]:
    """Write until it fails: what was acknowledged, and the error."""
    done: list[bytes] = []
    try:
        for n in range(0, at_most, 4):
            batch = [b"%d " % i + bytes(3000) for i in range(n, n + 4)]
            writer.write([("a", frame) for frame in batch])
            done += batch
    except ProviderError as error:
        return done, error
    raise AssertionError("it never failed")


def in_order(found: Sequence[bytes]) -> bool:
    numbers = [int(frame.partition(b" ")[0]) for frame in found]
    return numbers == list(range(len(numbers)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if not ROOT or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "x", place], check=False)
    if done.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_an_error_that_names_the_path_and_passes(small_disk: Path, make: Make) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(600_000))
    writer = make(small_disk / "messages")
    reader = make(small_disk / "messages")
    reader.keep(["a"], seconds=600, cap=1 << 30)
    done, error = fill_up(writer)
    assert isinstance(error, Overloaded)
    assert isinstance(error, Unreachable)
    assert str(small_disk / "messages") in str(error)
    assert len(done) > 20
    found = frames(reader)
    assert in_order(found)
    assert len(done) <= len(found) < len(done) + 4  # and perhaps a prefix of the batch that failed
    cursor = reader.read({"a": b""}, limit=len(found), wait=0).messages[-1].cursor
    for _ in range(3):
        with pytest.raises(Overloaded):
            writer.write([("a", bytes(100_000))])
        with pytest.raises(Overloaded):
            reader.keep([f"{n} {time.monotonic_ns()}" for n in range(1000)], seconds=60, cap=1)
    assert frames(reader, cursor=cursor) == []
    ballast.unlink()
    writer.write([("a", b"%d after" % len(found))])
    assert frames(reader, cursor=cursor) == [b"%d after" % len(found)]
    assert in_order(frames(make(small_disk / "messages")))


@pytest.mark.parametrize("cut_back", [True, False])
def test_a_write_that_fails_at_any_byte_is_gone_on_with(
    make: Make, base: Path, monkeypatch: pytest.MonkeyPatch, cut_back: bool
) -> None:
    batch = [b"1", b"22", b"333"]
    size = sum(record.HEADER + len(frame) for frame in batch)
    usual, truncate = os.pwrite, os.ftruncate
    reader, writer = make(), make()
    for limit in range(size):
        reader.forget("a")
        reader.keep(["a"], seconds=600, cap=1 << 20)
        writer.write([("a", b"0")])
        seen: list[Message] = []

        def pwrite(fd: int, data: bytes, offset: int, left: list[int] = [limit]) -> int:  # noqa: B006
            if not left[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            count = usual(fd, data[: left[0]], offset)
            left[0] -= count
            return count

        def ftruncate(fd: int, length: int, seen: list[Message] = seen) -> None:
            seen += reader.read({"a": b""}, limit=9, wait=0).messages  # at the worst moment
            if not cut_back:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            truncate(fd, length)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", pwrite)
            patch.setattr(os, "ftruncate", ftruncate)
            with pytest.raises(Overloaded, match=str(base)):
                writer.write([("a", frame) for frame in batch])
        writer.write([("a", frame) for frame in batch])
        before = [message.frame for message in seen]
        assert before == [b"0", *batch[: len(before) - 1]]
        assert frames(reader, cursor=seen[-1].cursor) == batch, limit
        assert frames(make()) == [*before, *batch], limit


def test_forgetting_makes_room_on_a_full_disk(small_disk: Path, make: Make) -> None:
    writer = make(small_disk / "messages")
    writer.keep(["a"], seconds=600, cap=1 << 18)
    writer.write([("a", bytes(1000))] * 100)
    cursor = writer.read({"a": b""}, limit=1000, wait=0).messages[-1].cursor
    try:
        (small_disk / "ballast").write_bytes(bytes(1 << 20))
    except OSError:
        pass
    with contextlib.suppress(Overloaded):
        writer.forget("a", cursor)
    writer.write([("a", b"x")])
    assert frames(writer, cursor=cursor) == [b"x"]


LIMITED = """
import resource, signal, sys
from revolve_assistant.errors import Overloaded
from revolve_assistant.providers.filesystem import Messenger
base, what, limit = sys.argv[1], getattr(resource, sys.argv[2]), int(sys.argv[3])
messenger = Messenger(base)
messenger.open()
messenger.keep(["a"], seconds=600, cap=1 << 30)
resource.setrlimit(what, (limit, resource.getrlimit(what)[1]))
done = failed = 0
for n in range(0, 100, 4):
    try:
        messenger.write([("a", b"%d " % i + bytes(3000)) for i in range(n, n + 4)])
        done += 4
    except Overloaded as error:
        assert base in str(error), error
        failed += 1
        break
    found = len(messenger.read({"a": b""}, limit=1000, wait=0).messages)
assert failed and done >= 4, (failed, done)
resource.setrlimit(what, (resource.getrlimit(what)[1],) * 2)
found = messenger.read({"a": b""}, limit=1000, wait=0).messages
messenger.write([("a", b"%d after" % len(found))])
messenger.close()
print(done)
"""


def test_the_limit_of_a_files_size_is_no_end(make: Make, base: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(base), "RLIMIT_FSIZE", "50000"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = frames(make())
    assert in_order(found)
    assert found[-1].endswith(b" after")
    assert len(found) > int(done.stdout)


NO_DESCRIPTORS = """
import os, resource, sys
from revolve_assistant.errors import Overloaded
from revolve_assistant.providers.filesystem import Messenger
base = sys.argv[1]
messenger = Messenger(base)
messenger.open()
names = [f"c{n}" for n in range(100)]
messenger.keep(names, seconds=600, cap=1 << 20)
messenger.write([(name, b"0") for name in names[:10]])
messenger.read(dict.fromkeys(names[:10], b""), limit=1000, wait=0)
low = len(os.listdir("/proc/self/fd")) - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (low + 3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
messenger.write([(name, b"1") for name in names])  # does with fewer
assert len(messenger.read(dict.fromkeys(names, b""), limit=1000, wait=0).messages) == 110
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
other = Messenger(base)
for call in (other.open, lambda: messenger.keep(["new"], seconds=60, cap=1)):
    try:
        call()
    except Overloaded as error:
        assert "ulimit" in str(error)
    else:
        raise SystemExit("no error")
for fd in taken:
    os.close(fd)
messenger.keep(["new"], seconds=60, cap=1)
messenger.write([("new", b"x")])
assert len(messenger.read({"new": b""}, limit=9, wait=0).messages) == 1
messenger.close()
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_no_descriptors_left(base: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_DESCRIPTORS, str(base)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# ---- writers that die, and many of them

WRITER = """
import os, sys
from revolve_assistant.providers.filesystem import Messenger
base, who, count = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
messenger = Messenger(base)
messenger.open()
n = 0
while n < count:
    size = 1 + n * 7 % 5
    messenger.write([("a", b"%b %d " % (who, n + i) + bytes(n * 31 % 20_000)) for i in range(size)])
    n += size
    os.write(1, b"%d\\n" % n)
messenger.close()
"""


def writer(base: Path, who: str, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(base), who, str(count)], stdout=subprocess.PIPE)


def test_a_writer_killed_at_any_moment_leaves_a_log_that_can_be_read(make: Make, base: Path) -> None:
    reader = make()
    reader.keep(["a"], seconds=600, cap=1 << 30)
    cursor = b""
    for n in range(12):
        with writer(base, f"w{n}", 10**9) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(1 + n * 13)]  # a moment of its own each time
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read()
        acknowledged = int((b"".join(lines) + rest).rpartition(b"\n")[0].rpartition(b"\n")[2])
        found = []
        while batch := reader.read({"a": cursor}, limit=1000, wait=0).messages:
            found += [message.frame.split(b" ")[:2] for message in batch]
            cursor = batch[-1].cursor
        assert {who for who, _ in found} == {b"w%d" % n}
        numbers = [int(number) for _, number in found]
        assert numbers == list(range(len(numbers)))
        assert acknowledged <= len(numbers) < acknowledged + 10


def test_four_processes_write_to_one_channel(make: Make, base: Path) -> None:
    count = 5000
    reader = make()
    reader.keep(["a"], seconds=600, cap=1 << 30)
    cursor = b""
    numbers: dict[bytes, list[int]] = {}
    with contextlib.ExitStack() as stack:
        for n in range(4):
            child = stack.enter_context(writer(base, f"w{n}", count))
            stack.callback(child.kill)
            assert child.stdout is not None
            threading.Thread(target=child.stdout.read, name="drain").start()
        deadline = time.monotonic() + 50
        while sum(map(len, numbers.values())) < 4 * count:
            assert time.monotonic() < deadline
            for message in reader.read({"a": cursor}, limit=1000, wait=5).messages:
                who, number, _ = message.frame.split(b" ", 2)
                numbers.setdefault(who, []).append(int(number))
                cursor = message.cursor
    assert len(numbers) == 4
    assert all(each[:count] == list(range(count)) for each in numbers.values())


def test_many_writers_that_come_and_go(make: Make, base: Path) -> None:
    reader = make()
    reader.keep(["a"], seconds=600, cap=1 << 20)
    cursor, seen = b"", []
    for n in range(300):
        with contextlib.closing(Messenger(base)) as one:
            one.open()
            one.write([("a", b"%d" % n)])
        if n % 7 == 0:
            for message in reader.read({"a": cursor}, limit=1000, wait=0).messages:
                seen.append(int(message.frame))
                cursor = message.cursor
            reader.forget("a", cursor)
            assert len(list((base / folder.hash_of("a")).iterdir())) < 15
            assert len(cursor) < 200
    seen += map(int, frames(reader, cursor=cursor))
    assert seen == list(range(300))


def test_everybody_makes_renews_and_removes_one_channel_at_once(
    make: Make, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[BaseException] = []
    end = time.monotonic() + 2.0

    def work(own: Messenger, n: int) -> None:
        try:
            while time.monotonic() < end:
                own.keep(["a"], seconds=600, cap=1000 + n)
                own.write([("a", b"x")])
                own.read({"a": b""}, limit=10, wait=0)
                if n == 0:
                    own.forget("a")
                elif n == 1:
                    own._folder.remove(folder.hash_of("a"), only_dead=True)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(make(), n)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    monkeypatch.setattr(folder, "SETTLED", -1.0)  # what could not be removed because somebody was still at it
    monkeypatch.setattr(folder, "SWEEP_EVERY", 0.0)
    make().keep(["a"], seconds=600, cap=1000)
    assert {path.name for path in base.iterdir()} == {"clock", "swept", folder.hash_of("a")}


def test_a_channel_made_anew_while_a_writer_begins(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, other = make(), make()
    other.keep(["a"], seconds=600, cap=1000)
    usual = writing.Writers._opened

    def opened(self: writing.Writers, log: writing._Log) -> int | None:
        monkeypatch.undo()
        other.forget("a")
        other.keep(["a"], seconds=600, cap=1000)
        return usual(self, log)

    monkeypatch.setattr(writing.Writers, "_opened", opened)
    writer.write([("a", b"x")])
    assert frames(other) == [b"x"]
