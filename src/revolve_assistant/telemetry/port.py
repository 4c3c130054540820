"""What stands between a running task and its way out while it is traced: each record is noted, and passed on.

In a file of its own: a `CancelSignal` is not raised while something here is on the stack (`pool.child._UNBROKEN`), for
it would strike inside the SDK.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec

from ..pool.reports import ELSEWHERE, EVENT, PACKED, PROGRESS

if TYPE_CHECKING:
    from ..running.running import Port, Running

log = logging.getLogger("revolve_assistant")
MAX_EVENTS = 100  # of one span; the SDK's own limit is 128, exceptions included, and it drops the oldest
PROGRESS_EVERY = 1.0  # seconds between two of the events `progress` that are noted
_parts = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode = msgspec.msgpack.Decoder().decode


class TracedPort:
    """A `Port` over another one. Thread-safe, but for counts, which may then be off by a few."""

    __slots__ = ("_last", "_port", "_span", "count", "noted")

    def __init__(self, port: Port, span: Any) -> None:
        self._port = port
        self._span = span
        self._last = 0.0  # time of the last noted progress
        self.count = 0
        self.noted = 0

    def put(self, record: bytes) -> None:
        try:
            self._note(record)
        except Exception:
            log.exception("an event is missing in the trace")
        self._port.put(record)

    def stopping(self, running: Running) -> bool:
        return self._port.stopping(running)

    def _note(self, record: bytes) -> None:
        """An event of the span: its name, its time, its size; never what it carries."""
        kind = record[1]  # of a short array, whose first byte is its length
        if kind == ELSEWHERE:
            self._note(_decode(record)[3])
            return
        if kind not in (EVENT, PACKED, PROGRESS):
            return
        self.count += 1
        if self.noted >= MAX_EVENTS:
            return
        parts = _parts(record)
        when = float(_decode(parts[3]))
        found: dict[str, Any] = {}
        if kind == PROGRESS:
            if when - self._last < PROGRESS_EVERY:
                return
            self._last = when
            for name, part in zip(("fraction", "done", "total"), parts[4:7], strict=True):
                value = _decode(part)
                if value is not None:
                    found[f"revolve.{name}"] = value
        else:
            found["revolve.bytes"] = len(parts[4])
        self.noted += 1
        self._span.add_event(_decode(parts[2]), found, int(when * 1e9))
