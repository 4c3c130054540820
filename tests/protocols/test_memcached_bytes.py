"""What goes to memcached and comes back, without a server: answers, blocks, cursors."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revolve_assistant.errors import ProtocolError
from revolve_assistant.providers.memcached import block, codec

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
    block.size_of(value)
    block.place_after(value)
    block.numbers_of(value, 2)


def test_counters_keep_their_length():
    values = {block.birth() for _ in range(1000)}
    assert len(values) > 990
    assert {len(str(value)) for value in values} == {19}
    assert {len(str(value + (1 << block.SHIFT) - 1)) for value in values} == {19}
