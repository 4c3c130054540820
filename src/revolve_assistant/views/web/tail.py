"""What one task says, gathered for one page: a few messages a second, however much it says and however slow that is.

    task's log ──▶ follow ──▶ Tail: lines and repeated events joined, newest progress ──▶ the page, EVERY at most

The task is read as fast as it speaks, so that who looks never holds it up; what the page cannot take is left out, the
oldest first, and counted (`skipped`). A log does not say when an attempt ended: `ended` does, or the time is 0.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import AssistantError
from ...event import ENDS
from .feed import Place, follow
from .shown import told

if TYPE_CHECKING:
    from ...caller.client import Client

ROOM = 5000  # entries that wait for a page
CHARS = 2 << 20  # of their text
JOINED = 500  # lines of one entry
BREATH = 200  # events after which others have a turn
LINES = frozenset({"output", "error_output", "log", "item"})
TIMELESS = ENDS | {"retrying", "waiting"}


class Tail:
    """In one event loop. `news` is called when there is something to take."""

    def __init__(
        self, client: Client, task_id: str, show: frozenset[str], news: Callable[[], None], ended: Callable[[], float]
    ) -> None:
        self._client = client
        self._ended = ended
        self._id = task_id
        self._show = show
        self._news = news
        self._found: deque[dict[str, Any]] = deque()
        self._progress: dict[str, Any] | None = None
        self._chars = 0
        self._skipped = 0
        self.task = asyncio.create_task(self._read())

    def take(self) -> list[dict[str, Any]]:
        """What came since, in order."""
        found, self._found, self._chars = list(self._found), deque(), 0
        if self._skipped:
            found.insert(0, {"event": "skipped", "count": self._skipped, "attempt": 0, "time": 0})
            self._skipped = 0
        if self._progress is not None:
            found.append(self._progress)
            self._progress = None
        return found

    def close(self) -> None:
        """Read no more; the work goes on."""
        self.task.cancel()

    async def _read(self) -> None:
        try:
            async with contextlib.aclosing(follow(self._client, self._id, Place())) as events:  # type: ignore[type-var]
                count = 0
                async for _, event in events:
                    each = told(event, self._show)
                    if self._client._remote and event.name in TIMELESS:
                        each["time"] = self._ended() if event.name in ENDS else 0.0
                    self._add(each)
                    count += 1
                    if count % BREATH == 0:
                        await asyncio.sleep(0)
        except AssistantError as error:
            self._put({"event": "unheard", "reason": str(error), "attempt": 0, "time": 0})
        self._put({"event": "over", "attempt": 0, "time": 0})

    def _add(self, each: dict[str, Any]) -> None:
        name = each["event"]
        if name == "progress":
            self._progress = each
            self._news()
            return
        if name == "started" or name == "retrying":
            self._progress = None
        last = self._found[-1] if self._found else None
        same = last is not None and last["event"] == name and last["attempt"] == each["attempt"]
        if name in LINES and each.get("text") is not None:
            text = each.pop("text")
            self._chars += len(text)
            level = each.get("level")
            if same and last is not None and last.get("level") == level and 0 < len(last.get("lines", ())) < JOINED:
                last["lines"].append(text)
                self._trim()
                return
            each["lines"] = [text]
        elif same and last is not None and each.keys() <= {"event", "attempt", "time", "count", "text"}:
            last["count"] = last.get("count", 1) + each.get("count", 1)  # of those whose arguments are hidden
            last["time"] = each["time"]
            return
        self._put(each)

    def _put(self, each: dict[str, Any]) -> None:
        self._found.append(each)
        self._trim()

    def _trim(self) -> None:
        while len(self._found) > ROOM or (self._chars > CHARS and len(self._found) > 1):
            lines = self._found.popleft().get("lines", ())
            self._chars -= sum(map(len, lines))
            self._skipped += max(1, len(lines))
        self._news()
