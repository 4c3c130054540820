"""What workers say for whoever looks: the life of tasks, and nothing of what they work on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from revolve_assistant import Client, Worker, emit
from revolve_assistant.providers import registry
from revolve_assistant.wire.seal import Purpose
from revolve_assistant.wire.secret import keyring


def secretive(word: str) -> str:
    emit("said", word)
    return word


def fails() -> None:
    raise ValueError("hidden words")


def test_the_monitor_tells_the_life_of_tasks_and_no_more() -> None:
    looking = registry.messenger("memory://monitored")
    looking.open()
    looking.keep(["monitor"], seconds=60, cap=1 << 20)
    with Worker("memory://monitored", concurrency=1) as worker, Client("memory://monitored") as client:
        good, bad = client.submit(secretive, "hidden words"), client.options(retries=1, backoff=0.0).submit(fails)
        assert good.result(60) == "hidden words"
        with pytest.raises(ValueError, match="hidden"):
            bad.result(60)
        name = worker.name
    cursor = b""
    told: dict[str, list[Any]] = {}
    keys = keyring(None)
    while sum(len(entries) for entries in told.values()) < 6:
        batch = looking.read({"monitor": cursor}, limit=100, wait=10.0)
        assert batch.messages
        for message in batch.messages:
            cursor = message.cursor
            data = bytes(keys.open(Purpose.MONITOR, "assistant/monitor", message.frame))
            assert b"hidden" not in data
            version, sender, entries = msgspec.msgpack.decode(data)
            assert (version, sender) == (1, name)
            for id, function, queue, event, attempt, _ in entries:
                assert queue == "default"
                told.setdefault(id, []).append((function.partition(":")[2], event, attempt))
    looking.close()
    assert told[good.id] == [("secretive", "started", 1), ("secretive", "succeeded", 1)]
    assert told[bad.id] == [
        ("fails", "started", 1),
        ("fails", "retrying", 1),
        ("fails", "started", 2),
        ("fails", "failed", 2),
    ]
