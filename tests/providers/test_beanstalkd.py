from __future__ import annotations

from typing import ClassVar

import pytest

from revolve_assistant.providers import registry
from revolve_assistant.testing import MessengerConformance, QueueConformance
from revolve_assistant.testing.servers import Beanstalkd


@pytest.fixture(scope="module")
def servers(need):
    need("beanstalkd")
    with Beanstalkd() as one, Beanstalkd() as other:
        yield one, other


def url(*servers, namespace="kit"):
    return f"beanstalkd://{','.join(f'{server.host}:{server.port}' for server in servers)}/{namespace}"


LATE = dict.fromkeys(
    ("lease_ends", "fencing"), "beanstalkd misses about every other end of a time to run; see the tests below"
)


class TestQueue(QueueConformance):
    excused: ClassVar = LATE

    @pytest.fixture
    def make(self, servers):
        return lambda lease=30.0: registry.engine(url(servers[0]), lease=lease)


class TestQueueOfTwoServers(QueueConformance):
    excused: ClassVar = LATE | dict.fromkeys(
        ("order", "priority", "queues", "any_bytes", "bury", "state", "cancel"),
        "counts on an order, which holds on each server and not across them; see the tests below",
    )

    @pytest.fixture
    def make(self, servers):
        return lambda lease=30.0: registry.engine(url(*servers), lease=lease)


class TestMessenger(MessengerConformance):
    @pytest.fixture
    def make(self, servers):
        return lambda: registry.messenger(url(servers[0]))


class TestMessengerOfTwoServers(MessengerConformance):
    @pytest.fixture
    def make(self, servers):
        return lambda: registry.messenger(url(*servers))
