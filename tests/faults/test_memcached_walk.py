"""Writers, a reader, dying, evicting and forgetting at random, beside a plain list of what must come out."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from revolve_assistant.providers.memcached import Messenger, block, codec, reading
from revolve_assistant.providers.memcached.server import Server
from revolve_assistant.testing.servers import Memcached

_names = (f"channel{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def server(need: Callable[[str], str]) -> Iterator[Memcached]:
    need("memcached")
    with Memcached() as server:
        yield server


@pytest.fixture
def raw(server: Memcached) -> Iterator[Server]:
    """Plain commands to the server, to do behind a messenger's back what others might."""
    raw = Server(*server.address, account=None, timeout=5)
    yield raw
    raw.close()


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
        (head,) = self.raw.ask([codec.get(self.keys.counter)])
        self.blocks[int(head.value)] = frames

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
        found: list[bytes] = []
        cursor, deadline = b"", time.monotonic() + 10
        while len(found) < len(expected):
            assert time.monotonic() < deadline
            for message in self.messengers[1].read({self.channel: cursor}, limit=1000, wait=0.02).messages:
                found.append(message.frame)
                cursor = message.cursor
        assert found == expected

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
        walk = Walk(messengers, raw, next(_names))
        messengers[0].keep([walk.channel], seconds=300, cap=8 << 20)
        for name, *values in steps:
            getattr(walk, name)(*values)
        walk.drain()
        walk.replay()
        messengers[0].forget(walk.channel)
