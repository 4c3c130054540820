from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from revolve_assistant.errors import AssistantError, ClientClosed, ProtocolError, Unreachable, UsageError
from revolve_assistant.providers import registry
from revolve_assistant.providers.memcached import Messenger, block, codec, reading
from revolve_assistant.providers.memcached.reading import GRACE
from revolve_assistant.providers.memcached.server import Server
from revolve_assistant.testing import MessengerConformance
from revolve_assistant.testing.servers import Gearmand, Memcached, free_port

_names = (f"channel{n}" for n in itertools.count())
DAY = 86400


@pytest.fixture(scope="module")
def server(need: Callable[[str], str]) -> Iterator[Memcached]:
    need("memcached")
    with Memcached("-m", "512") as server:
        yield server


class TestMessenger(MessengerConformance):
    @pytest.fixture
    def make(self, server: Memcached) -> Callable[..., object]:
        return lambda: registry.messenger(f"memcached://127.0.0.1:{server.port}/kit")


@pytest.fixture(scope="module")
def servers(need: Callable[[str], str]) -> Iterator[list[Memcached]]:
    need("memcached")
    with Memcached("-m", "512") as one, Memcached("-m", "512") as two, Memcached("-m", "512") as three:
        yield [one, two, three]


class TestOverThreeServers(MessengerConformance):
    @pytest.fixture
    def make(self, servers: list[Memcached]) -> Callable[..., object]:
        return lambda: registry.messenger(f"memcached://{places(servers)}/kit")


def places(servers: list[Memcached]) -> str:
    return ",".join(f"127.0.0.1:{server.port}" for server in servers)


@pytest.fixture
def made(server: Memcached) -> Iterator[Callable[..., Messenger]]:
    """`made(**options)`: an opened messenger on the server."""
    with contextlib.ExitStack() as stack:

        def made(namespace: str = "test", **options: Any) -> Messenger:
            messenger = Messenger([server.address], namespace, **options)
            stack.callback(messenger.close)
            messenger.open()
            return messenger

        yield made


@pytest.fixture
def raw(server: Memcached) -> Iterator[Server]:
    """Plain commands to the server, to do behind a messenger's back what others might."""
    raw = Server(*server.address, account=None, timeout=5)
    yield raw
    raw.close()


def kept(messenger: Messenger, seconds: float = 300, cap: int = 8 << 20) -> str:
    channel = next(_names)
    messenger.keep([channel], seconds=seconds, cap=cap)
    return channel


def frames(messenger: Messenger, channel: str, count: int, cursor: bytes = b"", until: bytes = b"-") -> list[bytes]:
    """The next `count` frames or more, or up to the frame `until`, within 10 s."""
    found: list[bytes] = []
    deadline = time.monotonic() + 10
    while len(found) < count and found[-1:] != [until] and time.monotonic() < deadline:
        batch = messenger.read({channel: cursor}, limit=1000, wait=0.5)
        assert not batch.lost
        for message in batch.messages:
            found.append(message.frame)
            cursor = message.cursor
    return found


def counter(raw: Server, keys: block.Keys) -> int:
    (answer,) = raw.ask([codec.get(keys.counter)])
    return int(answer.value)


# ---- holes


def test_a_writer_that_died_before_it_stored_blocks_nobody(made, raw):
    messenger = made()
    channel = kept(messenger)
    keys = block.keys_of("test", channel)
    messenger.write([(channel, b"before")])
    raw.ask([codec.count(keys.counter, 1)])  # and never a slot
    messenger.write([(channel, b"after")])
    began = time.monotonic()
    assert frames(messenger, channel, 2) == [b"before", b"after"]
    assert GRACE * 0.9 <= time.monotonic() - began < 5
    began = time.monotonic()
    assert frames(made(), channel, 2) == [b"before", b"after"]
    assert time.monotonic() - began < GRACE  # the tombstone is there for all


def test_many_holes_cost_one_grace(made, raw):
    messenger = made()
    channel = kept(messenger)
    keys = block.keys_of("test", channel)
    for n in range(20):
        raw.ask([codec.count(keys.counter, 70)])
        messenger.write([(channel, b"%d" % n)])
    began = time.monotonic()
    assert frames(messenger, channel, 20) == [b"%d" % n for n in range(20)]
    assert time.monotonic() - began < 3 * GRACE


def test_a_late_writer_finds_the_tombstone_and_writes_again(made, monkeypatch):
    reader, writer = made(), made()
    channel = kept(reader)
    ask, stalled, go_on = Server.ask, threading.Event(), threading.Event()
    late = writer._opened.writing.servers[0]

    def slow(self: Server, commands):
        if self is late and commands[0].startswith(b"ms ") and not stalled.is_set():
            stalled.set()
            assert go_on.wait(10)
        return ask(self, commands)

    monkeypatch.setattr(Server, "ask", slow)
    writing = threading.Thread(target=writer.write, args=([(channel, b"1"), (channel, b"2")],))
    writing.start()
    assert stalled.wait(10)
    reader.write([(channel, b"other")])
    assert frames(reader, channel, 1) == [b"other"]
    go_on.set()
    writing.join(10)
    assert frames(made(), channel, 3) == [b"other", b"1", b"2"]


def test_a_slot_that_is_stored_within_the_grace_is_not_passed_over(made, raw):
    messenger = made()
    channel = kept(messenger)
    keys = block.keys_of("test", channel)
    (answer,) = raw.ask([codec.count(keys.counter, 1)])
    messenger.write([(channel, b"second")])
    assert messenger.read({channel: b""}, limit=10, wait=0.05).messages == []
    raw.ask([codec.put(keys.slot(int(answer.value)), block.pack([b"first"], block.mark()), ttl=60, add=True)])
    assert frames(messenger, channel, 2) == [b"first", b"second"]


def test_readers_wait_longer_where_a_writer_asked_for_it(made, raw):
    messenger = made()
    channel = kept(messenger)
    keys = block.keys_of("test", channel)
    raw.ask([codec.put(keys.grace, b"900", ttl=60), codec.count(keys.counter, 1)])
    messenger.write([(channel, b"x")])
    began = time.monotonic()
    assert frames(messenger, channel, 1) == [b"x"]
    assert time.monotonic() - began >= 0.85


def test_an_evicted_slot_is_passed_over_and_the_rest_is_in_order(made, raw):
    messenger = made()
    channel = kept(messenger)
    keys = block.keys_of("test", channel)
    for n in range(10):
        messenger.write([(channel, b"%d" % n)])
    head = counter(raw, keys)
    raw.ask([codec.delete(keys.slot(head - 5)), codec.delete(keys.slot(head))])
    assert frames(messenger, channel, 8) == [b"%d" % n for n in range(9) if n != 4]
    messenger.write([(channel, b"next")])
    assert frames(messenger, channel, 9)[-1] == b"next"


def test_an_evicted_counter_is_a_lost_channel(made, raw):
    messenger = made()
    channel = kept(messenger)
    messenger.write([(channel, b"x")])
    cursor = messenger.read({channel: b""}, limit=1, wait=1).messages[0].cursor
    raw.ask([codec.delete(block.keys_of("test", channel).counter)])
    assert messenger.read({channel: cursor}, limit=1, wait=5).lost == {channel}
    assert messenger.read({channel: b""}, limit=1, wait=5).lost == {channel}
    messenger.write([(channel, b"nobody keeps it")])
    messenger.keep([channel], seconds=60, cap=1 << 20)
    messenger.write([(channel, b"new")])
    assert messenger.read({channel: cursor}, limit=1, wait=5).lost == {channel}
    assert frames(messenger, channel, 1) == [b"new"]


def test_without_its_tail_and_its_terms_a_log_goes_on(made, raw):
    messenger = made()
    channel = kept(messenger)
    keys = block.keys_of("test", channel)
    messenger.write([(channel, b"0")])
    messenger.write([(channel, b"1")])
    cursor = messenger.read({channel: b""}, limit=1, wait=1).messages[0].cursor
    messenger.forget(channel, cursor)
    raw.ask([codec.delete(keys.tail), codec.delete(keys.terms)])
    messenger.write([(channel, b"2")])
    assert frames(made(), channel, 2) == [b"1", b"2"]


def test_garbage_in_a_slot_is_no_message(made, raw):
    messenger = made()
    channel = kept(messenger)
    keys = block.keys_of("test", channel)
    for value in (b"", b"x", b"\x01" * 13, bytes(500), block.pack([b"a", b"b"], block.mark())[:-1]):
        (answer,) = raw.ask([codec.count(keys.counter, 1)])
        raw.ask([codec.put(keys.slot(int(answer.value)), value, ttl=60)])
    messenger.write([(channel, b"good")])
    assert frames(messenger, channel, 1) == [b"good"]
    for cursor in (b"x", b"1.2", b"1.2.3.4", b"-1.0.1", b"9" * 30 + b".0.1", b"1.0.1"):
        assert messenger.read({channel: cursor}, limit=1, wait=0).lost == {channel}


# ---- sizes


def test_frames_at_every_limit(made):
    messenger = made()
    sizes = [0, 1, *(block.MOST - 64 + n for n in (-1, 0, 1)), *(block.MOST + n for n in (-1, 0, 1)), 3 * block.MOST]
    channel = kept(messenger, cap=64 << 20)
    sent = [os.urandom(size) for size in sizes]
    for frame in sent:
        messenger.write([(channel, frame)])
    messenger.write([(channel, frame) for frame in sent])
    assert frames(messenger, channel, 2 * len(sent)) == sent + sent


def test_a_large_frame_goes_whole_when_it_is_forgotten_or_renewed(made, raw):
    messenger = made()
    channel = kept(messenger, seconds=5, cap=64 << 20)
    keys = block.keys_of("test", channel)
    messenger.write([(channel, bytes(5 * block.MOST))])
    (slot,) = raw.ask([codec.get(keys.slot(counter(raw, keys)), b" f v")])
    pieces = keys.pieces(slot.flag(b"f"))
    assert len(pieces) == 5
    messenger.keep([channel], seconds=1000, cap=64 << 20)
    for answer in raw.ask([codec.get(piece, b" t") for piece in pieces]):
        assert answer.flag(b"t") >= 1000
    (message,) = messenger.read({channel: b""}, limit=1, wait=1).messages
    messenger.forget(channel, message.cursor)
    assert {answer.code for answer in raw.ask([codec.get(piece) for piece in pieces])} == {b"EN"}


def test_a_large_frame_without_one_of_its_pieces_is_passed_over(made, raw):
    messenger = made()
    channel = kept(messenger, cap=64 << 20)
    keys = block.keys_of("test", channel)
    messenger.write([(channel, bytes(3 * block.MOST)), (channel, b"after")])
    (slot,) = raw.ask([codec.get(keys.slot(counter(raw, keys) - 1), b" f v")])
    raw.ask([codec.delete(keys.pieces(slot.flag(b"f"))[1])])
    assert frames(messenger, channel, 1) == [b"after"]


def test_large_frames_come_a_few_at_a_time(made):
    messenger = made()
    channel = kept(messenger, cap=200 << 20)
    for n in range(6):
        messenger.write([(channel, bytes([n]) * (4 << 20))])
    cursor, found = b"", []
    while len(found) < 6:
        messages = messenger.read({channel: cursor}, limit=100, wait=2).messages
        assert 1 <= len(messages) <= 2  # 8 MiB
        found += [message.frame[0] for message in messages]
        cursor = messages[-1].cursor
    assert found == list(range(6))


def test_the_cap_counts_every_writer(made, raw):
    writers = [made() for _ in range(4)]
    channel = kept(writers[0], cap=100_000)
    keys = block.keys_of("test", channel)
    for n in range(1200):
        writers[n % 4].write([(channel, b"%d " % n + bytes(900))])
    writers[0].write([(channel, b"end ")])
    found = [frame.partition(b" ")[0] for frame in frames(made(), channel, 1201, until=b"end ")][:-1]
    assert found == [b"%d" % n for n in range(int(found[0]), 1200)]
    assert 50 <= len(found) <= 200
    (gone,) = raw.ask([codec.get(keys.slot(block.start_of(counter(raw, keys))))])
    assert gone.code == b"EN"


def test_a_reader_that_lags_behind_the_cap_goes_on_where_the_log_starts(made):
    writer, reader = made(), made()
    channel = kept(writer, cap=20_000)
    writer.write([(channel, b"0"), (channel, b"1")])
    cursor = reader.read({channel: b""}, limit=1, wait=1).messages[0].cursor
    for n in range(2, 2002):
        writer.write([(channel, b"%d" % n)])
    writer.write([(channel, b"end")])
    began = time.monotonic()
    found = frames(reader, channel, 2002, cursor, until=b"end")[:-1]
    assert time.monotonic() - began < 4 * GRACE  # not a grace for each of 1,800 slots
    # What was fetched already may come first; from the tail on nothing is missing.
    tail = found[1:] if found[0] == b"1" else found
    assert tail == [b"%d" % n for n in range(int(tail[0]), 2002)]
    assert 80 < len(tail) < 400


def test_a_smaller_cap_trims_at_once_and_empty_frames_count_too(made):
    messenger = made()
    channel = kept(messenger)
    for n in range(300):
        messenger.write([(channel, b"")] if n % 2 else [(channel, b"%d" % n)])
    messenger.keep([channel], seconds=300, cap=10_000)
    messenger.write([(channel, b"end")])
    found = frames(messenger, channel, 301, until=b"end")
    assert 50 <= len(found) <= 100


# ---- names, time


@pytest.mark.parametrize("namespace", ["with space", "n" * 300, "ü\n\r\0 ☃", "", "a/b"])
def test_any_namespace_works_and_is_its_own(made, namespace):
    one, other = made(namespace), made(namespace + "x")
    one.keep(["a", "b c\r\n" * 100], seconds=60, cap=1000)
    one.write([("a", b"1"), ("b c\r\n" * 100, b"2")])
    assert frames(one, "b c\r\n" * 100, 1) == [b"2"]
    assert other.read({"a": b""}, limit=1, wait=0).lost == {"a"}
    one.forget("a")


def test_more_than_thirty_days_are_kept(made, raw):
    messenger = made()
    channel = kept(messenger, seconds=40 * DAY)
    keys = block.keys_of("test", channel)
    messenger.write([(channel, b"x")])
    answers = raw.ask([codec.get(key, b" t") for key in (keys.counter, keys.terms, keys.slot(counter(raw, keys)))])
    lives = [answer.flag(b"t") for answer in answers]
    assert min(lives) >= 40 * DAY
    assert lives[2] >= 80 * DAY
    messenger.keep([channel], seconds=float("inf"), cap=1000)
    assert frames(messenger, channel, 1) == [b"x"]


def test_a_slot_never_ends_before_its_channel(made, raw):
    messenger = made()
    channel = kept(messenger, seconds=2)
    keys = block.keys_of("test", channel)
    messenger.write([(channel, b"x")])
    slot = keys.slot(counter(raw, keys))
    for member, seconds in ((messenger, 50), (messenger, 200), (made(), 400), (messenger, 100), (made(), 1000)):
        member.keep([channel], seconds=seconds, cap=1000)
        log, block_, terms = raw.ask([codec.get(key, b" t") for key in (keys.counter, slot, keys.terms)])
        assert log.flag(b"t") >= seconds
        assert block_.flag(b"t") >= log.flag(b"t")
        assert terms.flag(b"t") >= log.flag(b"t") - 1


def test_forgetting_leaves_nothing(made, server, raw):
    messenger = made()
    (before,) = items(server)
    channel = kept(messenger)
    for n in range(50):
        messenger.write([(channel, b"%d" % n)] * 3)
    messages = messenger.read({channel: b""}, limit=50, wait=1).messages
    assert len(messages) % 3  # in the middle of a block
    messenger.forget(channel, messages[-1].cursor)
    messenger.forget(channel, messages[0].cursor)
    messenger.forget(channel, b"no cursor")
    left = 150 - len(messages)
    assert len(frames(made(), channel, left)) == left
    messenger.forget(channel)
    assert items(server) == (before,)


def items(server: Memcached) -> tuple[int]:
    with socket.create_connection(server.address) as one, one.makefile("rwb") as file:
        file.write(b"stats\r\n")
        file.flush()
        for line in file:
            if line.startswith(b"STAT curr_items"):
                return (int(line.split()[2]),)
    raise AssertionError


# ---- polling


def asked(messenger: Messenger, monkeypatch: pytest.MonkeyPatch, channel: str, wait: float, times: int) -> float:
    """Requests a second that reading an idle channel makes, `times` reads one after the other."""
    ask, count = Server.ask, itertools.count()

    def counted(self: Server, commands):
        if commands:
            next(count)
        return ask(self, commands)

    messenger._opened.active = 0.0
    with monkeypatch.context() as patch:
        patch.setattr(Server, "ask", counted)
        began = time.monotonic()
        for _ in range(times):
            assert messenger.read({channel: b""}, limit=1, wait=wait) == ([], frozenset())
        return next(count) / (time.monotonic() - began)


def test_a_reader_asks_as_often_as_its_wait_says(made, monkeypatch):
    messenger = made()
    channel = kept(messenger)
    assert 20 < asked(messenger, monkeypatch, channel, 0.5, 2) < 140
    assert asked(messenger, monkeypatch, channel, 1.5, 1) < 8


def test_a_slow_poll_is_quick_after_something_came(made):
    messenger = made()
    channel = kept(messenger)
    reading: list[float] = []
    messenger.write([(channel, b"0")])
    cursor = messenger.read({channel: b""}, limit=1, wait=10).messages[0].cursor
    threading.Timer(0.02, messenger.write, [[(channel, b"1")]]).start()
    began = time.monotonic()
    assert messenger.read({channel: cursor}, limit=1, wait=10).messages
    reading.append(time.monotonic() - began)
    assert min(reading) < 0.2


# ---- several servers


def test_each_channel_has_one_server_whatever_the_order_of_the_list(need):
    need("memcached")
    with Memcached() as one, Memcached() as two, Memcached() as three, contextlib.ExitStack() as stack:
        lists = [[one, two, three], [three, one, two]]
        here, there = (registry.messenger(f"memcached://{places(servers)}/n?timeout=2") for servers in lists)
        for messenger in (here, there):
            stack.callback(messenger.close)
            messenger.open()
        channels = [f"c{n}" for n in range(60)]
        here.keep(channels, seconds=60, cap=1000)
        here.write([(channel, channel.encode()) for channel in channels])
        assert min(items(server)[0] for server in (one, two, three)) > 12
        batch = there.read(dict.fromkeys(channels, b""), limit=100, wait=1)
        assert {message.channel for message in batch.messages} == set(channels)

        two.kill()
        away: dict[str, str] = {}
        for channel in channels:
            try:
                assert there.read({channel: b""}, limit=1, wait=0).messages
            except Unreachable as error:
                away[channel] = str(error)
        assert all(f"127.0.0.1:{two.port}" in error for error in away.values())
        assert 5 < len(away) < 40
        with pytest.raises(Unreachable):
            here.write([(channel, b"again") for channel in channels])
        # What other servers hold comes, and then the error.
        cursors = dict.fromkeys(channels, b"")
        assert there.read(cursors, limit=1000, wait=1).messages
        with pytest.raises(Unreachable):
            there.read(cursors, limit=1000, wait=1)
        third = registry.messenger(f"memcached://{places(lists[0])}/n?timeout=2")
        third.open()  # one of three may be away
        third.close()

        two.start()
        batch = there.read(cursors, limit=1000, wait=1)
        assert batch.lost == set(away)
        assert {message.channel for message in batch.messages if message.frame == b"again"} == set(channels) - set(away)


# ---- the page


def test_the_page_runs(server, capsys):
    page = (Path(__file__).parents[2] / "docs/providers/memcached.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert "127.0.0.1:11211" in code
    exec(code.replace("127.0.0.1:11211", f"127.0.0.1:{server.port}"), {})
    assert capsys.readouterr().out == "b'one'\nb'two'\nlost: set()\n"


# ---- who answers


def test_no_server_at_all_is_named():
    port = free_port()
    with pytest.raises(Unreachable, match=f"memcached at 127.0.0.1:{port}: connection refused"):
        registry.messenger(f"memcached://127.0.0.1:{port}/n").open()
    with pytest.raises(Unreachable, match=r"memcached at nowhere\.invalid:11211: the host is not known"):
        registry.messenger("memcached://nowhere.invalid/n").open()


def test_the_first_address_that_accepts_is_taken(server, monkeypatch):
    real = socket.getaddrinfo

    def both(host, port, **options):
        v6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))
        return [v6, *real("127.0.0.1", port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    messenger = registry.messenger(f"memcached://localhost:{server.port}/n")
    messenger.open()
    messenger.close()


def test_a_gearmand_on_the_port_is_no_memcached(need):
    need("gearmand")
    with (
        Gearmand() as other,
        pytest.raises(ProtocolError, match=f"what answers at 127.0.0.1:{other.port} is not memcac"),
    ):
        registry.messenger(f"memcached://127.0.0.1:{other.port}/n").open()


@contextlib.contextmanager
def stranger(answer: bytes | None) -> Iterator[int]:
    """A server that says this to whatever it is asked; None: it says nothing, b"": it hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    one, _ = listener.accept()
                    with one:
                        one.settimeout(10)
                        while answer is None and not done.is_set() and one.recv(1000):
                            pass
                        while answer and one.recv(1000):
                            one.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        done.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n", ProtocolError, "not memcached: an answer reads b'HTTP/1.1"),
        (b"-ERR unknown command 'version'\r\n", ProtocolError, "not memcached"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ProtocolError, "not memcached"),
        (b"\x15\x03\x01\x00\x02\x02", ProtocolError, "not memcached"),  # a TLS alert
        (b"\0" * 5000, ProtocolError, "not memcached"),
        (b"VERSION 1.6.18\r\nVERSION 1.6.18\r\n", ProtocolError, "more answers than questions"),
        (b"VERSION 1.5.22\r\n", UsageError, r"is 1\.5\.22; 1\.6 or later is needed"),
        (b"", Unreachable, "is it memcached"),
        (None, Unreachable, "does not answer within 0.3 s; is it memcached"),
    ],
)
def test_what_else_may_answer(answer, error, words):
    with stranger(answer) as port, pytest.raises(error, match=words):
        registry.messenger(f"memcached://127.0.0.1:{port}/n?timeout=0.3").open()


def test_user_and_password(need, tmp_path):
    need("memcached")
    (tmp_path / "users").write_text("bob:sec%ret\n")
    with Memcached("-Y", str(tmp_path / "users")) as server:
        place = f"127.0.0.1:{server.port}/n"
        messenger = registry.messenger(f"memcached://bob:sec%25ret@{place}")
        messenger.open()
        channel = kept(messenger)
        messenger.write([(channel, b"x")])
        assert frames(messenger, channel, 1) == [b"x"]
        messenger.close()
        shown = repr(messenger) + repr(vars(messenger).get("_places"))
        for url, words in (
            (f"memcached://{place}", "wants a user and a password"),
            (f"memcached://bob:hunter2@{place}", "refused the user and password"),
        ):
            with pytest.raises(Unreachable, match=words) as caught:
                registry.messenger(url).open()
            shown += str(caught.value) + repr(caught.value)
        assert "hunter2" not in shown
        assert "sec%" not in shown
    with pytest.raises(UsageError, match="both a user and a password"):
        registry.messenger("memcached://bob@localhost/n")


def test_a_password_is_not_left_in_a_server_that_asks_for_none(made, server, raw):
    messenger = made(user="bob", password="secret")
    kept(messenger)
    (answer,) = raw.ask([codec.get(b"auth")])
    assert answer.code == b"EN"


def test_options():
    with pytest.raises(UsageError, match="timeout"):
        registry.messenger("memcached://localhost/n?timeout=0")
    with pytest.raises(UsageError, match="did you mean 'timeout'"):
        registry.messenger("memcached://localhost/n?timeoutt=1")
    with pytest.raises(UsageError, match="named twice"):
        registry.messenger("memcached://localhost,localhost:11211/n")
    with pytest.raises(UsageError, match="at least one server"):
        Messenger([])


# ---- life


def test_close_ends_a_waiting_read_and_open_begins_anew(made):
    messenger = made()
    channel = kept(messenger)
    raised: list[Exception] = []

    def read() -> None:
        try:
            messenger.read({channel: b""}, limit=1, wait=60)
        except ClientClosed as error:
            raised.append(error)

    reading = threading.Thread(target=read)
    opened = messenger._opened
    reading.start()
    while not opened.reading.lock.locked():
        time.sleep(0)
    messenger.close()
    reading.join(10)
    assert raised
    messenger.open()
    messenger.write([(channel, b"x")])
    assert frames(messenger, channel, 1) == [b"x"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_connects_afresh(made):
    messenger = made()
    channel = kept(messenger)
    messenger.write([(channel, b"0")])
    cursor = messenger.read({channel: b""}, limit=1, wait=1).messages[0].cursor
    opened = messenger._opened
    # As another thread might hold them at the fork.
    with opened.reading.lock, opened.writing.lock, opened.writing.servers[0]._lock, opened.reading.servers[0]._lock:
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                messenger.write([(channel, b"%d" % n) for n in range(1, 100)])
                code = 0 if frames(messenger, channel, 99, cursor)[-1] == b"99" else 2
                messenger.close()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    messenger.write([(channel, b"100")])
    assert frames(messenger, channel, 100, cursor) == [b"%d" % n for n in range(1, 101)]


# ---- at random


class Walk:
    """Writers, a reader, and what becomes of slots, beside a plain list of what must come out."""

    def __init__(self, messengers: list[Messenger], raw: Server, channel: str) -> None:
        self.messengers, self.raw, self.channel = messengers, raw, channel
        self.keys = block.keys_of("test", channel)
        self.blocks: dict[int, list[bytes]] = {}  # by position, as they must be there
        self.numbers = itertools.count()
        self.cursor, self.place = b"", block.Place(0, 0)
        self.start = self.place  # what is before was forgotten

    def write(self, who: int, count: int) -> None:
        frames = [b"%d" % next(self.numbers) for _ in range(count)]
        self.messengers[who].write([(self.channel, frame) for frame in frames])
        self.blocks[counter(self.raw, self.keys)] = frames

    def die(self, count: int) -> None:
        """A writer that allocates, and never stores."""
        self.raw.ask([codec.count(self.keys.counter, count)])

    def evict(self, which: int) -> None:
        there = [position for position in self.blocks if position > self.place.position]
        if there:
            position = there[which % len(there)]
            self.raw.ask([codec.delete(self.keys.slot(position))])
            del self.blocks[position]

    def evict_records(self) -> None:
        self.raw.ask([codec.delete(key) for key in (self.keys.terms, self.keys.grace)])

    def read(self, limit: int) -> None:
        expected = self.after(self.place)
        batch = self.messengers[0].read({self.channel: self.cursor}, limit=limit, wait=0.02)
        found = [message.frame for message in batch.messages]
        assert not batch.lost
        assert found == expected[: len(found)]
        if batch.messages:
            self.cursor = batch.messages[-1].cursor
            self.place = block.place_after(self.cursor)

    def drain(self) -> None:
        deadline = time.monotonic() + 10
        while self.after(self.place):
            assert time.monotonic() < deadline
            self.read(1000)

    def forget(self) -> None:
        if self.cursor:
            self.messengers[0].forget(self.channel, self.cursor)
            self.start = self.place

    def replay(self) -> None:
        """From the start, with somebody who knows nothing."""
        expected = self.after(self.start)
        assert frames(self.messengers[1], self.channel, len(expected)) == expected

    def after(self, place: block.Place) -> list[bytes]:
        return [
            frame
            for position, frames in sorted(self.blocks.items())
            if position >= place.position
            for frame in frames[place.offset if position == place.position else 0 :]
        ]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 2), st.integers(1, 5)),
        st.tuples(st.just("read"), st.integers(1, 8)),
        st.tuples(st.just("die"), st.integers(1, 3)),
        st.tuples(st.just("evict"), st.integers(0, 50)),
        st.tuples(st.sampled_from(["forget", "drain", "replay", "evict_records"])),
    ),
    min_size=15,
    max_size=50,
)


@given(STEPS)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_becomes_of_slots_the_rest_comes_once_and_in_order(server, raw, steps):
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(reading, "GRACE", 0.01)
        messengers = [Messenger([server.address], "test") for _ in range(3)]
        for messenger in messengers:
            stack.callback(messenger.close)
            messenger.open()
        walk = Walk(messengers, raw, kept(messengers[0]))
        for name, *values in steps:
            getattr(walk, name)(*values)
        walk.drain()
        walk.replay()
        messengers[0].forget(walk.channel)


# ---- bytes


ANSWERS = [
    (b"HD\r\n", (b"HD", b"", b"")),
    (b"HD s5 f7 t-1\r\n", (b"HD", b"s5 f7 t-1", b"")),
    (b"EN\r\n", (b"EN", b"", b"")),
    (b"VA 0 f0\r\n\r\n", (b"VA", b"f0", b"")),
    (b"VA 7\r\nab\r\nEN\r\n\r\n"[:6] + b"a\r\nEN\r\n\r\n", (b"VA", b"", b"a\r\nEN\r\n")),
    (b"VA 5000 f1\r\n" + bytes(5000) + b"\r\n", (b"VA", b"f1", bytes(5000))),
    (b"SERVER_ERROR out of memory storing object\r\n", (b"SERVER_ERROR", b"out of memory storing object", b"")),
    (b"NF\r\n", (b"NF", b"", b"")),
]


@given(st.lists(st.sampled_from(ANSWERS), max_size=30), st.lists(st.integers(1, 400), max_size=60))
def test_answers_may_be_split_anywhere(answers, cuts):
    data = b"".join(text for text, _ in answers)
    parser = codec.Parser()
    for cut in cuts:
        parser.feed(data[:cut])
        data = data[cut:]
    for byte in data[:100]:
        parser.feed(bytes([byte]))
    parser.feed(data[100:])
    assert parser.take(parser.ready) == [codec.Answer(*parsed) for _, parsed in answers]
    assert parser.rest == 0


@given(st.lists(st.one_of(st.binary(max_size=50), st.sampled_from([text for text, _ in ANSWERS])), max_size=20))
def test_nonsense_is_a_protocol_error_or_not_yet_an_answer(parts):
    parser = codec.Parser()
    with contextlib.suppress(ProtocolError):
        for part in parts:
            parser.feed(part)
            assert parser.rest <= sum(map(len, parts))


@pytest.mark.parametrize("line", [b"VA x\r\n", b"VA -1\r\n", b"VA 99999999999\r\n", b"VA\r\n", b"HDX\r\n", b"x" * 3000])
def test_lengths_and_lines_are_bounded(line):
    with pytest.raises(ProtocolError):
        codec.Parser().feed(line)
    with pytest.raises(ProtocolError):
        codec.Parser().feed(b"VA 3\r\nabcdef\r\n")


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=20))
def test_blocks_hold_their_frames(frames):
    own = block.mark()
    packed = block.pack(frames, own)
    assert block.unpack(packed) == frames
    assert block.mark_of(packed) == own
    assert block.unpack(packed[:-1]) is None
    assert block.unpack(packed + b"x") is None


@given(st.binary(max_size=60))
def test_no_bytes_break_reading(value):
    block.unpack(value)
    block.unpack_large(value)
    block.place_after(value)
    block.numbers_of(value, 2)


def test_counters_keep_their_length():
    values = {block.birth() for _ in range(1000)}
    assert len(values) > 990
    assert {len(str(value)) for value in values} == {19}
    assert {len(str(value + (1 << block.SHIFT) - 1)) for value in values} == {19}
    assert all(issubclass(error, AssistantError) for error in (ProtocolError, Unreachable))
