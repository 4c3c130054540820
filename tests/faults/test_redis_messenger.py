"""The Redis Messenger when servers die, come back with less, forget, fill up and fall silent."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from revolve_assistant.errors import ClientClosed, Overloaded, ProviderError, Unreachable, UsageError
from revolve_assistant.messenger import Messenger
from revolve_assistant.providers import registry
from revolve_assistant.testing import Door
from revolve_assistant.testing.checks import Aside, entered, eventually
from revolve_assistant.testing.servers import Redis

WAIT = 30.0  # seconds that nothing here should take
NOTICED = 4.0  # seconds within which a reader that waits says that a channel is gone: it looks every 2
MB = 1 << 20
Made = Callable[..., Messenger]


@pytest.fixture
def server(need: Any) -> Iterator[Redis]:
    need("redis-server")
    with Redis() as server:
        yield server


@pytest.fixture
def made() -> Iterator[Made]:
    """`made(server or door, …)`: a messenger, opened, and closed at the end."""
    with contextlib.ExitStack() as stack:

        def made(place: Any, **options: Any) -> Messenger:
            messenger = registry.messenger(f"redis://127.0.0.1:{place.port}", **options)
            stack.callback(messenger.close)
            messenger.open()
            return messenger

        yield made


class Reading:
    """What came out of a channel so far, without what came twice: frames begin with their number and a blank."""

    def __init__(self, messenger: Messenger, channel: str = "a") -> None:
        self.messenger, self.channel = messenger, channel
        self.cursor = b""
        self.frames: list[bytes] = []
        self.lost = False

    def once(self, wait: float = 0.5, limit: int = 1000) -> int:
        batch = self.messenger.read({self.channel: self.cursor}, limit=limit, wait=wait)
        self.lost = bool(batch.lost)
        for message in batch.messages:
            self.cursor = message.cursor
            if message.frame not in self.frames[-2000:]:
                self.frames.append(message.frame)
        return len(batch.messages)

    def until(self, done: Callable[[], object], seconds: float = WAIT) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"{len(self.frames)} frames, the last {self.frames[-1:]}"
            with contextlib.suppress(Unreachable):
                self.once()


def keep(messenger: Messenger, *channels: str, seconds: float = 60.0, cap: int = 8 * MB) -> None:
    messenger.keep(channels or ["a"], seconds=seconds, cap=cap)


def key(channel: str) -> str:
    return f"{{assistant}}:m:{channel}"


def patiently(call: Callable[[], Any]) -> Any:
    """Call again while the server is away, as clients and workers do."""

    def attempt() -> Any:
        try:
            return (call(),)
        except Unreachable:
            threading.Event().wait(0.02)
            return None

    return eventually(attempt, "the server answers", within=WAIT)[0]


def every_call(messenger: Messenger, cursor: bytes = b"") -> list[Callable[[], object]]:
    return [
        lambda: messenger.write([("a", b"2")]),
        lambda: messenger.read({"a": cursor}, limit=1, wait=5),
        lambda: keep(messenger),
        lambda: messenger.forget("a"),
        lambda: messenger.forget("a", cursor or None),
    ]


def listens(server: Redis, channel: str, count: int = 1) -> bool:
    """Whether so many readers hear a channel."""
    return f":{count}\r\n" in server.ask("PUBSUB", "NUMSUB", key(channel))


# ---- servers that are not there, and that come back


def test_a_server_that_is_not_there_is_unreachable_at_once(server: Redis) -> None:
    server.kill()
    messenger = registry.messenger(server.url)
    began = time.monotonic()
    with pytest.raises(Unreachable, match=f"127.0.0.1:{server.port}: nothing listens there: start it"):
        messenger.open()
    assert time.monotonic() - began < 2
    messenger.close()


def test_a_server_that_was_killed_is_unreachable_and_then_its_channels_are_lost(server: Redis, made: Made) -> None:
    messenger = made(server)
    keep(messenger)
    messenger.write([("a", b"1")])
    reading = Reading(messenger)
    reading.once()
    waiting = entered(lambda: messenger.read({"a": reading.cursor}, limit=1, wait=WAIT))
    eventually(lambda: listens(server, "a"), "it hears")
    server.kill()
    with pytest.raises(Unreachable):
        waiting.result(2, "who waits is told")
    for call in every_call(messenger, reading.cursor):
        began = time.monotonic()
        with pytest.raises(Unreachable, match=f"redis at 127.0.0.1:{server.port}"):
            call()
        assert time.monotonic() - began < 2
    server.start()
    assert messenger.read({"a": reading.cursor}, limit=1, wait=5).lost == {"a"}
    messenger.write([("a", b"to nobody")])
    keep(messenger)
    messenger.write([("a", b"3")])
    assert messenger.read({"a": reading.cursor}, limit=1, wait=5).lost == {"a"}
    again = Reading(messenger)
    again.once()
    assert again.frames == [b"3"]


def test_a_restart_between_two_requests_is_not_even_noticed(server: Redis, made: Made) -> None:
    messenger = made(server)
    keep(messenger)
    server.restart()
    keep(messenger)
    server.restart()
    assert messenger.read({"a": b""}, limit=1, wait=0).lost == {"a"}
    server.restart()
    messenger.write([("a", b"x")])


@pytest.mark.timeout(120)
def test_with_a_log_on_its_disk_crashes_under_load_lose_nothing(need: Any, made: Made) -> None:
    need("redis-server")
    with Redis("--appendonly", "yes", "--appendfsync", "always") as server:
        writer, reading, stop = made(server), Reading(made(server)), threading.Event()
        sent = 0
        keep(writer, cap=64 * MB)

        def write() -> None:
            nonlocal sent
            while not stop.is_set():
                batch = [("a", b"%d " % (sent + n)) for n in range(5)]
                patiently(lambda batch=batch: writer.write(batch))  # type: ignore[misc]
                sent += 5

        writing = Aside(write)
        try:
            for _ in range(4):
                before = len(reading.frames)
                reading.until(lambda before=before: len(reading.frames) > before + 300)  # type: ignore[misc]
                server.restart()
        finally:
            stop.set()
        writing.result(WAIT, "it ends")
        reading.until(lambda: len(reading.frames) >= sent)
        assert not reading.lost
        assert [int(frame) for frame in reading.frames] == list(range(sent))


def test_what_an_old_snapshot_does_not_have_is_neither_read_nor_cut_amidst(need: Any, made: Made) -> None:
    """The server is back with less than was read, and others have written since: where messages ended, none does."""
    need("redis-server")
    with Redis("--save", "3600 1") as server:
        writer, reader = made(server), made(server)
        keep(writer, "a", "b")
        writer.write([("a", b"0 first"), ("b", b"0 first")])
        assert server.ask("SAVE").startswith("+OK")
        writer.write([(channel, b"%d " % n + os.urandom(200)) for n in range(1, 9) for channel in ("a", "b")])
        reading = Reading(reader)
        reading.until(lambda: len(reading.frames) == 9)
        cursors = [reader.read({"b": b""}, limit=n, wait=1).messages[-1].cursor for n in range(1, 10)]
        server.restart()
        sent = [b"%d " % n + os.urandom(131 + n) for n in range(100, 130)]
        writer.write([(channel, frame) for frame in sent for channel in ("a", "b")])
        for cursor in cursors[1:]:
            writer.forget("b", cursor)  # of messages that the server does not know
            found = made(server).read({"b": cursor}, limit=100, wait=1).messages
            assert [message.frame for message in found] == [b"0 first", *sent]
        writer.forget("b", cursors[0])
        assert [message.frame for message in reader.read({"b": b""}, limit=100, wait=1).messages] == sent
        reading.until(lambda: len(reading.frames) == 39)
        assert reading.frames[9:] == sent


# ---- what is gone


GONE: dict[str, Callable[[Redis], object]] = {
    "flushed": lambda server: server.ask("FLUSHALL"),
    "evicted or deleted by others": lambda server: server.ask("DEL", key("a")),
    "expired": lambda server: server.ask("PEXPIRE", key("a"), "100"),
    "made again": lambda server: (server.ask("DEL", key("a")), server.ask("SET", key("a"), "x" * 20)),
}


@pytest.mark.parametrize("how", GONE)
def test_what_is_gone_is_lost_also_to_who_waits(server: Redis, made: Made, how: str) -> None:
    messenger = made(server)
    keep(messenger, "a", "other")
    messenger.write([("a", b"1")])
    reading = Reading(messenger)
    reading.once()
    waiting = entered(lambda: messenger.read({"a": reading.cursor, "other": b""}, limit=1, wait=WAIT))
    eventually(lambda: listens(server, "other"), "it hears")
    GONE[how](server)
    batch = waiting.result(NOTICED, "it is told")
    assert "a" in batch.lost
    assert batch.messages == []


def test_forgetting_and_making_again_between_two_reads_is_a_loss(server: Redis, made: Made) -> None:
    writer, reading = made(server), Reading(made(server))
    keep(writer)
    writer.write([("a", b"1")])
    reading.once()
    waiting = entered(lambda: reading.messenger.read({"a": reading.cursor}, limit=1, wait=WAIT))
    eventually(lambda: listens(server, "a"), "it hears")
    writer.forget("a")
    assert waiting.result(1, "it is told at once").lost == {"a"}
    keep(writer)
    writer.write([("a", b"2")])
    reading.once()
    assert reading.lost


def test_what_a_server_throws_away_is_lost_and_no_reader_hangs(need: Any, made: Made) -> None:
    need("redis-server")
    with Redis("--maxmemory", "6mb", "--maxmemory-policy", "allkeys-lru") as server:
        messenger = made(server)
        names = [f"c{n}" for n in range(60)]
        for name in names:
            keep(messenger, name)
            messenger.write([(name, b"%d " % n + bytes(20_000)) for n in range(10)])
        cursors, lost = dict.fromkeys(names, b""), set()
        counts = dict.fromkeys(names, 0)
        while cursors:
            batch = messenger.read(cursors, limit=100, wait=0.2)
            lost |= batch.lost
            for message in batch.messages:
                assert message.frame.startswith(b"%d " % counts[message.channel])
                counts[message.channel] += 1
                cursors[message.channel] = message.cursor
            cursors = {name: cursors[name] for name in cursors if name not in batch.lost and counts[name] < 10}
        assert 0 < len(lost) < 60
        assert len(lost) + sum(count == 10 for count in counts.values()) == 60


def test_a_full_server_says_so_and_what_was_read_makes_room(server: Redis, made: Made) -> None:
    writer, reading = made(server), Reading(made(server))
    keep(writer, cap=64 * MB)
    used = int(server.ask("INFO", "memory").partition("used_memory:")[2].split()[0])
    server.ask("CONFIG", "SET", "maxmemory", str(used + 3 * MB))
    counted = itertools.count()

    def fill() -> None:
        while True:
            writer.write([("a", b"%d " % next(counted) + bytes(20_000))])

    with pytest.raises(Overloaded, match="is full: its maxmemory is used up"):
        fill()
    written = next(counted) - 1
    with pytest.raises(Overloaded):
        keep(writer, "new")
    keep(writer, cap=64 * MB)  # to renew needs no room
    reading.until(lambda: len(reading.frames) == written)
    writer.forget("a", reading.cursor)
    writer.write([("a", b"%d " % written)])
    reading.until(lambda: len(reading.frames) == written + 1)
    assert not reading.lost
    with pytest.raises(Overloaded):
        fill()
    writer.forget("a")
    keep(writer, "new")


# ---- silence


@pytest.mark.parametrize("what", ["server", "network"])
def test_silence_ends_in_time_and_nothing_stale_is_heard_afterwards(server: Redis, made: Made, what: str) -> None:
    with Door(server.port) as door:
        messenger = made(door, timeout=0.4)
        keep(messenger, "a", "b")
        messenger.write([("a", b"1"), ("b", b"other")])
        reading = Reading(messenger)
        reading.once()
        server.freeze() if what == "server" else door.swallow()
        for call in (
            lambda: messenger.write([("a", b"2")]),
            lambda: messenger.read({"b": b""}, limit=1, wait=5),
            lambda: keep(messenger),
        ):
            began = time.monotonic()
            with pytest.raises(Unreachable, match="no answer in time"):
                call()
            assert 0.3 < time.monotonic() - began < 1.5
        server.thaw() if what == "server" else door.heal()
        if what == "network":
            door.cut()
        messenger.write([("a", b"3")])
        reading.until(lambda: reading.frames[-1:] == [b"3"])
        assert reading.frames in ([b"1", b"3"], [b"1", b"2", b"3"])
        assert messenger.read({"b": b""}, limit=1, wait=1).messages[0].frame == b"other"


def test_a_reader_that_waits_notices_a_silent_network(server: Redis, made: Made) -> None:
    with Door(server.port) as door:
        messenger = made(door, timeout=0.5)
        keep(messenger)
        waiting = entered(lambda: messenger.read({"a": b""}, limit=1, wait=WAIT))
        eventually(lambda: listens(server, "a"), "it hears")
        door.swallow()
        with pytest.raises(Unreachable, match="no answer in time"):
            waiting.result(NOTICED, "it is told")


def test_closing_does_not_wait_for_a_frozen_server(server: Redis, made: Made) -> None:
    messenger = made(server, timeout=WAIT)
    keep(messenger)
    server.freeze()
    busy = [entered(call) for call in every_call(messenger)[:2]]
    eventually(messenger._writing.locked, "it writes")  # type: ignore[attr-defined]
    began = time.monotonic()
    messenger.close()
    for each in busy:
        with pytest.raises((ClientClosed, Unreachable)):
            each.result(2, "it ends")
    assert time.monotonic() - began < 2


# ---- sizes


def test_fifty_megabytes_go_through_and_more_than_is_said_is_refused(server: Redis, made: Made) -> None:
    writer, reader = made(server), made(server)
    keep(writer, cap=256 * MB)
    hearing = entered(lambda: reader.read({"a": b""}, limit=10, wait=WAIT))
    eventually(lambda: listens(server, "a"), "it hears")
    large = os.urandom(MB) * 50
    writer.write([("a", large)])
    batch = hearing.result(WAIT, "it comes")
    assert batch.messages[0].frame == large
    with pytest.raises(UsageError, match="more than the 67,108,864"):
        writer.write([("a", b"small"), ("a", bytes((64 << 20) + 1))])
    assert reader.read({"a": batch.messages[0].cursor}, limit=10, wait=0).messages == []


def test_the_log_of_a_task_that_is_done_is_small(server: Redis, made: Made) -> None:
    """Two messages of 200 bytes: what a million of them take is a million times this."""
    messenger = made(server)
    names = [f"t.{os.urandom(8).hex()}" for _ in range(500)]
    keep(messenger, *names)
    for _ in range(2):
        messenger.write([(name, os.urandom(200)) for name in names])
    keep(messenger, *names, seconds=30.0)
    sizes = [int(server.ask("MEMORY", "USAGE", key(name))[1:]) for name in names]
    assert max(sizes) < 700


def test_any_error_is_one_of_ours(server: Redis, made: Made) -> None:
    messenger = made(server)
    server.ask("LPUSH", key("a"), "somebody else's")
    for call in every_call(messenger, b"incarnat000000")[:3]:
        with pytest.raises(ProviderError, match="another program uses our names"):
            call()
    messenger.forget("a")
    keep(messenger)
    messenger.write([("a", b"1")])
