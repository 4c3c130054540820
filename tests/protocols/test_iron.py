"""Iron's answers, and what stands in messages and payloads: whatever comes is read or refused, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revolve_assistant.errors import ProtocolError, ProviderError, UsageError
from revolve_assistant.protocols.iron import answers, mq, read, tasks
from revolve_assistant.providers.ironmq import wrapping
from revolve_assistant.providers.ironworker import payload

READERS: list[Callable[[bytes], Any]] = [
    mq.posted, mq.reserved, mq.found, mq.touched, mq.info, mq.names, tasks.queued, tasks.status, tasks.codes
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["ids", "messages", "message", "queue", "queues", "tasks", "id", "body", "reservation_id", "status", "codes"]
NEAR = st.dictionaries(st.sampled_from(FIELDS), VALUES | st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES)))
SETTINGS = read("iron_mq", environment={}, folder="/", project_id="p", token="the-token-itself")


@given(st.binary() | VALUES.map(lambda value: json.dumps(value).encode()) | NEAR.map(lambda v: json.dumps(v).encode()))
def test_an_answer_is_read_or_refused(body):
    for reader in READERS:
        try:
            reader(body)
        except ProtocolError:
            pass


@given(st.binary(), st.integers(300, 599))
def test_an_error_answer_is_one_of_ours_and_hides_the_token(body, status):
    for text in (body, body + b"the-token-itself", json.dumps({"msg": "the-token-itself \x1b[2J" * 9}).encode()):
        error = answers.error(SETTINGS, "GET queues", status, text)
        assert isinstance(error, ProviderError)
        assert "the-token-itself" not in str(error)
        assert str(error).isprintable()


@given(st.text() | st.binary().map(wrapping._text), st.binary(max_size=200), st.text(max_size=20))
def test_what_stands_in_a_message(text, data, id):
    assert isinstance(wrapping.read_frame(text).frame, bytes)
    assert isinstance(wrapping.read_task("1", text).body, bytes)
    wrapping.read_part(text)
    assert wrapping.read_frame(wrapping.frame(b"12345678", 7, data)) == (data, (b"12345678", 7))
    assert wrapping.read_part(wrapping.part(3, data)) == (3, data)
    wrapped = wrapping.Wrapped(id, data, 0, "why")
    assert wrapping.read_task("1", wrapping.task(wrapped)) == wrapped
    try:
        payload.read(text)
    except ProtocolError:
        pass


@given(st.lists(st.tuples(st.integers(0, 3000), st.sampled_from([0, 5])), max_size=300))
def test_batches_fit_a_request_and_keep_the_order(sizes):
    limit = 4096
    messages = [mq.Text("x" * size, delay) for size, delay in sizes]
    batches = list(mq.batches(messages, limit))
    assert [each for some in batches for each in some] == messages
    for some in batches:
        request = mq.post("jobs", some)
        assert len(some) <= 100
        assert request.body is not None
        assert len(request.body) <= limit


def test_the_largest_message_fits():
    limit = 4096
    (some,) = mq.batches([mq.Text("x" * mq.room(limit), 604_800)], limit)
    body = mq.post("jobs", some).body
    assert body is not None
    assert len(body) <= limit
    with pytest.raises(UsageError, match="more than the 4,096"):
        list(mq.batches([mq.Text("x" * limit)], limit))
