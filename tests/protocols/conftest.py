"""A gearmand, clients and workers for the tests of this folder."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from revolve_assistant.protocols.gearman import GearmanClient, GearmanWorker
from revolve_assistant.testing.servers import Gearmand

WAIT = 20.0  # seconds that nothing here should take


@pytest.fixture
def server(need):
    need("gearmand")
    with Gearmand() as server:
        yield server


@pytest.fixture
def client(server):
    with GearmanClient([server.address]) as client:
        yield client


@pytest.fixture
def working():
    """`with working(servers, {name: function}, …) as worker`: a worker in a thread of its own."""

    @contextlib.contextmanager
    def working(servers, functions, **options):
        with GearmanWorker(servers, **options) as worker:
            for name, function in functions.items():
                worker.register(name, function)
            thread = threading.Thread(target=worker.work)
            thread.start()
            try:
                yield worker
            finally:
                worker.stop()
                thread.join(WAIT)
                assert not thread.is_alive()

    return working


@pytest.fixture
def until():
    """`until(condition)`: wait for what only a server can say."""

    def until(condition):
        deadline = time.monotonic() + WAIT
        pause = threading.Event()
        while not (value := condition()):
            assert time.monotonic() < deadline
            pause.wait(0.01)
        return value

    return until
