from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from revolve_assistant.providers import registry
from revolve_assistant.testing import MessengerConformance
from revolve_assistant.testing.servers import Redis


@pytest.fixture(scope="module")
def server(need) -> Iterator[Redis]:
    need("redis-server")
    with Redis() as server:
        yield server


class TestMessenger(MessengerConformance):
    @pytest.fixture
    def make(self, server: Redis) -> Callable[..., object]:
        return lambda: registry.messenger(server.url)
