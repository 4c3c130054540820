"""IronMQ as a Queue and as a Messenger against the stand-in: the conformance kit, and what is its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from revolve_assistant.providers import registry
from revolve_assistant.testing import MessengerConformance, QueueConformance
from revolve_assistant.testing.iron import IronServer


@pytest.fixture(scope="module")
def iron() -> Iterator[IronServer]:
    with IronServer() as server:
        yield server


class TestQueue(QueueConformance):
    @pytest.fixture
    def make(self, iron: IronServer):
        return lambda **options: registry.engine(iron.url("kit"), **options)


class TestMessenger(MessengerConformance):
    @pytest.fixture
    def make(self, iron: IronServer):
        return lambda: registry.messenger(iron.url("kit"))
