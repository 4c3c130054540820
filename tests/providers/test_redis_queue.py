"""The Redis queue: the conformance kit, and what is its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from revolve_assistant.engine import Queue
from revolve_assistant.providers import registry
from revolve_assistant.testing import QueueConformance
from revolve_assistant.testing.servers import Redis


@pytest.fixture(scope="module")
def server(need: Any) -> Iterator[Redis]:
    need("redis-server")
    with Redis() as server:
        yield server


@pytest.fixture
def make(server: Redis) -> Callable[..., Queue]:
    return lambda **options: registry.engine(server.url, **options)  # type: ignore[return-value]


class TestConformance(QueueConformance):
    pass
