from __future__ import annotations

import pytest

from revolve_assistant.providers import registry
from revolve_assistant.testing import MessengerConformance


class TestMessenger(MessengerConformance):
    @pytest.fixture
    def make(self, tmp_path):
        return lambda: registry.messenger(f"file://{tmp_path}/messages")


class TestPolled(MessengerConformance):
    """As on a network file system: polled, each batch flushed."""

    @pytest.fixture
    def make(self, tmp_path):
        return lambda: registry.messenger(f"filesystem://{tmp_path}/messages?network=yes")
