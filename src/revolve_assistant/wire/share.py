"""Objects sent once a child and then only named: a `Share` pickles to its key, and the child finds the object by it.

       caller                                   child
       Share(x) ── payload(), once ──────────▶  receive_share(key, …)
       submit(fn, share) ── (resolve, (key,)) ▶ fn(x)             the object itself, not the handle

`carry` collects the handles it meets (`collecting`), so that the engine knows what a child must have first. What goes
where no shared object can be sent first (a message, somebody else's process) is pickled under `by_value`.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pickle import PickleBuffer
from typing import Any, Generic, TypeVar

from ..errors import ProtocolError

T = TypeVar("T")


class _Met(threading.local):
    handles: list[Share[Any]] | None = None  # of the pickling under way in this thread
    by_value = False


met = _Met()
_made: weakref.WeakValueDictionary[str, Share[Any]] = weakref.WeakValueDictionary()
_received: dict[str, tuple[bytes, list[memoryview]]] = {}
_unpacked: dict[str, Any] = {}
_lock = threading.RLock()  # re-entrant: a shared object may hold another

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined] # another thread may hold it


class Share(Generic[T]):
    """A handle of an object that is sent once a child. In a callable's arguments it arrives as the object.

    `inner` holds the shares inside the object; known after `payload()`.
    """

    __slots__ = ("__weakref__", "_packed", "inner", "key", "value")

    def __init__(self, value: T) -> None:
        self.key: str = os.urandom(8).hex()
        self.value = value
        self.inner: tuple[Share[Any], ...] = ()  # kept: what is in the pickle must be there, whatever becomes of value
        self._packed: tuple[bytes, list[PickleBuffer] | None] | None = None
        _made[self.key] = self

    def payload(self) -> tuple[bytes, list[PickleBuffer] | None]:
        """What `receive_share` takes: data and out-of-band buffers, packed at the first call, with all that is shared
        inside. Raises `NotCarriable`."""
        with _lock:
            if self._packed is None:
                from .carry import pack

                with collecting() as handles:
                    packed = pack(self.value, "shared object")
                for inner in handles:
                    if inner is not self:
                        inner.payload()
                self.inner = distinct(handles)
                self._packed = packed
            return self._packed

    def family(self) -> list[Share[Any]]:
        """This share and all inside it, each once. After `payload()`."""
        found = [self]
        for share in found:  # grows meanwhile
            found += [inner for inner in share.inner if inner not in found]
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        if met.by_value:
            return (_as_shared, (self.value,))
        if met.handles is not None:
            met.handles.append(self)
        return (resolve, (self.key,))

    def __copy__(self) -> Share[T]:
        return self

    def __deepcopy__(self, memo: object) -> Share[T]:
        return self

    def __repr__(self) -> str:
        return f"<Share {self.key} of a {type(self.value).__qualname__}>"


@contextmanager
def collecting() -> Iterator[list[Share[Any]]]:
    """The list receives every `Share` that this thread pickles meanwhile; nests."""
    outer, met.handles = met.handles, []
    try:
        yield met.handles
    finally:
        met.handles = outer


@contextmanager
def by_value() -> Iterator[None]:
    """A `Share` that this thread pickles meanwhile travels as the object itself."""
    outer, met.by_value = met.by_value, True
    try:
        yield
    finally:
        met.by_value = outer


def distinct(shares: Sequence[Share[Any]]) -> tuple[Share[Any], ...]:
    """Each once, in their order."""
    return tuple(dict.fromkeys(shares))


def receive_share(key: str, data: bytes, buffers: Sequence[Any] | None = None) -> None:
    """In a child: take a shared object in. It is unpickled at its first use. A key that is here already is kept."""
    with _lock:
        if key not in _unpacked:
            _received.setdefault(key, (data, [memoryview(each).toreadonly() for each in buffers or ()]))


def forget_share(key: str) -> None:
    """In a child: let a shared object go. An unknown key is passed over."""
    with _lock:
        _received.pop(key, None)
        _unpacked.pop(key, None)


def resolve(key: str) -> Any:
    """The shared object of that key: the same one at every call, arrays read-only. Raises `ProtocolError`.

    In the process that made the share it is the local object. Re-raises what unpickling the object raises.
    """
    with _lock:
        if key in _unpacked:
            return _unpacked[key]
        if key in _received:
            from .carry import unpack

            value = unpack(*_received[key])
            _freeze(value, 3)
            _unpacked[key] = value
            del _received[key]
            return value
    made = _made.get(key)
    if made is None:
        raise ProtocolError(f"shared object {key} never reached this process (pid {os.getpid()})")
    return made.value


def _as_shared(value: Any) -> Any:
    """A shared object that came by value: its arrays are read-only all the same."""
    _freeze(value, 3)
    return value


def _freeze(value: Any, depth: int) -> None:
    """Make small arrays read-only as well: those came in-band, so they own writable memory."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return
    if isinstance(value, numpy.ndarray):
        value.flags.writeable = False
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            _freeze(item, depth - 1)
    elif depth and isinstance(value, dict):
        for item in value.values():
            _freeze(item, depth - 1)


def unshare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """For live engines: the arguments with handles replaced by their objects, at the top and one container down.

    A container without a handle is passed on as it is; one with a handle is copied, never changed.
    """
    return tuple(map(_local, args)), {name: _local(value) for name, value in kwargs.items()}


def _local(value: Any, deeper: bool = True) -> Any:
    kind = type(value)
    if kind is Share:
        return _local(value.value)
    if deeper and (kind is list or kind is tuple):
        if any(type(item) is Share for item in value):
            return kind(_local(item, False) for item in value)
    elif deeper and kind is dict and any(type(item) is Share for item in value.values()):
        return {key: _local(item, False) for key, item in value.items()}
    return value
