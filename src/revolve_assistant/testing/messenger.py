"""What every Messenger must do, as checks; see `checks` for how they work.

    class TestRedis(MessengerConformance):
        @pytest.fixture
        def make(self, redis_server):
            return lambda: registry.messenger(redis_server.url)

A carrier without the trait `replays` need not tell kept from lost, nor cap, expire or forget: it is read once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from ..errors import ClientClosed, UsageError
from ..messenger import Batch, Message, Messenger
from .checks import PATIENCE, PROMPT, Aside, claim, entered, equal, eventually, fresh, needs, opened, refuses, tests_of

Make = Callable[[], Messenger]

_KEEP = 300.0  # seconds
_CAP = 8 << 20  # bytes


def _kept(member: Messenger, *channels: str, seconds: float = _KEEP, cap: int = _CAP) -> str:
    """Keep these channels, or a fresh one; its name."""
    channels = channels or (fresh(),)
    member.keep(channels, seconds=seconds, cap=cap)
    return channels[0]


def _gather(
    reader: Messenger,
    channels: Iterable[str],
    count: int,
    *,
    cursors: dict[str, bytes] | None = None,
    limit: int = 1000,
) -> list[Message]:
    """Read until `count` messages have come, advancing `cursors`; fails if channels are lost meanwhile."""
    cursors = dict.fromkeys(channels, b"") if cursors is None else cursors
    found: list[Message] = []

    def look() -> bool:
        batch = reader.read(cursors, limit=limit, wait=0.2)
        claim(not batch.lost, f"channels reported as lost that are kept: {sorted(batch.lost)}")
        claim(len(batch.messages) <= limit, f"limit {limit}: read gave {len(batch.messages)} messages")
        for message in batch.messages:
            claim(message.channel in cursors, f"a message of {message.channel!r}, which was not asked for")
            claim(message.cursor and message.cursor != cursors[message.channel], "the cursor does not move on")
            cursors[message.channel] = message.cursor
        found.extend(batch.messages)
        return len(found) >= count

    eventually(look, f"{count} messages (so far {len(found)})")
    equal(len(found), count, "number of messages")
    return found


def _frames(reader: Messenger, channel: str, count: int) -> list[bytes]:
    return [message.frame for message in _gather(reader, [channel], count)]


def _read_for(reader: Messenger, channel: str, wait: float) -> Batch:
    return reader.read({channel: b""}, limit=10, wait=wait)


def _silent(reader: Messenger, cursors: Mapping[str, bytes]) -> None:
    batch = reader.read(cursors, limit=10, wait=0.1)
    equal([message.frame for message in batch.messages], [], "messages where none should be left")


def _until_lost(reader: Messenger, channel: str) -> None:
    def look() -> bool:
        return channel in reader.read({channel: b""}, limit=10, wait=0.1).lost

    eventually(look, f"channel {channel!r} is gone, and reported in Batch.lost")


def check_order(make: Make) -> None:
    """Messages of a channel arrive in the order in which they were written, across batches."""
    with opened(make) as (writer, reader):
        channel = _kept(reader)
        sent = [b"%d" % n for n in range(300)]
        for start in range(0, len(sent), 7):
            writer.write([(channel, frame) for frame in sent[start : start + 7]])
        equal(_frames(reader, channel, len(sent)), sent, "order")


def check_many_channels(make: Make) -> None:
    """One batch may go to many channels, one read may ask for many, and each keeps its order."""
    with opened(make) as (writer, reader):
        channels = [fresh() for _ in range(20)]
        _kept(reader, *channels)
        writer.write([(channel, f"{channel} {n}".encode()) for n in range(10) for channel in channels])
        found = _gather(reader, channels, 200, limit=50)
        for channel in channels:
            frames = [message.frame for message in found if message.channel == channel]
            equal(frames, [f"{channel} {n}".encode() for n in range(10)], f"messages of {channel!r}")


def check_resume(make: Make) -> None:
    """A later read goes on exactly after the cursor of the last message."""
    with opened(make) as (writer, reader):
        channel = _kept(reader)
        sent = [b"%d" % n for n in range(12)]
        writer.write([(channel, frame) for frame in sent])
        cursors = {channel: b""}
        first = _gather(reader, [channel], 12, cursors=cursors, limit=5)
        writer.write([(channel, b"last")])
        last = _gather(reader, [channel], 1, cursors=cursors)
        equal([message.frame for message in first + last], [*sent, b"last"], "messages over several reads")
        _silent(reader, cursors)


def check_replay(make: Make) -> None:
    """Every cursor resumes exactly after its message, for any reader; `b""` is the start, again and again."""
    needs(make().traits.replays, "does not replay")
    with opened(make, 3) as (writer, reader, other):
        channel = _kept(reader)
        sent = [b"%d" % n for n in range(8)]
        writer.write([(channel, frame) for frame in sent])
        found = _gather(reader, [channel], 8)
        for n, message in enumerate(found, 1):
            rest = _gather(other, [channel], 8 - n, cursors={channel: message.cursor})
            equal([message.frame for message in rest], sent[n:], f"messages after the cursor of message {n}")
        equal(_frames(reader, channel, 8), sent, "the second reading from the start")


def check_looking(make: Make) -> None:
    """A read that does not wait sees what has come, if it is called again and again; also what comes later."""
    with opened(make) as (writer, reader):
        channel = _kept(reader)
        cursor = b""

        found: list[bytes] = []

        def look() -> int:
            nonlocal cursor
            messages = reader.read({channel: cursor}, limit=10, wait=0.0).messages
            cursor = messages[-1].cursor if messages else cursor
            found.extend(message.frame for message in messages)
            return len(found)

        for n in range(3):
            for _ in range(10):
                equal(look(), n, "messages before another one was written")
            writer.write([(channel, b"%d" % n)])
            eventually(lambda count=n + 1: look() == count, "a read that does not wait sees it")  # type: ignore[misc]
        equal(found, [b"0", b"1", b"2"], "what it saw")


def check_equal_messages(make: Make) -> None:
    """Two equal messages are two."""
    with opened(make) as (writer, reader):
        channel = _kept(reader)
        writer.write([(channel, b"tick"), (channel, b"tick")])
        writer.write([(channel, b"tick")])
        equal(_frames(reader, channel, 3), [b"tick"] * 3, "equal messages")


def check_any_bytes(make: Make) -> None:
    """Frames are bytes of any value and length, the empty one included."""
    with opened(make) as (writer, reader):
        channel = _kept(reader)
        sent = [b"", b"\x00", bytes(range(256)), b"\r\nEND\r\n", b"\x00" * 100, bytes(range(255, -1, -1)) * 3, b"x"]
        writer.write([(channel, frame) for frame in sent])
        equal(_frames(reader, channel, len(sent)), sent, "bytes")


def check_largest(make: Make) -> None:
    """A frame of `traits.max_bytes` passes; a larger one is a UsageError and nothing of its batch is written."""
    largest = make().traits.max_bytes
    needs(largest <= 64 << 20, f"max_bytes is {largest:,}: too much to try")
    with opened(make) as (writer, reader):
        channel = _kept(reader, cap=2 * largest + _CAP)
        frame = bytes(range(256)) * (largest // 256) + bytes(largest % 256)
        batch = [(channel, b"before"), (channel, frame + b"x")]
        refuses(UsageError, lambda: writer.write(batch), f"a frame of {largest + 1:,} bytes")
        writer.write([(channel, frame), (channel, b"after")])
        found = _frames(reader, channel, 2)
        claim(found[0] == frame and found[1] == b"after", f"a frame of {largest:,} bytes did not pass whole, alone")


def check_concurrent_writers(make: Make) -> None:
    """Writers at the same time lose nothing, double nothing, and each keeps its order."""
    with opened(make, 5) as (reader, *writers):
        channel = _kept(reader)
        start = threading.Barrier(len(writers))

        def write(own: int, writer: Messenger) -> None:
            start.wait(PATIENCE)
            for n in range(0, 100, 2):
                writer.write([(channel, b"%d %d" % (own, n)), (channel, b"%d %d" % (own, n + 1))])

        threads = [Aside(write, own, writer) for own, writer in enumerate(writers)]
        found = _frames(reader, channel, 400)
        for thread in threads:
            thread.result(PATIENCE, "a writer ends")
        for own in range(len(writers)):
            mine = [frame for frame in found if frame.startswith(b"%d " % own)]
            equal(mine, [b"%d %d" % (own, n) for n in range(100)], f"messages of writer {own}")


def check_overlap(make: Make) -> None:
    """`write` and `read` of one object may run at the same time."""
    with opened(make, 1) as (member,):
        channel = _kept(member)
        sent = [b"%d" % n for n in range(200)]
        reading = Aside(_frames, member, channel, len(sent))
        for frame in sent:
            member.write([(channel, frame)])
        equal(reading.result(2 * PATIENCE, "reading while writing"), sent, "messages read while writing")


def check_wait(make: Make) -> None:
    """A waiting read returns promptly once something is written."""
    needs(make().traits.waits, "is polled")
    with opened(make) as (writer, reader):
        channel = _kept(reader)
        cursors = {channel: b""}
        for n in range(20):
            reading = entered(lambda: _gather(reader, [channel], 1, cursors=cursors))
            writer.write([(channel, b"%d" % n)])
            found = reading.result(PROMPT, "a waiting read hears of a write")
            equal(found[0].frame, b"%d" % n, "what the waiting read got")


def check_wake(make: Make) -> None:
    """`wake` ends a waiting read from another thread, or else the next one; a later one waits again."""
    with opened(make, 1) as (reader,):
        channel = _kept(reader)
        wait = min(2 * PATIENCE, reader.traits.max_wait)
        reader.wake()
        Aside(_read_for, reader, channel, wait).result(PROMPT, "the read after a wake returns")
        for _ in range(5):
            reading = entered(_read_for, reader, channel, wait)
            reader.wake()
            reading.result(PROMPT, "a read returns after a wake")


def check_empty_read(make: Make) -> None:
    """A read that finds nothing returns empty within `wait`, with `wait=0` at once; writing nothing does nothing."""
    with opened(make, 1) as (reader,):
        channel = _kept(reader)
        reader.write([])
        reader.keep([], seconds=_KEEP, cap=_CAP)
        spent = 0.0
        for wait in (0.0, 0.2, 0.2, 0.2):
            reading = Aside(_read_for, reader, channel, wait)
            batch = reading.result(wait + PROMPT, f"an empty read with wait={wait:g} returns")
            equal((list(batch.messages), batch.lost), ([], frozenset()), "an empty read")
            spent += reading.seconds
        claim(not reader.traits.waits or spent > 0.3, "three reads with wait=0.2 did not wait: a reader would spin")


def check_limit(make: Make) -> None:
    """No read gives more than `limit` messages, and the rest comes later."""
    with opened(make) as (writer, reader):
        channels = [fresh(), fresh()]
        _kept(reader, *channels)
        cursors = dict.fromkeys(channels, b"")
        for limit in (1, 3):
            writer.write([(channel, b"%d" % n) for n in range(5) for channel in channels])
            _gather(reader, channels, 10, cursors=cursors, limit=limit)


def check_channel_names(make: Make) -> None:
    """Names of up to 64 letters, digits, dots, dashes and underscores, never confused with each other."""
    stem = fresh("N")
    names = [f"{stem}{end}" for end in ("", ".a", ".A", "-a", "_a", ".a.a", ".1", ".10", ".lock", "..")]
    names.append(stem + "x" * (64 - len(stem)))
    with opened(make) as (writer, reader):
        _kept(reader, *names)
        writer.write([(name, name.encode()) for name in names])
        for name in names:
            equal(_frames(reader, name, 1), [name.encode()], f"messages of {name!r}")


def check_fanout(make: Make) -> None:
    """Several readers each get every message."""
    needs(make().traits.fanout, "has no fanout")
    with opened(make, 4) as (writer, *readers):
        channel = _kept(writer)
        sent = [b"%d" % n for n in range(50)]
        reading = [Aside(_frames, reader, channel, 50) for reader in readers]
        for frame in sent:
            writer.write([(channel, frame)])
        for one in reading:
            equal(one.result(2 * PATIENCE, "a reader ends"), sent, "what one of three readers got")


def check_forget_upto(make: Make) -> None:
    """Forgetting up to a cursor removes the messages up to it, and not the channel."""
    needs(make().traits.replays, "does not replay")
    with opened(make) as (writer, reader):
        channel = _kept(reader)
        writer.write([(channel, b"%d" % n) for n in range(6)])
        found = _gather(reader, [channel], 6)
        reader.forget(channel, found[3].cursor)
        equal(_frames(reader, channel, 2), [b"4", b"5"], "messages after forgetting the first four")
        reader.forget(channel, found[5].cursor)
        _silent(reader, {channel: b""})
        writer.write([(channel, b"6")])
        rest = _gather(reader, [channel], 1, cursors={channel: found[5].cursor})
        equal(rest[0].frame, b"6", "the message after all were forgotten")


def check_forget_channel(make: Make) -> None:
    """A forgotten channel is reported as lost; its neighbours live on; forgetting an unknown one does nothing."""
    needs(make().traits.replays, "does not replay")
    with opened(make) as (writer, reader):
        gone, stays = fresh(), fresh()
        _kept(reader, gone, stays)
        writer.write([(gone, b"a"), (stays, b"b")])
        reader.forget(gone)
        reader.forget(fresh())
        _until_lost(reader, gone)
        equal(_frames(reader, stays, 1), [b"b"], "messages of the channel that stays")
        lost: set[str] = set()
        frames: list[bytes] = []

        def look() -> bool:
            batch = reader.read({gone: b"", stays: b""}, limit=10, wait=0.1)
            lost.update(batch.lost)
            frames.extend(message.frame for message in batch.messages)
            return bool(lost and frames)

        eventually(look, "a read of a lost and a living channel tells of both")
        equal(lost, {gone}, "lost channels")


def check_unknown_channel(make: Make) -> None:
    """A channel that was never made is reported as lost, at once."""
    needs(make().traits.replays, "does not replay")
    with opened(make, 1) as (reader,):
        Aside(_until_lost, reader, fresh()).result(PROMPT, "an unknown channel is reported")


def check_made_again(make: Make) -> None:
    """A cursor of a forgotten channel never hides the messages of a new one of that name: they come, or it is lost."""
    needs(make().traits.replays, "does not replay")
    with opened(make) as (writer, reader):
        channel = _kept(reader)
        writer.write([(channel, b"old")] * 5)
        cursor = _gather(reader, [channel], 5)[-1].cursor
        reader.forget(channel)
        _kept(reader, channel)
        writer.write([(channel, b"new")])

        def look() -> bool:
            batch = reader.read({channel: cursor}, limit=10, wait=0.1)
            return channel in batch.lost or [message.frame for message in batch.messages] == [b"new"]

        eventually(look, "an old cursor in a new channel gives its messages or reports the loss")
        equal(_frames(reader, channel, 1), [b"new"], "messages of the new channel")


def check_cap(make: Make) -> None:
    """Past the cap the oldest messages go, the newest stay, without holes."""
    needs(make().traits.replays, "does not replay")
    cap, size, count = 64 << 10, min(1 << 10, make().traits.max_bytes - 8), 256
    with opened(make) as (writer, reader):
        channel = _kept(reader, cap=cap)
        for n in range(0, count, 8):
            writer.write([(channel, b"%d " % i + bytes(size)) for i in range(n, n + 8)])
        numbers: list[int] = []
        cursors = {channel: b""}

        def look() -> bool:
            batch = reader.read(cursors, limit=1000, wait=0.1)
            for message in batch.messages:
                cursors[channel] = message.cursor
                numbers.append(int(message.frame.partition(b" ")[0]))
            return bool(numbers) and numbers[-1] == count - 1

        eventually(look, "the newest message is there")
        equal(numbers, list(range(numbers[0], count)), "what is left is the newest, without holes")
        claim(len(numbers) * size <= 2 * cap, f"cap {cap:,}: {len(numbers) * size:,} bytes are still there")
        claim(len(numbers) * size >= cap // 2, f"cap {cap:,}: only {len(numbers) * size:,} bytes are left")


def check_expiry(make: Make) -> None:
    """A channel goes when its time is over, not before, and `keep` renews it."""
    needs(make().traits.replays, "does not replay")
    with opened(make) as (writer, reader):
        short, renewed = fresh(), fresh()
        began = time.monotonic()
        _kept(reader, short, renewed, seconds=1.0)
        writer.write([(short, b"a"), (renewed, b"b")])
        _kept(reader, renewed)
        _until_lost(reader, short)
        claim(time.monotonic() - began >= 0.9, "a channel kept for 1 s was gone before")
        equal(_frames(reader, renewed, 1), [b"b"], "messages of the renewed channel")


def check_close(make: Make) -> None:
    """`close` may be called twice, and unopened; afterwards calls raise ClientClosed; others are not disturbed."""
    with opened(make) as (member, other):
        channel = _kept(other)
        member.write([(channel, b"a")])
        member.close()
        member.close()
        make().close()
        refuses(ClientClosed, lambda: member.write([(channel, b"b")]), "write after close")
        refuses(ClientClosed, lambda: member.read({channel: b""}, limit=1, wait=0), "read after close")
        refuses(ClientClosed, lambda: member.keep([channel], seconds=1, cap=1), "keep after close")
        refuses(ClientClosed, lambda: member.forget(channel), "forget after close")
        member.wake()
        equal(_frames(other, channel, 1), [b"a"], "messages after the writer closed")


MESSENGER_CHECKS = tuple(check for name, check in list(globals().items()) if name.startswith("check_"))


@tests_of(MESSENGER_CHECKS)
class MessengerConformance:
    """The checks as pytest tests. A subclass gives the fixture `make`; `excused` maps checks to reasons to skip."""

    excused: ClassVar[Mapping[str, str]] = {}
