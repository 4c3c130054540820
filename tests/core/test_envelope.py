"""Envelopes: what this release writes, and that it reads what earlier ones wrote (fixtures, byte for byte)."""

from __future__ import annotations

import operator
import pickle
from pathlib import Path

import msgspec
import pytest

from revolve_assistant.wire import envelope
from revolve_assistant.wire.seal import Keyring, Purpose

FIXTURES = Path(__file__).parents[1] / "fixtures" / "envelopes"
ID = "0123456789abcdef0123456789abcdef"
INBOX = "i.00112233445566778899aabbccddeeff"
SECRET = "a secret of the fixtures, 0123456789abcdef"


def stored(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


def test_every_fixture_is_read_here():
    """A new fixture needs a test that says what is in it."""
    assert sorted(path.name for path in FIXTURES.iterdir()) == [
        "0.1.0-buffers.msgpack",
        "0.1.0-plain.msgpack",
        "0.1.0-sealed.bin",
        "0.1.0-terms.msgpack",
    ]


def test_a_plain_task_of_0_1_0():
    found = envelope.decode(stored("0.1.0-plain.msgpack"))
    assert (found.version, found.id, found.inbox) == (1, ID, INBOX)
    assert (found.name, found.kind, found.sent) == ("_operator:add", "plain", 1700000000.5)
    assert pickle.loads(found.body) is operator.add
    assert pickle.loads(found.payload) == ((1, 2), {})
    assert (found.terms, found.buffers, found.reads) == (envelope.PLAIN, [], [])
    assert (found.history, found.headers) == (0.0, {})  # 0.1.0 did not write these


def test_the_terms_of_0_1_0():
    terms = envelope.decode(stored("0.1.0-terms.msgpack")).terms
    assert (terms.timeout, terms.stall, terms.retries, terms.base, terms.cap) == (60.0, 5.5, 3, 0.5, 30.0)
    assert (terms.constant, terms.capture) == (2.0, True)
    assert pickle.loads(terms.pickled or b"") == ((Exception,), 2.0)


def test_the_buffers_and_addresses_of_0_1_0():
    found = envelope.decode(stored("0.1.0-buffers.msgpack"))
    assert found.buffers == [b"one" * 100, b""]
    assert found.reads == ["memcached://127.0.0.1:11211/assistant"]


def test_a_whole_body_of_0_1_0_with_its_seal():
    inbox, sealed = envelope.unwrap(stored("0.1.0-sealed.bin"))
    assert inbox == INBOX
    data = Keyring([SECRET]).open(Purpose.TASK, "assistant/default", sealed)
    assert envelope.decode(data).id == ID


def make(**changes: object) -> envelope.Envelope:
    return msgspec.structs.replace(envelope.decode(stored("0.1.0-plain.msgpack")), **changes)


def test_headers_and_history_travel():
    headers = {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "baggage": "user=ü"}
    found = envelope.decode(envelope.encode(make(history=3600.0, headers=headers)))
    assert (found.history, found.headers) == (3600.0, headers)


def test_0_1_0_reads_what_this_release_writes():
    """Fields are only ever added at the end, so an older reader finds its own where they were."""
    fields = msgspec.msgpack.decode(envelope.encode(make(history=1.0, headers={"a": "b"})))
    assert fields[:11] == [*msgspec.msgpack.decode(stored("0.1.0-plain.msgpack"))][:11]
    assert fields[11:] == [1.0, {"a": "b"}]


@pytest.mark.parametrize("headers", [{"a": 1}, {1: "a"}, ["a"], None, "a"])
def test_headers_that_are_none_are_refused(headers):
    fields = msgspec.msgpack.decode(stored("0.1.0-plain.msgpack"))
    fields = [*fields[:11], 0.0, headers]
    with pytest.raises(envelope.ProtocolError, match="no task"):
        envelope.decode(msgspec.msgpack.encode(fields))
