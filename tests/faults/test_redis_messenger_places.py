"""The Redis Messenger where the place is hard: guarded, shared, far, cut, garbled, forked, failing over, crowded."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant.errors import ProviderError, Unreachable
from revolve_assistant.messenger import Messenger
from revolve_assistant.providers import registry
from revolve_assistant.testing import Door
from revolve_assistant.testing.checks import Aside, entered, eventually
from revolve_assistant.testing.servers import Redis, Sentinel, free_port

WAIT = 30.0  # seconds that nothing here should take
MB = 1 << 20
WORD = "hunter2-very-secret"
DOCS = Path(__file__).parents[2] / "docs" / "providers"


@pytest.fixture
def server(need: Any) -> Iterator[Redis]:
    need("redis-server")
    with Redis() as server:
        yield server


@pytest.fixture
def made() -> Iterator[Callable[..., Messenger]]:
    """`made(server, door or address, …)`: a messenger, opened, and closed at the end."""
    with contextlib.ExitStack() as stack:

        def made(place: Any, **options: Any) -> Messenger:
            address = place if isinstance(place, str) else f"redis://127.0.0.1:{place.port}"
            messenger = registry.messenger(address, **options)
            stack.callback(messenger.close)
            messenger.open()
            return messenger

        yield made


def keep(messenger: Messenger, *channels: str, cap: int = 64 * MB) -> None:
    messenger.keep(channels or ["a"], seconds=60.0, cap=cap)


def frames(messenger: Messenger, channel: str = "a", cursor: bytes = b"", limit: int = 1000) -> list[bytes]:
    return [message.frame for message in messenger.read({channel: cursor}, limit=limit, wait=1.0).messages]


def connections(server: Redis) -> list[str]:
    return [line for line in server.ask("CLIENT", "LIST").splitlines() if "name=revolve-assistant" in line]


def commands(server: Redis) -> int:
    found = re.search(r"total_commands_processed:(\d+)", server.ask("INFO", "stats"))
    assert found is not None
    return int(found[1])


def listens(server: Redis, channel: str, count: int = 1) -> bool:
    """Whether so many readers hear a channel."""
    return f":{count}\r\n" in server.ask("PUBSUB", "NUMSUB", f"{{assistant}}:m:{channel}")


def patiently(call: Callable[[], Any]) -> Any:
    """Call again while the server is away, as clients and workers do."""

    def attempt() -> Any:
        try:
            return (call(),)
        except Unreachable:
            time.sleep(0.02)
            return None

    return eventually(attempt, "the server answers", within=WAIT)[0]


# ---- guarded


def test_a_wrong_password_is_one_clear_error_that_does_not_hold_it(
    server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    server.ask("CONFIG", "SET", "requirepass", "the-right-one")
    caplog.set_level(logging.DEBUG)
    for account, why in ((f":{WORD}@", "refuses the user or the password"), ("", "wants a password")):
        messenger = registry.messenger(f"redis://{account}127.0.0.1:{server.port}")
        with pytest.raises(ProviderError, match=why) as caught:
            messenger.open()
        assert not isinstance(caught.value, Unreachable)  # trying again does not help
        seen: BaseException | None = caught.value
        while seen is not None:
            assert WORD not in repr(seen) + str(seen)
            seen = seen.__cause__ or seen.__context__
        assert WORD not in repr(messenger) + repr(vars(messenger)) + caplog.text
        messenger.close()


def test_a_user_of_one_namespace_can_do_all_there_and_nothing_elsewhere(server: Redis, made: Any) -> None:
    page = (DOCS / "redis-queue.md").read_text()
    words = next(line for line in page.splitlines() if line.startswith("ACL SETUSER")).split()
    assert server.ask(*words).startswith("+OK")
    url = f"redis://shop:PASSWORD@127.0.0.1:{server.port}"
    messenger = made(url)
    keep(messenger)
    messenger.write([("a", b"1"), ("a", b"2")])
    cursor = messenger.read({"a": b""}, limit=1, wait=1).messages[0].cursor
    messenger.forget("a", cursor)
    assert frames(messenger) == [b"2"]
    messenger.forget("a")
    assert messenger.read({"a": cursor}, limit=1, wait=1).lost == {"a"}
    for namespace in ("else", "assistant2"):
        stranger = made(url, namespace=namespace)
        for call in (keep, frames, lambda each: each.write([("a", b"")])):
            with pytest.raises(ProviderError, match="does not let this user"):
                call(stranger)


def test_a_replica_takes_no_messages_and_says_which_server_does(server: Redis, made: Any) -> None:
    with Redis(replica_of=server) as replica:
        messenger = registry.messenger(replica.url)
        with pytest.raises(Unreachable, match="read-only replica: name its primary"):
            messenger.open()
        messenger.close()


def test_a_primary_that_becomes_a_replica_is_unreachable_until_it_is_primary_again(server: Redis, made: Any) -> None:
    messenger = made(server)
    keep(messenger)
    with Redis() as other:
        server.ask("REPLICAOF", other.host, str(other.port))
        with pytest.raises(Unreachable, match="read-only replica"):
            messenger.write([("a", b"1")])
        server.ask("REPLICAOF", "NO", "ONE")
        keep(messenger)
        messenger.write([("a", b"2")])
        assert frames(messenger) == [b"2"]


@pytest.mark.parametrize(
    ("said", "text"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "is a web server, no Redis"), (b"\x00\xff\x17\r\n", "is no Redis"),
     (b"+hello\r\n$-7\r\n", "127.0.0.1")],
)  # fmt: skip
def test_another_program_on_the_port_is_named(said: bytes, text: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            one, _ = listener.accept()
            with one:
                one.recv(100)
                one.sendall(said)

        speaking = entered(speak)
        messenger = registry.messenger(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(ProviderError, match=text):
            messenger.open()
        speaking.result(5, "it said so")
        messenger.close()


# ---- shared


def test_namespaces_and_databases_know_nothing_of_each_other(server: Redis, made: Any) -> None:
    members = [made(server), made(server, namespace="other"), made(f"{server.url}/1")]
    for member in members:
        keep(member)
    hearing = [entered(lambda member=member: frames(member)) for member in members]
    eventually(lambda: listens(server, "a", 2), "they hear")
    for n, member in enumerate(members):
        member.write([("a", b"%d" % n)])
    assert [each.result(5, "its own comes") for each in hearing] == [[b"0"], [b"1"], [b"2"]]


def test_scripts_that_somebody_flushed_are_sent_again(server: Redis, made: Any) -> None:
    messenger = made(server)
    keep(messenger)
    frames(messenger)
    server.ask("SCRIPT", "FLUSH")
    messenger.write([("a", b"1")])
    server.ask("SCRIPT", "FLUSH")
    assert frames(messenger) == [b"1"]


# ---- far away


def test_a_batch_to_five_hundred_channels_is_one_round_trip(server: Redis, made: Any) -> None:
    with Door(server.port) as door:
        writer, reader = made(door), made(server)
        names = [f"c{n}" for n in range(500)]
        keep(writer, *names)
        writer.write([("c0", b"first")])
        door.delay(0.6)
        began = time.monotonic()
        writer.write([(name, b"%d" % n) for n in range(2) for name in names])
        assert 1.2 <= time.monotonic() - began < 2.3
        found = reader.read(dict.fromkeys(names, b""), limit=2000, wait=1.0)
        assert len(found.messages) == 1001


def test_a_reader_far_away_hears_at_once(server: Redis, made: Any) -> None:
    """A notice has the messages with it: they take one way, and no request."""
    with Door(server.port) as door:
        writer, reader = made(server), made(door)
        keep(writer)
        assert frames(reader) == []
        hearing = entered(lambda: frames(reader))
        eventually(lambda: listens(server, "a"), "it hears")
        door.delay(0.6)
        began = time.monotonic()
        writer.write([("a", b"1")])
        assert hearing.result(5, "it comes") == [b"1"]
        assert time.monotonic() - began < 1.1


def test_megabytes_on_a_slow_line_are_only_slow(server: Redis, made: Any) -> None:
    with Door(server.port) as door:
        writer, reader = made(door, timeout=0.8), made(door, timeout=0.8)
        keep(writer)
        door.throttle(3_000_000)
        sent = [bytes([n]) * 1_500_000 for n in range(4)]
        writer.write([("a", frame) for frame in sent])
        found: list[bytes] = []
        cursor = b""
        while len(found) < 4:
            for message in reader.read({"a": cursor}, limit=100, wait=5.0).messages:
                found.append(message.frame)
                cursor = message.cursor
        assert found == sent


# ---- cut and garbled


class Twice:
    """What came out of a channel, without what came twice in a row."""

    def __init__(self, messenger: Messenger) -> None:
        self.messenger, self.cursor, self.found = messenger, b"", list[bytes]()

    def once(self, wait: float = 0.2) -> None:
        batch = self.messenger.read({"a": self.cursor}, limit=1000, wait=wait)
        assert not batch.lost
        for message in batch.messages:
            self.cursor = message.cursor
            if message.frame not in self.found:
                self.found.append(message.frame)


def test_cut_at_any_byte_of_an_answer_or_notice_reading_goes_on(server: Redis, made: Any) -> None:
    with Door(server.port) as door:
        writer, reading = made(server), Twice(made(door))
        keep(writer)
        sent = []
        for at in range(0, 700, 11):
            sent.append(b"%d " % at + bytes(300))
            door.cut_after(at, "to_client")
            writer.write([("a", sent[-1])])
            while reading.found[-1:] != sent[-1:]:
                with contextlib.suppress(Unreachable):
                    reading.once()
        assert reading.found == sent
        assert door.accepted > 20


@pytest.mark.parametrize("direction", ["to_client", "to_server"])
def test_cut_at_any_byte_of_a_batch_it_can_be_written_again(server: Redis, made: Any, direction: Any) -> None:
    with Door(server.port) as door:
        writer, reading = made(door), Twice(made(server))
        keep(writer)
        sent = []
        for at in range(0, 300, 7):
            batch = [b"%d" % at, b"%d." % at]
            sent += batch
            door.cut()  # so that it has to say hello again
            door.cut_after(at, direction)
            patiently(lambda batch=batch: writer.write([("a", frame) for frame in batch]))  # type: ignore[misc]
            door.heal()
        eventually(lambda: reading.once() or len(reading.found) >= len(sent), "all came")
        assert reading.found == sent
        assert door.accepted > 10


def test_an_answer_of_garbage_drops_the_connection(server: Redis, made: Any) -> None:
    with Door(server.port) as door:
        messenger = made(door, timeout=0.5)
        keep(messenger)
        messenger.write([("a", b"1")])
        failures = 0
        for at in range(40):
            before = door.accepted
            door.corrupt(at, "to_client")
            try:
                messenger.read({"a": b""}, limit=1, wait=0)
            except ProviderError:
                failures += 1
                door.heal()
                assert frames(messenger) == [b"1"]
                assert door.accepted > before
            door.heal()
        assert failures > 3


def test_connections_that_an_administrator_kills_lose_nothing(server: Redis, made: Any) -> None:
    writer, reading = made(server), Twice(made(server))
    keep(writer)
    sent = [b"%d" % n for n in range(400)]

    def write() -> None:
        for n, frame in enumerate(sent):
            patiently(lambda frame=frame: writer.write([("a", frame)]))  # type: ignore[misc]
            if n % 20 == 0:
                server.ask("CLIENT", "KILL", "TYPE", "pubsub")
            if n % 50 == 0:
                server.ask("CLIENT", "KILL", "TYPE", "normal")

    writing = Aside(write)
    eventually(lambda: patiently(reading.once) or len(reading.found) >= len(sent), "all came", within=WAIT)
    writing.result(WAIT, "it ends")
    assert reading.found == sent


def test_a_slow_reader_is_cut_off_by_the_server_and_loses_nothing(server: Redis, made: Any) -> None:
    server.ask("CONFIG", "SET", "client-output-buffer-limit", "pubsub 6mb 0 0")
    writer, reading = made(server), Twice(made(server))
    keep(writer)
    reading.once(0)
    sent = [b"%d " % n + bytes(30_000) for n in range(700)]
    for frame in sent:
        writer.write([("a", frame)])
    assert not listens(server, "a")
    eventually(lambda: reading.once() or len(reading.found) >= len(sent), "all came")
    assert reading.found == sent


# ---- forked


def test_a_forked_child_has_connections_of_its_own(server: Redis, made: Any) -> None:
    writer, reader = made(server), made(server)
    keep(writer, "a", "back")
    assert frames(reader) == []
    hearing = entered(lambda: frames(reader, "back"))
    eventually(lambda: listens(server, "back"), "it hears")
    pid = os.fork()
    if not pid:
        code = 1
        try:
            writer.write([("a", b"child")])
            if frames(reader) == [b"child"]:
                writer.write([("back", b"heard")])
                code = 0
            writer.close()
            reader.close()
        finally:
            os._exit(code)
    assert hearing.result(5, "the child says so") == [b"heard"]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    writer.write([("a", b"parent")])
    assert frames(reader) == [b"child", b"parent"]


# ---- failing over


@pytest.mark.timeout(120)
def test_a_fail_over_by_a_sentinel_keeps_what_was_replicated(server: Redis, made: Any) -> None:
    with Redis(replica_of=server) as replica, Sentinel(server) as sentinel:
        sentinel.knows(replica)
        writer, reading = made(sentinel.url), Twice(made(sentinel.url))
        keep(writer)
        sent = [b"%d" % n for n in range(100)]
        writer.write([("a", frame) for frame in sent])
        reading.once()
        eventually(lambda: replica.ask("STRLEN", "{assistant}:m:a") == server.ask("STRLEN", "{assistant}:m:a"), "there")
        hearing = Aside(
            lambda: eventually(lambda: patiently(reading.once) or len(reading.found) > 100, "all", within=WAIT)
        )
        server.kill()
        patiently(lambda: writer.write([("a", b"after")]))
        hearing.result(WAIT, "a reader that waits goes along")
        assert reading.found == [*sent, b"after"]
        assert "role:master" in replica.ask("INFO", "replication")


def test_sentinels_that_are_not_there_are_unreachable_in_time() -> None:
    messenger = registry.messenger(
        f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{free_port()}/tasks/0?timeout=2"
    )
    began = time.monotonic()
    with pytest.raises(Unreachable, match="no sentinel of 'tasks' helps"):
        messenger.open()
    assert time.monotonic() - began < 4
    messenger.close()


# ---- crowded


def test_a_reader_of_a_thousand_channels_has_one_connection_and_asks_for_nothing(server: Redis, made: Any) -> None:
    writer, reader = made(server), made(server)
    names = [f"c{n}" for n in range(1000)]
    keep(writer, *names)
    cursors = dict.fromkeys(names, b"")
    assert reader.read(cursors, limit=1000, wait=0).messages == []
    writer.close()
    assert len(connections(server)) == 2  # one more, to write, which is of no use here
    before = commands(server)
    assert reader.read(cursors, limit=1000, wait=5.0).messages == []
    assert commands(server) - before < 4 * (2 * (1 + 1000) + 2)  # the looks: a script, and what it calls


def test_many_writers_readers_and_channels_under_load(server: Redis, made: Any) -> None:
    names = [f"c{n}" for n in range(300)]
    keep(made(server), *names)

    def write(mark: int) -> None:
        member, pick = made(server), random.Random(mark)
        for n in range(200):
            member.write([(name, b"%d %d" % (mark, n)) for name in pick.sample(names, 10)])

    def read() -> dict[str, list[bytes]]:
        member, cursors = made(server), dict.fromkeys(names, b"")
        found: dict[str, list[bytes]] = {name: [] for name in names}
        deadline = time.monotonic() + WAIT
        while sum(map(len, found.values())) < 3 * 200 * 10 and time.monotonic() < deadline:
            batch = member.read(cursors, limit=500, wait=1.0)
            assert not batch.lost
            for message in batch.messages:
                cursors[message.channel] = message.cursor
                found[message.channel].append(message.frame)
        return found

    reading = [Aside(read) for _ in range(2)]
    writing = [Aside(write, mark) for mark in range(3)]
    for each in writing:
        each.result(WAIT, "it ends")
    one, other = [each.result(WAIT, "it ends") for each in reading]
    assert one == other
    assert sum(map(len, one.values())) == 6000
    for all_of in one.values():
        for mark in range(3):
            numbers = [int(frame.split()[1]) for frame in all_of if frame.startswith(b"%d " % mark)]
            assert numbers == sorted(set(numbers))


def test_what_is_capped_drops_the_oldest_and_a_slow_reader_goes_on_with_what_there_is(server: Redis, made: Any) -> None:
    writer, reader = made(server), made(server)
    keep(writer, cap=100_000)
    first = None
    for n in range(200):
        writer.write([("a", b"%d " % n + bytes(2_000))])
        if first is None:
            first = reader.read({"a": b""}, limit=1, wait=1).messages[0]
    numbers = [int(frame.split()[0]) for frame in frames(made(server), cursor=first.cursor)]
    assert numbers == list(range(numbers[0], 200))
    assert 30 < len(numbers) <= 50
    size = int(server.ask("STRLEN", "{assistant}:m:a")[1:])
    assert size <= 102_000
