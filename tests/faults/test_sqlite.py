"""SQLite in hard times: killed processes, locks, forks, clocks, files that are none, and a disk that is full."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant.engine import Outcome, Parcel
from revolve_assistant.errors import Overloaded, ProviderError, Unreachable, UsageError
from revolve_assistant.providers import registry
from revolve_assistant.providers.diagnosis import diagnose
from revolve_assistant.providers.sqlite import database
from revolve_assistant.testing.checks import Aside, eventually
from revolve_assistant.testing.tasks import DONE, NOBODY, submit, take

CHILD = """
import sys
from revolve_assistant.providers import registry
url = sys.argv[1]
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def queues(url: str) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(**options: Any) -> Any:
        queue = registry.engine(url, **options)
        made.append(queue)
        queue.open()
        return queue

    yield make
    for queue in made:
        queue.close()


@pytest.fixture
def messengers(url: str) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(**options: Any) -> Any:
        messenger = registry.messenger(url, **options)
        made.append(messenger)
        messenger.open()
        return messenger

    yield make
    for messenger in made:
        messenger.close()


def child(url: str, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code, url], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# ---- processes that die


def test_what_a_killed_taker_held_is_taken_soon_whatever_its_lease(url: str, queues) -> None:
    giver, taker = queues(), queues()
    submit(giver, Parcel("a", body=b"x"), Parcel("b"))
    holder = child(url, """
queue = registry.engine(url, lease=3600.0)
queue.open()
queue.introduce("it", b"")
print(len(queue.take(["default"], limit=2, wait=5.0)), flush=True)
sys.stdin.read()
""")  # fmt: skip
    assert line(holder) == "2"
    assert list(giver.workers()) == ["it"]
    waiting = Aside(lambda: taker.take(["default"], limit=2, wait=20.0))
    holder.kill()
    holder.communicate()
    leases = waiting.result(10.0, "a waiting take gets what the dead one held")
    assert [(lease.id, lease.body, lease.deliveries) for lease in leases] == [("a", b"x", 2), ("b", b"", 2)]
    assert not giver.workers()
    taker.settle([(lease, DONE) for lease in leases])


def test_a_stopped_process_keeps_what_it_holds(url: str, queues) -> None:
    giver, taker = queues(), queues()
    submit(giver, Parcel("a"))
    holder = child(url, """
queue = registry.engine(url, lease=60.0)
queue.open()
print(len(queue.take(["default"], limit=2, wait=5.0)), flush=True)
sys.stdin.read()
""")  # fmt: skip
    assert line(holder) == "1"
    holder.send_signal(signal.SIGSTOP)
    assert not taker.take(["default"], limit=1, wait=2.5)
    holder.send_signal(signal.SIGCONT)
    holder.communicate()
    assert [lease.id for lease in take(taker, "default")] == ["a"]


def test_a_writer_that_is_killed_leaves_a_whole_file_with_all_that_was_acknowledged(url: str, messengers) -> None:
    reader = messengers()
    for turn in range(3):
        channel = f"log.{turn}"
        reader.keep([channel], seconds=60.0, cap=1 << 30)
        writer = child(url, f"""
messenger = registry.messenger(url)
messenger.open()
n = 0
while True:
    messenger.write([({channel!r}, b"%d" % (n + i) + bytes(500)) for i in range(7)])
    n += 7
    print(n, flush=True)
""")  # fmt: skip
        for _ in range(20):
            acknowledged = int(line(writer))
        writer.kill()
        rest, _ = writer.communicate()
        acknowledged = int(rest.split("\n")[-2]) if rest.count("\n") else acknowledged
        found: list[int] = []
        cursors = {channel: b""}
        while batch := reader.read(cursors, limit=1000, wait=0.0).messages:
            cursors[channel] = batch[-1].cursor
            found += [int(message.frame.partition(b"\0")[0]) for message in batch]
        assert found == list(range(len(found))), "in order, without holes"
        assert len(found) >= acknowledged
        assert len(found) % 7 == 0, "a batch is there whole or not at all"
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_waiting_reader_and_taker_notice_what_a_killed_notifier_left_unsaid(queues, messengers, monkeypatch) -> None:
    giver, taker, writer, reader = queues(), queues(), messengers(), messengers()
    writer.keep(["log"], seconds=60.0, cap=1 << 20)
    for mute in (giver, writer):  # it dies between the commit and the bell
        monkeypatch.setattr(mute._member, "ring", lambda *args: None)
    taking = Aside(lambda: taker.take(["default"], limit=1, wait=20.0))
    reading = Aside(lambda: reader.read({"log": b""}, limit=1, wait=20.0))
    eventually(lambda: taker._member.board.map[taker._member._at + 8] == 2, "it waits")
    submit(giver, Parcel("a"))
    writer.write([("log", b"x")])
    leases = taking.result(8.0, "the take looks by itself")
    assert [message.frame for message in reading.result(8.0, "so does the read").messages] == [b"x"]
    taker.settle([(lease, DONE) for lease in leases])


def test_who_waits_asks_the_file_about_once_a_second(queues, monkeypatch) -> None:
    taker = queues()
    asked: list[str] = []
    rows = taker._line.rows
    monkeypatch.setattr(taker._line, "rows", lambda sql, args=(): (asked.append(sql), rows(sql, args))[1])
    assert not taker.take(["default"], limit=1, wait=2.5)
    assert len(asked) <= 10, asked


# ---- forks, threads


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_both_sides_of_a_fork_go_on(queues, messengers) -> None:
    queue, messenger = queues(), messengers()
    messenger.keep(["log"], seconds=60.0, cap=1 << 20)
    submit(queue, Parcel("before"))
    taken = take(queue, "default")
    busy = threading.Event()
    over = threading.Event()

    def work() -> None:
        n = 0
        while not over.is_set():
            messenger.write([("log", b"parent")])
            n += 1
            busy.set()

    working = threading.Thread(target=work)
    working.start()
    assert busy.wait(10)
    children = []
    for number in range(4):
        pid = os.fork()
        if not pid:
            try:
                submit(queue, Parcel(f"child.{number}"))
                messenger.write([("log", b"child")] * 10)
                assert queue.state(["before"]) == {"before": "running"}
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    over.set()
    working.join()
    queue.settle([(taken[0], DONE)])
    leases = take(queue, "default", 4, limit=4)
    assert {lease.id for lease in leases} == {f"child.{n}" for n in range(4)}
    queue.settle([(lease, DONE) for lease in leases])
    cursors, count = {"log": b""}, 0
    while batch := messenger.read(cursors, limit=1000, wait=0.0).messages:
        cursors["log"] = batch[-1].cursor
        count += sum(message.frame == b"child" for message in batch)
    assert count == 40
    with closing(sqlite3.connect(queue.place.path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# ---- the clock


def test_a_clock_that_is_set_moves_neither_leases_nor_delays_nor_channels(queues, messengers, monkeypatch) -> None:
    giver, taker, messenger = queues(), queues(lease=20.0), messengers()
    if giver._line.clock._offset is None:
        pytest.skip("no clock here counts from the boot")
    submit(giver, Parcel("a"), Parcel("late", delay=0.3))
    messenger.keep(["log"], seconds=60.0, cap=1 << 20)
    lease = take(taker, "default")[0]
    real = time.time
    for jump in (86400.0, -86400.0):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        assert not giver.take(["default"], limit=1, wait=0.0) or jump > 0, "its lease lasts"
        assert giver.state(["a"]) == {"a": "running"}
        assert not messenger.read({"log": b""}, limit=1, wait=0.0).lost
    late = take(giver, "default")[0] if giver.state(["late"])["late"] == "queued" else None
    assert late is None or late.id == "late"
    taker.settle([(lease, DONE)])


# ---- files that are none, or somebody's


def test_a_locked_file_is_said_and_used_once_it_is_free(url: str, queues) -> None:
    queue = queues(timeout=0.2)
    other = sqlite3.connect(queue.place.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unreachable, match=r"is locked: another program has written to it for more than 0\.2 s"):
        submit(queue, Parcel("a"))
    assert queue.state(["a"]) == {"a": "unknown"}, "reading goes on"
    other.execute("COMMIT")
    other.close()
    submit(queue, Parcel("a"))
    queue.settle([(take(queue, "default")[0], DONE)])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"some text, long enough to be looked at as if it were a header" * 20, "is no SQLite database"),
        ("CREATE TABLE theirs(x)", "is a database of another program"),
        ("PRAGMA application_id = 1383481715; PRAGMA user_version = 99", "was made by a newer release"),
    ],
)
def test_what_is_not_ours_is_left_alone(url: str, tmp_path: Path, content: bytes | str, says: str) -> None:
    path = tmp_path / "jobs.db"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with closing(sqlite3.connect(path)) as db:
            db.executescript(content)
    before = path.read_bytes()
    for made in (registry.engine(url), registry.messenger(url)):
        with pytest.raises(ProviderError, match=says):
            made.open()
        made.close()
    assert any(one.level == "wrong" and says in one.text for one in diagnose(url))
    assert path.read_bytes() == before


def test_a_damaged_file_is_said(url: str, tmp_path: Path, queues) -> None:
    queue = queues()
    submit(queue, *[Parcel(f"{n}", body=bytes(3000)) for n in range(200)])
    queue.close()
    path = tmp_path / "jobs.db"
    data = bytearray(path.read_bytes())
    data[4096 * 2 :] = os.urandom(len(data) - 4096 * 2)
    path.write_bytes(data)
    again = registry.engine(url)

    def use() -> None:
        again.open()
        again.take(["default"], limit=100, wait=0.0)

    with pytest.raises(ProviderError, match="is damaged"):
        use()
    again.close()
    assert any(one.level == "wrong" and "is damaged" in one.text for one in diagnose(url))


def test_places_that_cannot_be(tmp_path: Path, monkeypatch) -> None:
    missing = registry.engine(f"sqlite:///{tmp_path}/no/jobs.db")
    with pytest.raises(ProviderError, match="make that folder first"):
        missing.open()
    (tmp_path / "folder.db").mkdir()
    folder = registry.engine(f"sqlite:///{tmp_path}/folder.db")
    with pytest.raises(ProviderError, match="cannot be opened"):
        folder.open()
    monkeypatch.setattr(database, "is_network", lambda fd: True)
    shared = registry.engine(f"sqlite:///{tmp_path}/shared.db")
    with pytest.raises(UsageError, match="network file system"):
        shared.open()
    assert not (tmp_path / "shared.db").exists()
    local = registry.engine(f"sqlite:///{tmp_path}/shared.db", network="no")
    local.open()
    local.close()


@pytest.mark.parametrize(
    "address",
    ["sqlite://jobs.db", "sqlite:///", "sqlite:///:memory:", "sqlite:///a.db?synchronous=maybe", "sqlite:///a?x=1"],
)
def test_addresses_that_are_none(address: str) -> None:
    for build in (registry.engine, registry.messenger):
        with pytest.raises(UsageError):
            build(address)


def test_a_file_that_may_only_be_read_is_said(url: str, tmp_path: Path, queues) -> None:
    queues().close()
    os.chmod(tmp_path / "jobs.db", 0o444)
    for each in [tmp_path, *tmp_path.parents]:
        if each != Path("/") and each.stat().st_uid == os.getuid() and "pytest" in str(each):
            os.chmod(each, 0o755)
    code = """
import os
from revolve_assistant.errors import ProviderError
queue = registry.engine(url)
queue.__class__, registry.messenger(url)
if os.getuid() == 0:
    os.setuid(65534)
try:
    queue.open()
    print("opened")
except ProviderError as error:
    print(error)
"""
    said = child(url, code).communicate()[0]
    assert "cannot be written to" in said or "cannot be opened" in said, said


def test_a_full_disk_is_said_and_nothing_was_changed(queues) -> None:
    queue = queues()
    pages = queue._line.ready().execute("PRAGMA page_count").fetchone()[0]
    queue._line.ready().execute(f"PRAGMA max_page_count = {pages + 20}")
    with pytest.raises(Overloaded, match="no space is left"):
        submit(queue, *[Parcel(f"{n}", body=bytes(3000)) for n in range(200)])
    assert set(queue.state([f"{n}" for n in range(200)]).values()) == {"unknown"}
    submit(queue, Parcel("small"))
    queue._line.ready().execute("PRAGMA max_page_count = 1000000")
    submit(queue, *[Parcel(f"{n}", body=bytes(3000)) for n in range(200)])
    assert len(queue.take(["default"], limit=1000, wait=0.0)) == 201


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "small", str(mount)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("may not mount")
    try:
        queue = registry.engine(f"sqlite:///{mount}/jobs.db")
        queue.open()

        def fill() -> None:
            for n in range(100):
                submit(queue, Parcel(f"{n}", body=bytes(30_000)))

        with pytest.raises((Overloaded, Unreachable), match=r"full|space"):
            fill()
        subprocess.run(["mount", "-o", "remount,size=8m", str(mount)], check=True)
        held = queue.take(["default"], limit=1000, wait=0.0)
        assert [lease.id for lease in held] == [f"{n}" for n in range(len(held))], "what was acknowledged is there"
        queue.settle([(lease, DONE) for lease in held])
        submit(queue, Parcel("more"))
        assert [lease.id for lease in queue.take(["default"], limit=10, wait=0.0)] == ["more"]
        queue.close()
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_file_that_was_moved_away_is_made_anew(url: str, tmp_path: Path, queues, monkeypatch) -> None:
    monkeypatch.setattr(database, "LOOK", 0.0)
    queue = queues()
    submit(queue, Parcel("a"))
    for each in tmp_path.glob("jobs.db*"):
        if each.is_file():
            each.rename(tmp_path / f"old-{each.name}")
    submit(queue, Parcel("b"))
    leases = queue.take(["default"], limit=10, wait=0.0)
    assert [lease.id for lease in leases] == ["b"]
    queue.settle([(leases[0], DONE)])


# ---- what is kept, and for whom


def test_only_this_user_may_open_it(tmp_path: Path, queues) -> None:
    old = os.umask(0)
    try:
        queue = queues()
        submit(queue, Parcel("a"))
        modes = {each.name: each.stat().st_mode & 0o777 for each in tmp_path.rglob("jobs.db*")}
    finally:
        os.umask(old)
    assert modes["jobs.db"] == modes["jobs.db-wal"] == 0o600
    assert modes["jobs.db-bells"] == 0o700


@pytest.mark.parametrize(("level", "number"), [(None, 1), ("off", 0), ("full", 2)])
def test_how_much_a_power_cut_takes_is_as_it_was_said(queues, level: str | None, number: int) -> None:
    queue = queues(**({"synchronous": level} if level else {}))
    assert queue._line.ready().execute("PRAGMA synchronous").fetchone() == (number,)
    assert queue._line.ready().execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_file_stays_as_large_as_what_is_in_it(tmp_path: Path, queues, messengers, monkeypatch) -> None:
    queue, messenger = queues(most_buried=10), messengers()
    sizes = []
    for turn in range(6):
        channels = [f"{turn}.{n}" for n in range(20)]
        messenger.keep(channels, seconds=0.05, cap=1 << 20)
        messenger.write([(channel, bytes(1000)) for channel in channels for _ in range(50)])
        queue.submit([Parcel(f"{turn}.{n}", body=bytes(5000)) for n in range(100)], NOBODY)
        leases = queue.take(["default"], limit=100, wait=0.0)
        queue.settle([(lease, Outcome("bury") if n % 2 else DONE) for n, lease in enumerate(leases)])
        eventually(lambda: messenger.read({"none": b""}, limit=1, wait=0.05) and _swept(messenger), "it is swept")
        queue._line.ready().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        sizes.append((tmp_path / "jobs.db").stat().st_size)
    assert len(queue.buried(limit=1000)) == 10
    assert sizes[-1] <= 1.2 * sizes[0], sizes
    db = queue._line.ready()
    for table in ("message", "channel", "gone", "large", "task"):
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


def test_pages_that_became_free_are_given_back_to_the_system(tmp_path: Path, messengers) -> None:
    messenger = messengers()
    messenger.keep(["log"], seconds=60.0, cap=1 << 30)
    for _ in range(40):
        messenger.write([("log", bytes(1 << 20))])
    messenger._line.ready().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    large = (tmp_path / "jobs.db").stat().st_size
    messenger.forget("log")
    eventually(lambda: _swept(messenger) and _spare(messenger) <= 4096, "it is made smaller")
    messenger._line.ready().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert (tmp_path / "jobs.db").stat().st_size < large / 2


def _spare(messenger: Any) -> int:
    count: int = messenger._line.ready().execute("PRAGMA freelist_count").fetchone()[0]
    return count


def test_threads_that_find_the_same_dead_one_recover_it_once(url: str, queues) -> None:
    giver, one, other = queues(), queues(), queues()
    submit(giver, Parcel("a"))
    holder = child(url, """
queue = registry.engine(url, lease=3600.0)
queue.open()
print(len(queue.take(["default"], limit=2, wait=5.0)), flush=True)
sys.stdin.read()
""")  # fmt: skip
    assert line(holder) == "1"
    slots = list(giver._member.board.map[72 : 72 + 64 * 16 : 64])
    holder.kill()
    holder.communicate()
    dead = one._member.dead()
    assert len(dead) == 1
    assert other._member.dead() == {}, "another thread is at it"
    one._member.board.bury(dead, False)
    assert other._member.dead() == dead, "that one could not"
    other._member.board.bury(dead, True)
    assert giver._member.dead() == {}
    assert sum(state > 0 for state in slots) == 1 + sum(
        state > 0 for state in giver._member.board.map[72 : 72 + 64 * 16 : 64]
    )


def _swept(messenger: Any) -> bool:
    messenger._looked = 0.0
    messenger._look_around(messenger._joined())
    return not messenger._line.rows("SELECT 1 FROM channel UNION SELECT 1 FROM gone")


def test_a_body_of_50_mb_passes_and_is_not_written_again_at_each_heartbeat(tmp_path: Path, queues) -> None:
    queue = queues()
    body = os.urandom(1 << 20) * 50
    submit(queue, Parcel("large", body=body))
    lease = take(queue, "default")[0]
    assert lease.body == body
    queue._line.ready().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for _ in range(10):
        queue.extend([lease])
    assert (tmp_path / "jobs.db-wal").stat().st_size < 1 << 20
    queue.settle([(lease, Outcome("release"))])
    lease = take(queue, "default")[0]
    assert lease.body == body
    queue.settle([(lease, DONE)])
    with pytest.raises(UsageError, match="more than the 67,108,864"):
        submit(queue, Parcel("too large", body=bytes((64 << 20) + 1)))


def test_namespaces_do_not_see_each_other(url: str, queues) -> None:
    one, other = queues(), queues(namespace="other")
    submit(one, Parcel("a", unique="key"))
    assert submit(other, Parcel("a", unique="key", body=b"other")) == {}
    assert [lease.body for lease in other.take(["default"], limit=10, wait=0.0)] == [b"other"]
    assert one.state(["a"]) == {"a": "queued"}


# ---- the doctor


def test_the_doctor_says_how_it_is(url: str, tmp_path: Path, queues) -> None:
    found = diagnose(url)
    assert any("not there yet" in one.text for one in found)
    assert not list(tmp_path.iterdir()), "it makes nothing"
    queue = queues()
    submit(queue, Parcel("a"), Parcel("b"))
    take(queue, "default")
    found = diagnose(url)
    assert not [one for one in found if one.level == "wrong"], found
    assert any("1 tasks wait, 1 are taken" in one.text for one in found)
    assert any("synchronous=normal" in one.text for one in found)
    os.chmod(tmp_path / "jobs.db", 0o644)
    assert any(one.level == "note" and "chmod 600" in one.text for one in diagnose(url))
    assert any(one.level == "note" and "power cut may damage" in one.text for one in diagnose(url + "?synchronous=off"))
