"""Who wants to hear what: listeners by event name, with priorities and one-time ones. Copy on write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..errors import UsageError


class Listener(NamedTuple):
    fn: Callable[..., Any]
    priority: int = 0
    once: bool = False


class Listeners:
    """`"*"` hears every event, as an `Event`; the others get the event's arguments. Higher priorities first."""

    __slots__ = ("by_name",)

    def __init__(self) -> None:
        self.by_name: dict[str, tuple[Listener, ...]] = {}

    def add(self, name: str, listener: Listener) -> None:
        if not callable(listener.fn):
            raise UsageError(f"a listener must be callable, got {listener.fn!r:.100}")
        if not isinstance(name, str) or not name:
            raise UsageError(f"a listener's event name must be a text or '*', got {name!r:.100}")
        known = self.by_name.get(name, ())
        self.by_name[name] = tuple(sorted((*known, listener), key=lambda each: -each.priority))

    def remove(self, name: str, fn: Callable[..., Any]) -> bool:
        known = self.by_name.get(name, ())
        kept = tuple(each for each in known if each.fn is not fn and each.fn != fn)
        if kept:
            self.by_name[name] = kept
        else:
            self.by_name.pop(name, None)
        return len(kept) != len(known)

    def discard(self, name: str, listener: Listener) -> bool:
        """Remove exactly this one; False: it was gone already."""
        known = self.by_name.get(name, ())
        for index, each in enumerate(known):
            if each is listener:
                kept = known[:index] + known[index + 1 :]
                if kept:
                    self.by_name[name] = kept
                else:
                    del self.by_name[name]
                return True
        return False

    def clear(self, name: str | None) -> None:
        if name is None:
            self.by_name.clear()
        else:
            self.by_name.pop(name, None)

    def get(self, name: str) -> Sequence[Callable[..., Any]]:
        return [each.fn for each in self.by_name.get(name, ())]

    def __bool__(self) -> bool:
        return bool(self.by_name)
