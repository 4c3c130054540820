from __future__ import annotations

from typing import ClassVar

import pytest

from revolve_assistant.errors import Unreachable
from revolve_assistant.protocols.gearman import GearmanClient
from revolve_assistant.providers import registry
from revolve_assistant.testing import MessengerConformance, QueueConformance
from revolve_assistant.testing.checks import eventually
from revolve_assistant.testing.servers import Gearmand


@pytest.fixture(scope="module")
def servers():
    with Gearmand() as one, Gearmand() as other:
        yield one, other


def url(*servers, namespace="kit"):
    return f"gearman://{','.join(f'{server.host}:{server.port}' for server in servers)}/{namespace}"


class TestQueue(QueueConformance):
    @pytest.fixture
    def make(self, servers):
        return lambda: registry.engine(url(servers[0]))


class TestQueueOfTwoServers(QueueConformance):
    excused: ClassVar = dict.fromkeys(
        ("order", "priority", "queues", "any_bytes", "bury", "state", "cancel"),
        "counts on an order, which holds on each server and not across them; see the tests below",
    )

    @pytest.fixture
    def make(self, servers):
        return lambda: registry.engine(url(*servers))


class TestMessenger(MessengerConformance):
    @pytest.fixture
    def make(self, servers):
        return lambda: registry.messenger(url(servers[0]))


class TestMessengerOfTwoServers(MessengerConformance):
    @pytest.fixture
    def make(self, servers):
        return lambda: registry.messenger(url(*servers))


def test_who_takes_without_waiting_hears_of_tasks_and_reconnects():
    def taken():
        try:
            return queue.take(["default"], limit=1, wait=0.0)
        except Unreachable:
            return []

    def submitted(body):
        with GearmanClient([server.address]) as client:
            client.submit("kit.q.default", body, background=True)

    with Gearmand() as server:
        queue = registry.engine(url(server) + "?timeout=1")
        queue.open()
        try:
            for body in (b"first", b"second"):
                assert taken() == []
                submitted(body)
                (lease,) = eventually(taken, "a task", within=5.0)
                assert lease.body == body
            server.restart()
            submitted(b"third")
            assert eventually(taken, "a task of the new server", within=9.0)[0].body == b"third"
        finally:
            queue.close()
