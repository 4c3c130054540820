"""Removing channels that nobody reads: beanstalkd never does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

from ...errors import ProviderError
from ...protocols.beanstalkd import BeanstalkdClient, fields, items
from ...protocols.beanstalkd import commands as ask
from ...protocols.stream import Address
from .address import Place

_BATCH = 500  # jobs taken at once
_PATIENCE = 1.0  # seconds that a server has to answer here


class Sweeper:
    """Remembers since when channels have no reader."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._since: dict[tuple[Address, str], float] = {}

    def sweep(self, older_than: float) -> int:
        """See `Messenger.sweep`."""
        dropped: set[str] = set()
        for address in self._place.servers:
            with contextlib.suppress(ProviderError), _client(self._place, address) as client:
                dropped |= self._sweep(client, address, older_than)
        return len(dropped)

    def _sweep(self, client: BeanstalkdClient, address: Address, older_than: float) -> set[str]:
        now = time.monotonic()
        names = self._place.names
        tubes = [tube for tube in items(client.one(ask.list_tubes()).body) if names.meaning(tube).kind == "channel"]
        said = client.ask(*[ask.stats_tube(tube) for tube in tubes])
        unread = {
            tube for tube, answer in zip(tubes, said, strict=True) if fields(answer.body).get("current-watching") == "0"
        }
        for key in [key for key in self._since if key[0] == address and key[1] not in unread]:
            del self._since[key]
        old = {tube for tube in unread if now - self._since.setdefault((address, tube), now) >= older_than}
        empty(client, [tube.encode() for tube in old])
        for tube in old:
            self._since.pop((address, tube), None)
        return old


def drain(place: Place, tubes: Iterable[bytes]) -> None:
    """Delete every job of the tubes that nobody holds, on each server that answers."""
    tubes = list(tubes)
    for address in place.servers:
        with contextlib.suppress(ProviderError), _client(place, address) as client:
            empty(client, tubes)


def empty(client: BeanstalkdClient, tubes: Iterable[bytes]) -> None:
    """The same on one server, of which `client` watches nothing yet."""
    for tube in tubes:
        client.ask(ask.watch(tube), ask.ignore("default"))
        while True:
            answers = client.ask(*[ask.reserve(0) for _ in range(_BATCH)])
            jobs = [answer.number for answer in answers if answer.word == b"RESERVED"]
            if not jobs:
                break
            client.delete(*jobs)
        client.ask(ask.ignore(tube))


def _client(place: Place, address: Address) -> BeanstalkdClient:
    return BeanstalkdClient(address, timeout=min(place.timeout, _PATIENCE), bells=place.names.bell("").decode())
