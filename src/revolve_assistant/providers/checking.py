"""The conformance kit, run on an address by people without pytest: `revolve doctor --check`.

    address ──▶ a namespace of its own, where the provider has them ──▶ the checks, one by one ──▶ all of it removed

What the checks make is noted as they make it, so that it can be taken away afterwards, also when they fail: tasks are
purged, or taken and settled; channels are forgotten. A provider whose queue can do neither may have `clear(url)` in its
module, which empties the namespace of that address.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from ..engine import Outcome, Queue
from ..errors import AssistantError, UsageError
from . import registry
from .carriers import apart
from .url import Url

CLEARED = 10.0  # seconds that removing may take, of each kind


class Checked(NamedTuple):
    """One check: `outcome` is `ok`, `skipped: …` or `FAILED: …`, `promise` what it looks for."""

    kind: str
    check: str
    outcome: str
    seconds: float
    promise: str


class Plan(NamedTuple):
    """What will be checked, and where."""

    url: Url
    kinds: list[str]
    namespace: str
    """Its own, "": the provider has none, and names of its own serve."""


def plan(address: str) -> Plan:
    """Choose a namespace, and see that the address opens. Raises as `registry.engine`, and what its opening raises."""
    url = Url.parse(address)
    module = registry.find(url.scheme)
    kinds = [kind for kind in ("queue", "messenger") if has(module, kind.capitalize())]
    if not kinds:
        raise UsageError(f"{url.scheme} has neither a Queue nor a Messenger: there is nothing to check")
    word = f"check-{os.urandom(4).hex()}"
    own = apart(url, word)
    for kind in kinds:
        made = _make(kind, own or url)()
        try:
            made.open()
        finally:
            made.close()
    return Plan(own or url, kinds, word if own is not None else "")


def check(planned: Plan, heard: Callable[[Checked], object] | None = None) -> list[Checked]:
    """Run the kit; `heard` is told each outcome at once. Blocks for about half a minute, at most 90 s a check."""
    from ..testing import MESSENGER_CHECKS, QUEUE_CHECKS, run_checks
    from ..testing.checks import name_of

    module = registry.find(planned.url.scheme)
    excuses = getattr(module, "excused", None)
    excused: Mapping[str, str] = {} if excuses is None else excuses(planned.url)
    found: list[Checked] = []
    for kind in planned.kinds:
        notes = _Notes()
        make = notes.noting(_make(kind, planned.url))
        promises = {name_of(each): _first(each) for each in (QUEUE_CHECKS if kind == "queue" else MESSENGER_CHECKS)}
        began = time.monotonic()

        def hear(name: str, outcome: str, kind: str = kind, promises: Mapping[str, str] = promises) -> None:
            nonlocal began
            now = time.monotonic()
            found.append(Checked(kind, name, outcome, round(now - began, 3), promises.get(name, "")))
            began = now
            if heard is not None:
                heard(found[-1])

        try:
            run_checks(kind, make, excused=excused, heard=hear)  # type: ignore[arg-type]
        finally:
            notes.remove(make, module, planned)
    return found


def has(module: ModuleType, kind: str) -> bool:
    """Whether a provider has a class of that name of its own, not just the contract."""
    found = getattr(module, kind, None)
    return found is not None and not getattr(found, "__abstractmethods__", None)


def _make(kind: str, url: Url) -> Callable[..., Any]:
    """What builds one more on the same carrier; of a queue with leases it takes `lease=`, which the kit looks for."""
    if kind == "messenger":
        return lambda: registry.messenger(url)
    try:
        registry.engine(url, lease=1.0)
    except (UsageError, TypeError):
        return lambda: registry.engine(url)
    return lambda lease=30.0: registry.engine(url, lease=lease)


def _first(each: Any) -> str:
    return (each.__doc__ or "").strip().partition("\n\n")[0].replace("\n    ", " ")


class _Notes:
    """What was made: the names of queues that were submitted to, and of channels that were kept."""

    def __init__(self) -> None:
        self.queues: dict[str, None] = {}
        self.channels: dict[str, None] = {}

    def noting(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def watched(made: Any) -> Any:
            for name, note in (("submit", self._submitted), ("keep", self._kept)):
                call = getattr(made, name, None)
                if call is not None:
                    _wrap(made, name, call, note)
            return made

        if make.__code__.co_argcount:
            return lambda lease=30.0: watched(make(lease=lease))
        return lambda: watched(make())

    def _submitted(self, parcels: Any, *_: Any) -> None:
        self.queues.update(dict.fromkeys(parcel.queue for parcel in parcels))

    def _kept(self, channels: Any) -> None:
        self.channels.update(dict.fromkeys(channels))

    def remove(self, make: Callable[..., Any], module: ModuleType, planned: Plan) -> None:
        """Take it all away, as far as it can be; what cannot expires."""
        if not (self.queues or self.channels):
            return
        made = make()
        try:
            made.open()
            for channel in self.channels:
                made.forget(channel)
            if self.queues:
                _empty(made, list(self.queues))
            clear = getattr(module, "clear", None)
            if clear is not None and planned.namespace:
                clear(planned.url)
        except (AssistantError, OSError):
            pass  # it broke the checks too, or was there no more
        finally:
            made.close()


def _wrap(made: Any, name: str, call: Callable[..., Any], note: Callable[..., Any]) -> None:
    def noted(first: Any, *rest: Any, **named: Any) -> Any:
        first = list(first)
        note(first)
        return call(first, *rest, **named)

    try:
        setattr(made, name, noted)
    except AttributeError:
        pass  # it has slots: its leavings expire


def _empty(queue: Queue, names: list[str]) -> None:
    deadline = time.monotonic() + CLEARED
    if type(queue).purge is not Queue.purge:
        for name in names:
            for buried in (False, True):
                while queue.purge(name, buried=buried) and time.monotonic() < deadline:
                    pass
        return
    while time.monotonic() < deadline:
        leases = queue.take(names, limit=100, wait=0.2)
        if not leases:
            return
        queue.settle([(lease, Outcome("done")) for lease in leases])
