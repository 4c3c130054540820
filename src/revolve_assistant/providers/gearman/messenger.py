"""Channels as functions of gearmand, frames as background jobs.

    write ─ submit ─▶ NAMESPACE.c.CHANNEL on the server of the channel's hash (or the next one, where that is down)
    read  ─ grab ──── on every server, so that nothing depends on who saw which server down
    forget ─ complete

A channel has one reader at a time. It gets each writer's frames in the order of their writing, also those that come
again after a reader died, which gearmand puts last and backwards: see `channel`. Frames that a dead server held are a
hole, which the layer above sees by its own numbers.

gearmand has no bound on what it holds for a channel that nobody reads: `sweep` removes those. (Its `maxqueue` would
refuse the newest frames, a task's end among them, and with it whoever writes.)
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator

from ...protocols.gearman.client_state import Request
from ...traits import Traits
from ..lines import Lines, Role
from ..preference import Order
from ..spread import Spread
from ..url import Url
from .address import LARGEST, MAX_BODY, Place
from .delivery import Delivery, background, refused
from .reading import Reading
from .sweeping import Sweeper, drain


class _Place:
    """A writer's place in a channel: a name that no other has, and the number of the next frame."""

    __slots__ = ("function", "next", "order", "prefix")

    def __init__(self, function: bytes, order: Order, kind: str) -> None:
        self.function = function
        self.order = order
        self.prefix = f"{kind}{os.urandom(8).hex()}."
        self.next = 0


class Messenger(Spread[_Place]):
    """Channels on one or several gearmands. `keep`, `forget` and `sweep` may be called from any thread too.

    Reading does not replay: what this object has read and not forgotten it gives again from memory, to another reader
    it is not there, until this one closes or dies. A channel exists by being used.
    """

    traits = Traits(
        summary="channels are functions of gearmand, frames are background jobs",
        waits=True,
        keeps=True,
        max_bytes=LARGEST,
        max_wait=3600.0,
    )

    _place: Place
    _delivery: Delivery

    @classmethod
    def from_url(cls, url: Url, **options: object) -> Messenger:
        """`gearman://host:4730,host2/namespace?timeout=5&encode=base64`. Raises `UsageError`."""
        return cls(Place.read(url, options))

    def _put(self, frames: Iterator[tuple[_Place, bytes]]) -> None:
        requests: list[Request] = []
        self._delivery.deliver(self._requests(frames, requests))
        refused(requests, f"{len(requests)} frames")

    def _requests(self, frames: Iterator[tuple[_Place, bytes]], made: list[Request]) -> Iterator[tuple[Order, Request]]:
        encoded = self._place.base64
        for place, frame in frames:
            data = base64.b64encode(frame) if encoded else bytes(frame)
            request = background(place.function, f"{place.prefix}{place.next}", data)
            place.next += 1
            made.append(request)
            yield place.order, request

    def _dial(self) -> tuple[Lines, Role]:
        lines = Lines(self._place.servers, self._place.timeout)
        self._delivery = Delivery(lines, MAX_BODY)
        return lines, self._delivery.role

    def _hold(self) -> Reading:
        return Reading(self._place)

    def _writer(self, channel: str, name: bytes, order: Order) -> _Place:
        return _Place(name, order, "b" if self._place.base64 else "w")

    def _sweeping(self) -> Sweeper:
        return Sweeper(self._place)

    def _drain(self, name: bytes) -> None:
        drain(self._place, [name])
