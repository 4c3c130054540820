"""Which of many tasks to ask about, where each costs a request: 20 at a time, and all in their turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...engine import EngineState

MOST = 20


class Asking:
    """What was last known of each task. Not thread-safe."""

    def __init__(self) -> None:
        self._last: dict[str, EngineState] = {}

    def states(self, ids: Sequence[str], look: Callable[[str], EngineState]) -> dict[str, EngineState]:
        """Of all of them; `look` is called for 20 at most, never asked or longest ago. The others are as they were."""
        chosen = list(ids)
        if len(chosen) > MOST:
            order = {id: number for number, id in enumerate(self._last)}
            chosen = sorted(chosen, key=lambda id: order.get(id, -1))[:MOST]
        for id in chosen:
            self._last.pop(id, None)  # it comes last now
            self._last[id] = look(id)
        return {id: self._last.get(id, "queued") for id in ids}

    def forget(self, id: str) -> None:
        """It is not asked about any more, or is a new one."""
        self._last.pop(id, None)
