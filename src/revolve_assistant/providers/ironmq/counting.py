"""How often a task was given back without counting as an attempt.

IronMQ counts every reservation of a message, and nothing of a message can be changed. So each such time is one message
in a queue beside it, NAMESPACE.u.MESSAGE, whose number of messages is looked up when a task comes again. A task that
ends at its first attempt, as most do, makes no such request.
"""

from __future__ import annotations

from ...protocols.iron import Missing, mq
from ...protocols.iron.caller import Caller
from ...protocols.iron.limits import LONGEST_DELAY, LONGEST_EXPIRATION
from .janitor import Janitor
from .names import Names

_REMEMBERED = 10_000


class Uncounted:
    """Part of a Queue."""

    def __init__(self, caller: Caller, names: Names, janitor: Janitor) -> None:
        self._caller, self._names, self._janitor = caller, names, janitor
        self._seen: dict[str, None] = {}  # messages that have such a queue

    def times(self, message: str) -> int:
        """How often that was."""
        try:
            found = mq.info(self._caller.call(mq.look(self._names.uncounted(message)))).size
        except Missing:
            return 0
        self._remember(message)
        return found

    def note(self, message: str) -> None:
        """Once more."""
        queue = self._names.uncounted(message)
        if message not in self._seen:
            self._caller.call(mq.create(queue, timeout=60.0, expiration=LONGEST_EXPIRATION))
            self._janitor.keep([queue], LONGEST_DELAY)
        self._caller.call(mq.post(queue, [mq.Text("1")]))
        self._remember(message)

    def has(self, message: str) -> bool:
        """Whether there is such a queue, as far as is known here."""
        return message in self._seen

    def _remember(self, message: str) -> None:
        self._seen[message] = None
        if len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]
