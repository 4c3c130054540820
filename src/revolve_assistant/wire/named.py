"""A messenger as code names it: what `Make` returns, what callables capture, what `task.write_to` takes.

It travels as its name and address, never with credentials: a worker writes through its own configuration for that name.

    callable in a child:  task.write_to(messenger, "output", text) ──▶ record (ELSEWHERE, …, address, event)
    worker ──▶ the caller's inbox on that messenger, if the caller reads it there; else its ordinary inbox
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from ..pool.reports import ELSEWHERE

if TYPE_CHECKING:
    from ..messenger import Messenger
    from ..providers.url import Url

_encode = msgspec.msgpack.Encoder().encode
_CREDENTIALS = ("password", "passwd", "secret", "token", "key")


class _Met(threading.local):
    found: list[NamedMessenger] | None = None  # by the pickling under way in this thread


_met = _Met()


class NamedMessenger:
    """A messenger by name. Made by `Make().messenger(…)`; equal names and addresses are one messenger.

    `carrier()` is the provider's object, made at first use, on the side that has the whole address.
    """

    __slots__ = ("__weakref__", "_carrier", "_make", "address", "name")

    def __init__(self, name: str, address: str, make: Callable[[], Messenger] | None = None) -> None:
        self.name = name
        self.address = address
        self._make = make
        self._carrier: Messenger | None = None

    def carrier(self) -> Messenger:
        """The provider's Messenger, not opened. Raises as `registry.messenger`."""
        if self._carrier is None:
            self._carrier = self.fresh()
        return self._carrier

    def fresh(self) -> Messenger:
        """Another of the provider's objects, for who does not share `carrier()`'s. Raises likewise."""
        if self._make is not None:
            return self._make()
        from ..providers import registry

        return registry.messenger(self.address)

    def write_event(self, running: Any, name: str, args: tuple[Any, ...]) -> None:
        """Called by `Running.write_to`, in whatever runs the callable."""
        running._write_elsewhere(self.address, name, args)

    def __reduce__(self) -> Any:
        if _met.found is not None:
            _met.found.append(self)
        return (NamedMessenger, (self.name, self.address))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamedMessenger) and (self.name, self.address) == (other.name, other.address)

    def __hash__(self) -> int:
        return hash((self.name, self.address))

    def __repr__(self) -> str:
        return f"<messenger {self.address}>"


def public_address(url: Url) -> str:
    """The address without user, password and secret options: what may travel."""
    options = {
        name: value for name, value in url.options.items() if not any(word in name.lower() for word in _CREDENTIALS)
    }
    return str(msgspec.structs.replace(url, user=None, password=None, options=options))


def elsewhere(seq: int, address: str, record: bytes) -> bytes:
    """The record of an event that is meant for another messenger."""
    return _encode((ELSEWHERE, seq, address, record))


@contextmanager
def meeting() -> Iterator[list[NamedMessenger]]:
    """Collects the messengers that are pickled within the block, in this thread."""
    outer, _met.found = _met.found, []
    try:
        yield _met.found
    finally:
        _met.found = outer


def captured_by(fn: Any, depth: int = 3) -> set[NamedMessenger]:
    """The messengers that a callable refers to: its closure, the globals it names, what it is bound to."""
    if isinstance(fn, NamedMessenger):
        return {fn}
    if depth == 0:
        return set()
    found: set[NamedMessenger] = set()
    inner: list[Any] = []
    code = getattr(fn, "__code__", None)
    if code is not None:
        for cell in getattr(fn, "__closure__", None) or ():
            try:
                inner.append(cell.cell_contents)
            except ValueError:  # an empty one
                continue
        space = getattr(fn, "__globals__", {})
        inner += [space[name] for name in code.co_names if name in space]
        inner += getattr(fn, "__defaults__", None) or ()
    for name in ("__self__", "func", "__wrapped__"):
        part = getattr(fn, name, None)
        if part is not None:
            inner.append(part)
            inner += vars(part).values() if hasattr(part, "__dict__") and not isinstance(part, type) else ()
    if hasattr(fn, "func"):  # functools.partial
        inner += [*fn.args, *fn.keywords.values()]
    for part in inner:
        if isinstance(part, NamedMessenger) or (callable(part) and hasattr(part, "__code__")):
            found |= captured_by(part, depth - 1)
    return found
