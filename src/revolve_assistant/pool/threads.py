"""Which threads of this process are ours, and where all of them stand when the process forks.

A fork takes along one thread and every lock: what another thread holds at that moment stays locked in the fork for
ever. Three things keep that harmless as far as it concerns us:

    ours, idle or serving     hold nothing the fork needs: each of our locks is made anew in the fork
    ours, in the user's code  a listener on the dispatcher is waited for (`gates`), a task in a thread is a stranger
    the user's                `strangers` names them, and the fork engine refuses

and no fork, whoever makes it, happens while a child is half made or half closed (`making`): it would inherit
descriptors that nobody in the fork knows and could close, or close numbers that are somebody else's by now.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from _thread import get_ident
from collections.abc import Iterator
from typing import Any

at_work: dict[int, str] = {}  # idents of our threads that run the user's callable now -> what they run
serving: set[int] = set()  # idents of our threads that `threading` does not know
gates: weakref.WeakSet[Gate] = weakref.WeakSet()
making: Any = threading.RLock()  # held while descriptors that a fork has to close are opened or closed; taken last


class OurThread(threading.Thread):
    """A thread of this library's own; daemonic, and no reason to refuse a fork."""

    def __init__(self, target: Any, name: str, args: tuple[Any, ...] = ()) -> None:
        super().__init__(target=target, name=name, args=args, daemon=True)


class Gate:
    """Held by a thread of ours while it calls the user's code. Re-entrant."""

    __slots__ = ("__weakref__", "_lock", "acquire", "release")

    def __init__(self) -> None:
        self.renew()
        gates.add(self)

    def renew(self) -> None:
        """In a fork: nobody holds it."""
        self._lock = threading.RLock()
        self.acquire, self.release = self._lock.acquire, self._lock.release


def shut_gates() -> list[Gate] | None:
    """Keep our threads out of the user's code; None: one of them is there now. The caller releases the gates."""
    shut: list[Gate] = []
    for gate in list(gates):
        if not gate.acquire(blocking=False):
            for each in shut:
                each.release()
            return None
        shut.append(gate)
    return shut


def strangers() -> list[str]:
    """The names of the threads that are neither the main thread nor ours, as far as Python knows of them."""
    known = threading._active  # type: ignore[attr-defined] # enumerate() would wait for its lock
    main = threading.main_thread().ident
    found = []
    for ident in sys._current_frames():
        thread = known.get(ident)
        if ident == main:
            continue
        if ident in at_work:
            found.append(f"{thread.name if thread is not None else ident} (runs task {at_work[ident]})")
        elif thread is None:
            if ident not in serving:
                found.append(f"thread {ident} (of an extension module)")
        elif not isinstance(thread, OurThread):
            found.append(thread.name)
    return sorted(found)


def importing() -> bool:
    """Whether another thread is in the middle of an import: in the fork the module would stay half imported."""
    return any(True for _ in _imports(get_ident()))


def _imports(me: int) -> Iterator[tuple[str, Any]]:
    """(module, lock) of the imports under way in other threads than `me`."""
    locks = getattr(sys.modules.get("_frozen_importlib"), "_module_locks", None)
    for name, reference in list(locks.items()) if locks else ():
        lock = reference()
        owner = getattr(lock, "owner", None)
        if owner is not None and owner != me:
            yield name, lock


def _forget_imports() -> None:
    """Modules that another thread was importing at the fork are as if never begun: else whoever wants one hangs."""
    locks = getattr(sys.modules.get("_frozen_importlib"), "_module_locks", {})
    for name, _ in list(_imports(get_ident())):
        locks.pop(name, None)
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if getattr(spec, "_initializing", False):
            sys.modules.pop(name, None)


def _in_fork() -> None:
    serving.clear()
    at_work.clear()
    making._at_fork_reinit()
    _forget_imports()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=making.acquire, after_in_parent=making.release, after_in_child=_in_fork)
