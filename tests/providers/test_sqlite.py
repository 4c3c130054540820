"""SQLite as a Queue and as a Messenger: the conformance kit, and what is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from revolve_assistant.providers import registry
from revolve_assistant.testing import MessengerConformance, QueueConformance


class TestQueue(QueueConformance):
    @pytest.fixture
    def make(self, tmp_path: Path):
        return lambda **options: registry.engine(f"sqlite:///{tmp_path}/jobs.db", **options)


class TestMessenger(MessengerConformance):
    @pytest.fixture
    def make(self, tmp_path: Path):
        return lambda: registry.messenger(f"sqlite:///{tmp_path}/jobs.db")
