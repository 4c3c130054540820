"""The monitor channel: what happens to tasks on all workers, for whoever looks; never arguments, results or events.

    channel "monitor", sealed( [1, worker, [[task id, function, queue, event, attempt, Unix time], …]] )

It is written on messengers where several can read one channel (the trait `fanout`), beside what goes to the callers, in
the same batch; where nobody keeps the channel the messenger drops it.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..wire import frames as wire
from ..wire.seal import Purpose

if TYPE_CHECKING:
    from .speaker import _Taken
    from .worker import Worker

CHANNEL: Final = "monitor"
VERSION: Final = 1
NAMES: Final = {
    wire.STARTED: "started",
    wire.SUCCEEDED: "succeeded",
    wire.RETURNED: "succeeded",
    wire.FAILED: "failed",
    wire.CANCELLED: "cancelled",
    wire.LOST: "lost",
    wire.RETRYING: "retrying",
    wire.WAITING: "waiting",
}
_encode = msgspec.msgpack.Encoder().encode


def message(worker: Worker, taken: Iterable[_Taken]) -> tuple[str, bytes] | None:
    """What a batch means for who looks, sealed; None: nothing, or nobody can look on this messenger."""
    if not worker.messenger.traits.fanout:
        return None
    now = time()
    entries: list[Any] = []
    for each in taken:
        held = each.held
        for record in each.records:
            name = NAMES.get(record[0])
            if name is not None:
                function = held.envelope.name if held.envelope is not None else ""
                entries.append((held.id, function, held.lease.queue, name, held.lease.deliveries, now))
    if not entries:
        return None
    data = _encode((VERSION, worker.name, entries))
    return CHANNEL, worker.keys.seal(Purpose.MONITOR, f"{worker.namespace}/{CHANNEL}", data)
