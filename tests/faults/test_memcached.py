"""The memcached Messenger when servers die, fill up and forget, networks fail, and writers are killed half-way."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from revolve_assistant.errors import AssistantError, Overloaded, ProtocolError, Unreachable, UsageError
from revolve_assistant.providers.memcached import Messenger
from revolve_assistant.providers.memcached.server import Server
from revolve_assistant.testing import Door
from revolve_assistant.testing.servers import Memcached

WAIT = 20.0  # seconds that nothing here should take


@pytest.fixture
def server(need: Callable[[str], str]) -> Iterator[Memcached]:
    need("memcached")
    with Memcached() as server:
        yield server


@pytest.fixture
def made(server: Memcached) -> Iterator[Callable[..., Messenger]]:
    """`made(port, **options)`: an opened messenger on the server, or on what stands before it."""
    with contextlib.ExitStack() as stack:

        def made(port: int | None = None, **options: Any) -> Messenger:
            messenger = Messenger([(server.host, port or server.port)], **{"timeout": 2.0, **options})
            stack.callback(messenger.close)
            messenger.open()
            return messenger

        yield made


class Reading:
    """What came out of a channel so far, read with one cursor."""

    def __init__(self, messenger: Messenger, channel: str = "a") -> None:
        self.messenger, self.channel = messenger, channel
        self.cursor = b""
        self.frames: list[bytes] = []
        self.lost = False

    def once(self, wait: float = 0.5, limit: int = 1000) -> int:
        batch = self.messenger.read({self.channel: self.cursor}, limit=limit, wait=wait)
        self.lost = bool(batch.lost)
        for message in batch.messages:
            self.frames.append(message.frame)
            self.cursor = message.cursor
        return len(batch.messages)

    def until(self, done: Callable[[], object], seconds: float = WAIT) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"{len(self.frames)} frames, the last {self.frames[-1:]}"
            self.once()


def forever(call: Callable[[], object]) -> None:
    while True:
        call()


def program(body: str, *args: object) -> subprocess.Popen[bytes]:
    head = "import os, signal, sys\nfrom revolve_assistant.providers.memcached import Messenger, server\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(body), *map(str, args)], stdout=subprocess.PIPE
    )


def ended(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(WAIT)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# ---- the server


def test_a_server_that_was_killed_is_unreachable_and_then_its_channels_are_lost(server, made):
    messenger, reading = made(), None
    messenger.keep(["a"], seconds=60, cap=1 << 20)
    messenger.write([("a", b"1")])
    reading = Reading(messenger)
    reading.once()
    server.kill()
    for call in (
        lambda: messenger.write([("a", b"2")]),
        lambda: messenger.read({"a": reading.cursor}, limit=1, wait=5),
        lambda: messenger.keep(["a"], seconds=60, cap=1 << 20),
        lambda: messenger.forget("a"),
    ):
        began = time.monotonic()
        with pytest.raises(Unreachable, match=f"memcached at 127.0.0.1:{server.port}: connection refused"):
            call()
        assert time.monotonic() - began < 2
    server.start()
    assert messenger.read({"a": reading.cursor}, limit=1, wait=5).lost == {"a"}
    messenger.write([("a", b"to nobody")])
    messenger.keep(["a"], seconds=60, cap=1 << 20)
    messenger.write([("a", b"3")])
    assert messenger.read({"a": reading.cursor}, limit=1, wait=5).lost == {"a"}
    again = Reading(messenger)
    again.once()
    assert again.frames == [b"3"]


def test_a_restart_between_two_requests_is_not_even_noticed(server, made):
    messenger = made()
    messenger.keep(["a"], seconds=60, cap=1 << 20)
    server.restart()
    messenger.keep(["a"], seconds=60, cap=1 << 20)
    server.restart()
    assert messenger.read({"a": b""}, limit=1, wait=0).lost == {"a"}
    server.restart()
    messenger.write([("a", b"x")])


def test_restarts_under_load_are_losses_said_and_never_disorder(server, made):
    writer, reading, stop = made(), Reading(made()), threading.Event()
    sent = [0]
    writer.keep(["a"], seconds=60, cap=8 << 20)

    def write() -> None:
        while not stop.is_set():
            with contextlib.suppress(Unreachable):
                writer.write([("a", b"%d" % (sent[0] + n)) for n in range(5)])
            sent[0] += 5

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(4):
            before = len(reading.frames)
            reading.until(lambda before=before: len(reading.frames) > before + 200)
            server.restart()
            deadline = time.monotonic() + WAIT
            while not reading.lost:
                assert time.monotonic() < deadline
                with contextlib.suppress(Unreachable):
                    reading.once()
            reading.messenger.keep(["a"], seconds=60, cap=8 << 20)
            reading.cursor = b""
    finally:
        stop.set()
        thread.join(WAIT)
    numbers = [int(frame) for frame in reading.frames]
    assert numbers == sorted(set(numbers))


def test_flush_all_is_a_lost_channel(server, made):
    messenger, reading = made(), Reading(made())
    messenger.keep(["a"], seconds=60, cap=1 << 20)
    messenger.write([("a", b"1")])
    reading.once()
    waiting: list[Any] = []
    thread = threading.Thread(
        target=lambda: waiting.append(reading.messenger.read({"a": reading.cursor}, limit=1, wait=WAIT))
    )
    thread.start()
    plain = Server(*server.address, account=None, timeout=2)
    with contextlib.suppress(ProtocolError):
        plain.ask([b"flush_all\r\n"])
    plain.close()
    thread.join(WAIT)
    assert waiting[0].lost == {"a"}


def test_eviction_costs_messages_and_neither_order_nor_the_reader(need):
    need("memcached")
    with Memcached("-m", "2") as server:
        messenger = Messenger([server.address], timeout=5)
        messenger.open()
        messenger.keep(["a"], seconds=600, cap=64 << 20)
        for n in range(400):
            messenger.write([("a", b"%d " % n + bytes(20_000))])
        reading = Reading(messenger)
        reading.until(lambda: reading.lost or (reading.frames and reading.frames[-1].startswith(b"399 ")))
        numbers = [int(frame.partition(b" ")[0]) for frame in reading.frames]
        assert numbers == sorted(set(numbers))
        assert reading.lost or 0 < len(numbers) < 400
        messenger.close()


def test_a_full_server_says_so_and_goes_on_when_there_is_room(need):
    need("memcached")
    with Memcached("-m", "4", "-M") as server:
        messenger = Messenger([server.address], timeout=5)
        messenger.open()
        messenger.keep(["a"], seconds=600, cap=64 << 20)
        counted = itertools.count()
        with pytest.raises(Overloaded, match=r"is full .*out of memory.*more memory \(-m\)"):
            forever(lambda: messenger.write([("a", b"%d " % next(counted) + bytes(20_000))]))
        written = next(counted) - 1
        with pytest.raises(Overloaded):
            messenger.write([("a", bytes(3 << 20))])
        with pytest.raises(Overloaded):
            messenger.write([("a", bytes(20_000))])
        reading = Reading(messenger)
        reading.until(lambda: len(reading.frames) == written)
        messenger.forget("a", reading.cursor)
        messenger.write([("a", b"%d " % n + bytes(20_000)) for n in (written, written + 1)])
        reading.until(lambda: len(reading.frames) == written + 2)
        assert [int(frame.partition(b" ")[0]) for frame in reading.frames] == list(range(written + 2))
        messenger.close()


def test_a_server_that_takes_smaller_values_says_what_to_do(need):
    need("memcached")
    with Memcached("-I", "512k") as server:
        messenger = Messenger([server.address], timeout=5)
        messenger.open()
        messenger.keep(["a"], seconds=60, cap=8 << 20)
        messenger.write([("a", bytes(50_000))])
        with pytest.raises(UsageError, match="-I 1m"):
            messenger.write([("a", bytes(900_000))])
        messenger.write([("a", b"after")])
        reading = Reading(messenger)
        reading.until(lambda: len(reading.frames) == 2)
        messenger.close()


@pytest.mark.parametrize("what", ["server", "network"])
def test_silence_ends_in_time_and_nothing_stale_is_heard_afterwards(server, made, what):
    with Door(server.port) as door:
        messenger = made(door.port, timeout=0.4)
        messenger.keep(["a", "b"], seconds=60, cap=1 << 20)
        messenger.write([("a", b"1"), ("b", b"other")])
        reading = Reading(messenger)
        reading.once()
        server.freeze() if what == "server" else door.swallow()
        for call in (
            lambda: messenger.write([("a", b"2")]),
            lambda: messenger.read({"b": b""}, limit=1, wait=5),
            lambda: messenger.keep(["a"], seconds=60, cap=1 << 20),
        ):
            began = time.monotonic()
            with pytest.raises(Unreachable, match=r"answer within 0\.4 s|no connection in time"):
                call()
            assert 0.3 < time.monotonic() - began < 1.5
        server.thaw() if what == "server" else door.heal()
        if what == "network":
            door.cut()
        messenger.write([("a", b"3")])
        reading.until(lambda: reading.frames[-1:] == [b"3"])
        assert reading.frames in ([b"1", b"3"], [b"1", b"2", b"3"])
        assert messenger.read({"b": b""}, limit=1, wait=1).messages[0].frame == b"other"


def test_closing_does_not_wait_for_a_frozen_server(server, made):
    messenger = made(timeout=30.0)
    messenger.keep(["a"], seconds=60, cap=1 << 20)
    server.freeze()
    raised: list[Exception] = []

    def write() -> None:
        try:
            messenger.write([("a", b"x")])
        except AssistantError as error:
            raised.append(error)

    thread = threading.Thread(target=write)
    connection = messenger._opened.writing.servers[0]
    thread.start()
    while not connection._lock.locked():
        time.sleep(0)
    began = time.monotonic()
    messenger.close()
    thread.join(WAIT)
    assert time.monotonic() - began < 5
    assert type(raised[0]).__name__ == "ClientClosed"


# ---- the network


def test_cut_at_any_byte_of_an_answer_reading_goes_on(server, made):
    with Door(server.port) as door:
        writer, reading = made(), Reading(made(door.port))
        writer.keep(["a"], seconds=60, cap=1 << 20)
        for at in range(0, 400, 7):
            writer.write([("a", b"%d " % at + bytes(300))])
            door.cut_after(at, "to_client")
            while not (reading.frames and reading.frames[-1].startswith(b"%d " % at)):
                with contextlib.suppress(Unreachable):  # a connection that is cut twice in a row
                    reading.once()
        assert [int(frame.partition(b" ")[0]) for frame in reading.frames] == list(range(0, 400, 7))
        assert door.accepted > 10


@pytest.mark.parametrize("direction", ["to_client", "to_server"])
def test_cut_at_any_byte_of_a_write_it_is_done_once(server, made, direction):
    """In the middle of a request, and after the server acted and before its answer."""
    with Door(server.port) as door:
        writer, reading = made(door.port), Reading(made())
        writer.keep(["a"], seconds=60, cap=1 << 20)
        steps = list(range(0, 200, 5))
        for at in steps:
            door.cut_after(at, direction)
            writer.write([("a", b"%d" % at), ("a", b"%d." % at)])
            door.heal()
        sent = [text for at in steps for text in (b"%d" % at, b"%d." % at)]
        reading.until(lambda: len(reading.frames) >= len(sent))
        assert reading.frames == sent
        assert door.accepted > 10


def test_an_answer_of_garbage_drops_the_connection(server, made):
    with Door(server.port) as door:
        messenger = made(door.port, timeout=0.5)
        messenger.keep(["a"], seconds=60, cap=1 << 20)
        messenger.write([("a", b"1")])
        failures = 0
        for at in range(0, 60, 3):
            before = door.accepted
            door.corrupt(at, "to_client")
            try:
                messenger.read({"a": b""}, limit=1, wait=0)
            except (ProtocolError, Unreachable):
                failures += 1
                assert messenger.read({"a": b""}, limit=1, wait=0).messages
                assert door.accepted > before
            door.heal()
        assert failures > 3


def test_a_slow_network_is_only_slow(server, made):
    with Door(server.port) as door:
        writer, reading = made(door.port), Reading(made())
        writer.keep(["a"], seconds=60, cap=1 << 20)
        door.delay(0.2, "to_server")  # more between allocating and storing than readers wait
        door.delay(0.2, "to_client")
        thread = threading.Thread(target=lambda: [writer.write([("a", b"%d" % n)]) for n in range(5)])
        thread.start()
        reading.until(lambda: len(reading.frames) >= 5)
        thread.join(WAIT)
        assert reading.frames == [b"%d" % n for n in range(5)]


def test_megabytes_on_a_line_slower_than_readers_wait(server, made):
    """Each block takes longer than the grace, so it goes in pieces, before its slot is allocated."""
    with Door(server.port) as door:
        writer, reading = made(door.port), Reading(made())
        writer.keep(["a"], seconds=60, cap=64 << 20)
        door.throttle(1_500_000)
        sent = [bytes([n]) * 90_000 for n in range(20)]
        thread = threading.Thread(target=writer.write, args=([("a", frame) for frame in sent],))
        thread.start()
        reading.until(lambda: len(reading.frames) >= len(sent))
        thread.join(WAIT)
        assert reading.frames == sent


def test_a_megabyte_gets_through_a_slow_line(server, made):
    with Door(server.port) as door:
        writer, reading = made(door.port, timeout=0.8), Reading(made())
        writer.keep(["a"], seconds=60, cap=64 << 20)
        door.throttle(2_000_000)
        sent = [bytes([n]) * 900_000 for n in range(3)] + [b"small"] * 3
        began = time.monotonic()
        writer.write([("a", frame) for frame in sent])
        assert time.monotonic() - began > 1.2  # and no time-out of 0.8 s
        reading.until(lambda: len(reading.frames) >= len(sent))
        assert reading.frames == sent
        door.throttle(500_000, "to_client")
        slow = Reading(made(door.port, timeout=0.8))
        slow.once(limit=1)
        assert slow.frames == sent[:1]


def test_a_trickle_is_no_answer(server, made):
    with Door(server.port) as door:
        messenger = made(door.port, timeout=0.5)
        messenger.keep(["a"], seconds=60, cap=1 << 20)
        messenger.write([("a", bytes(1000))])
        door.slice(1, "to_client", pause=0.05)
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"answer within 0\.5 s"):
            messenger.read({"a": b""}, limit=1, wait=0)
        assert time.monotonic() - began < 2


def test_byte_by_byte(server, made):
    with Door(server.port) as door:
        door.slice(1, pause=0.0)
        messenger = made(door.port)
        messenger.keep(["a"], seconds=60, cap=1 << 20)
        messenger.write([("a", bytes(range(256))), ("a", b"\r\nHD\r\n")])
        reading = Reading(messenger)
        reading.until(lambda: len(reading.frames) == 2)
        assert reading.frames == [bytes(range(256)), b"\r\nHD\r\n"]


# ---- writers


WRITES = """
me, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
messenger = Messenger([("127.0.0.1", port)])
messenger.open()
for start in range(0, count, 20):
    messenger.write([("a", f"{me} {n}".encode()) for n in range(start, start + 20)])
messenger.close()
"""


def test_two_processes_write_to_one_channel_and_nothing_is_lost(server, made):
    reading = Reading(made())
    reading.messenger.keep(["a"], seconds=60, cap=64 << 20)
    writers = [program(WRITES, name, server.port, 10_000) for name in "xy"]
    try:
        reading.until(lambda: len(reading.frames) >= 20_000, 40)
    finally:
        assert [ended(writer) for writer in writers] == [0, 0]
    assert reading.once(wait=0.3) == 0
    for name in (b"x", b"y"):
        mine = [frame for frame in reading.frames if frame.startswith(name)]
        assert mine == [b"%b %d" % (name, n) for n in range(10_000)]


KILLED = """
port, at, most = map(int, sys.argv[1:])
ask, left = server.Server.ask, [at]

def dies(self, commands):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return ask(self, commands)

messenger = Messenger([("127.0.0.1", port)])
messenger.open()
server.Server.ask = dies
for n in range(100):
    frames = [("a", b"%d " % n + bytes(400_000)), ("a", b"%d." % n + bytes(400_000)), ("b", b"x")]
    messenger.write([*frames, ("a", bytes(3 << 20))][:most])
"""


@pytest.mark.parametrize("at", range(8))
def test_a_writer_killed_at_any_request_leaves_whole_batches_and_a_channel_that_goes_on(server, made, at):
    reading = Reading(made())
    reading.messenger.keep(["a", "b"], seconds=60, cap=64 << 20)
    assert ended(program(KILLED, server.port, at, 4)) == -signal.SIGKILL
    reading.messenger.write([("a", b"after")])
    reading.until(lambda: reading.frames[-1:] == [b"after"], 10)
    seen = [frame[:2] for frame in reading.frames[:-1]]
    whole = [b"0 ", b"0.", b"\0\0", b"1 ", b"1.", b"\0\0"]
    assert seen == whole[: len(seen)]
    assert len(seen) != 1  # 400,000 bytes twice are one block


def test_writers_killed_at_random_block_nobody(server, made):
    reading = Reading(made())
    reading.messenger.keep(["a"], seconds=60, cap=64 << 20)
    for name in "uvwx":
        writer = program(WRITES, name, server.port, 1_000_000)
        try:
            reading.until(lambda name=name: any(f.startswith(name.encode()) for f in reading.frames[-50:]))
        finally:
            os.kill(writer.pid, signal.SIGKILL)
            ended(writer)
    reading.messenger.write([("a", b"after")])
    reading.until(lambda: reading.frames[-1:] == [b"after"], 10)
    for name in (b"u", b"v", b"w", b"x"):
        mine = [frame for frame in reading.frames if frame.startswith(name)]
        assert mine == [b"%b %d" % (name, n) for n in range(len(mine))]


def test_a_writer_that_stood_still_writes_again_in_order(server, made):
    """Stopped between allocating and storing, long enough for the reader to give its slot up."""
    reading = Reading(made())
    reading.messenger.keep(["a"], seconds=60, cap=64 << 20)
    stops = KILLED.replace(
        "os.kill(os.getpid(), signal.SIGKILL)", "left[0] = 10**9; os.kill(os.getpid(), signal.SIGSTOP)"
    )
    stops = stops.replace("range(100)", "range(3)")
    writer = program(stops, server.port, 4, 2)  # by then the second batch is allocated
    try:
        os.waitid(os.P_PID, writer.pid, os.WSTOPPED)
        reading.messenger.write([("a", b"between")])
        reading.until(lambda: reading.frames[-1:] == [b"between"], 10)
        writer.send_signal(signal.SIGCONT)
        reading.until(lambda: len(reading.frames) >= 7)
    finally:
        assert ended(writer) == 0
    assert [frame[:2] for frame in reading.frames] == [b"0 ", b"0.", b"be", b"1 ", b"1.", b"2 ", b"2."]
