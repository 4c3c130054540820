"""What several tests of the core need."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from revolve_assistant import Client


@pytest.fixture
def reaped() -> Callable[[Client], None]:
    """`reaped(client)` returns once the forks of tasks that have ended are gone, so that nothing seems left behind."""

    def reaped(client: Client) -> None:
        if not client._engine.traits.kills or not client._engine.traits.live:
            return
        for child in list(client._engine.children):
            if not child.jobs:
                child.wait(5.0)
        done = threading.Event()  # rung after the pump has looked at what has ended by now
        client._engine.pump.start()
        client._engine.pump.soon(done.set)
        assert done.wait(20)

    return reaped
