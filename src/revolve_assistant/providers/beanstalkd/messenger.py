"""Channels as tubes, frames as jobs.

    write ─ put ─────▶ NAMESPACE;c.CHANNEL on the server of the channel's hash (or the next one, where that is down)
    read  ─ reserve ── on every server, so that nothing depends on who saw which server down
    forget ─ delete

A channel has one reader at a time. It gets each writer's frames in the order of their writing, also those that come
again after a reader died: a job keeps its number, and with it its place. Frames that a dead server held are a hole,
which the layer above sees by its own numbers. A frame that is larger than a job may be is put in pieces.

beanstalkd lets nothing expire and has no bound on what it holds for a channel that nobody reads: `sweep` removes those.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ...traits import Traits
from ..lines import Lines, Role
from ..preference import Order
from ..spread import Spread
from ..url import Url
from .address import KIND, LARGEST_FRAME, Place
from .delivery import Delivery, refused
from .loads import FrameLoad
from .reading import Reading
from .sweeping import Sweeper, drain
from .wrapping import channel_mark


class _Place:
    """A writer's place in a channel: a name that no other has, and the number of the next frame."""

    __slots__ = ("mark", "name", "next", "order", "tube")

    def __init__(self, tube: bytes, order: Order, mark: bytes) -> None:
        self.tube = tube
        self.order = order
        self.mark = mark
        self.name = os.urandom(8)
        self.next = 0


class Messenger(Spread[_Place]):
    """Channels on one or several beanstalkds. `keep`, `forget` and `sweep` may be called from any thread too.

    Reading does not replay: what this object has read and not forgotten it gives again from memory, to another reader
    it is not there, until this one closes or dies. A channel exists by being used.
    """

    traits = Traits(
        summary="channels are tubes of beanstalkd, frames are jobs",
        waits=True,
        keeps=True,
        max_bytes=LARGEST_FRAME,
        max_wait=3600.0,
    )

    _place: Place
    _delivery: Delivery

    @classmethod
    def from_url(cls, url: Url, **options: object) -> Messenger:
        """`beanstalkd://host:11300,host2/namespace?timeout=5`. Raises `UsageError`."""
        return cls(Place.read(url, options))

    def _put(self, frames: Iterator[tuple[_Place, bytes]]) -> None:
        loads: list[FrameLoad] = []
        self._delivery.deliver(self._loads(frames, loads))
        refused(loads, f"{len(loads)} frames")

    def _loads(self, frames: Iterator[tuple[_Place, bytes]], made: list[FrameLoad]) -> Iterator[FrameLoad]:
        for place, frame in frames:
            load = FrameLoad(place.order, place.tube, place.mark, place.name, place.next, bytes(frame))
            place.next += 1
            made.append(load)
            yield load

    def _dial(self) -> tuple[Lines, Role]:
        lines = Lines(self._place.servers, self._place.timeout, KIND)
        self._delivery = Delivery(lines)
        return lines, self._delivery.role

    def _hold(self) -> Reading:
        return Reading(self._place)

    def _writer(self, channel: str, name: bytes, order: Order) -> _Place:
        return _Place(name, order, channel_mark(channel))

    def _sweeping(self) -> Sweeper:
        return Sweeper(self._place)

    def _drain(self, name: bytes) -> None:
        drain(self._place, [name])
