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

from revolve_assistant.errors import ClientClosed, Unreachable, UsageError
from revolve_assistant.providers import registry
from revolve_assistant.providers.memcached import Messenger, block, codec, excused
from revolve_assistant.providers.memcached.reading import GRACE
from revolve_assistant.providers.memcached.server import Server
from revolve_assistant.providers.url import Url
from revolve_assistant.testing import MessengerConformance
from revolve_assistant.testing.servers import Memcached

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
    batch = made().read({channel: b""}, limit=10, wait=0)  # the tombstone is there for all: no wait
    assert [message.frame for message in batch.messages] == [b"before", b"after"]


def test_many_holes_cost_one_grace(made, raw):
    messenger = made()
    channel = kept(messenger)
    keys = block.keys_of("test", channel)
    for n in range(20):
        raw.ask([codec.count(keys.counter, 70)])
        messenger.write([(channel, b"%d" % n)])
    began = time.monotonic()
    assert frames(messenger, channel, 20) == [b"%d" % n for n in range(20)]
    assert time.monotonic() - began < 8 * GRACE


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
    assert len(pieces) == 6
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
    assert time.monotonic() - began < 10 * GRACE  # not a grace for each of 1,800 slots
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
    cursor, took = b"", []
    for n in range(6):
        began = time.monotonic()
        timer = threading.Timer(0.02, messenger.write, [[(channel, b"%d" % n)]])
        timer.start()
        cursor = messenger.read({channel: cursor}, limit=1, wait=10).messages[0].cursor
        took.append(time.monotonic() - began)
        timer.join()
    assert min(took[1:]) < 0.1


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


# ---- passwords, options


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


def test_the_kit_excuses_a_server_that_is_too_small_for_the_largest_frames(server):
    assert excused(Url.parse(f"memcached://{places([server])}")) == {}
    with Memcached() as small:
        reasons = excused(Url.parse(f"memcached://{places([server, small])}"))
        assert reasons == {"largest": "the server has 64 MB of memory: -m 256 holds two frames of 64 MiB"}
    assert excused(Url.parse(f"memcached://127.0.0.1:{small.port}")) == {}, "nobody there"
