"""Removing channels that nobody reads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

from ...errors import ProviderError
from ...protocols.gearman import GearmanAdmin
from ...protocols.gearman.admin import Refused
from ...protocols.stream import Address
from ..lines import Lines
from ..url import Url
from .address import MAX_BODY, Place
from .taking import Taking

_BATCH = 100  # jobs taken at once
_PATIENCE = 1.0  # seconds that a server has to answer here


class Sweeper:
    """Remembers since when channels have no reader."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._since: dict[tuple[Address, bytes], float] = {}

    def sweep(self, older_than: float) -> int:
        """See `Messenger.sweep`."""
        dropped = set()
        for address in self._place.servers:
            now = time.monotonic()
            try:
                with GearmanAdmin(address, timeout=min(self._place.timeout, _PATIENCE)) as admin:
                    status = admin.status()
            except ProviderError:
                continue
            unread = {
                name.encode("utf-8", "surrogateescape")
                for name, function in status.items()
                if not function.workers
                and name.encode("utf-8", "surrogateescape").startswith(self._place.names.channels)
            }
            for key in [key for key in self._since if key[0] == address and key[1] not in unread]:
                del self._since[key]
            old = [name for name in unread if now - self._since.setdefault((address, name), now) >= older_than]
            if old:
                drain(self._place._replace(servers=(address,)), old)
                dropped.update(old)
                for name in old:
                    self._since.pop((address, name), None)
        return len(dropped)


def drain(place: Place, functions: Iterable[bytes]) -> None:
    """Take and complete every job of the functions on each server that answers, and have it forget them."""
    functions = list(functions)
    for address in place.servers:
        lines = Lines([address], min(place.timeout, _PATIENCE))
        taking = Taking(lines, "drain", MAX_BODY)
        taking.functions(functions)
        try:
            lines.want(taking.role)
            while lines.undecided("drain"):
                lines.pump(time.monotonic() + 0.5)
            for line in lines.lines("drain"):
                while line.up:
                    busy = taking.ask(_BATCH)
                    jobs, taking.arrived = taking.arrived, []
                    for job in jobs:
                        line.state.complete(job)
                    if not busy and not jobs:
                        break
                    lines.send([line])
                    if busy:
                        lines.pump(time.monotonic() + 0.25)
                if not line.up:
                    continue
                taking.functions(())
                with contextlib.suppress(ProviderError), GearmanAdmin(address, timeout=_PATIENCE) as admin:
                    for function in functions:
                        with contextlib.suppress(Refused):  # it has a reader, or jobs that one holds
                            admin.drop_function(function)
        finally:
            lines.close()


def clear(url: Url) -> None:
    """Drain every function of the namespace of an address. Raises `Unreachable`."""
    place = Place.read(url, {})
    for address in place.servers:
        with GearmanAdmin(address, timeout=place.timeout) as admin:
            ours = [name for name in admin.status() if name.startswith(f"{place.names.prefix}.")]
        if ours:
            drain(place._replace(servers=(address,)), [name.encode("utf-8", "surrogateescape") for name in ours])
