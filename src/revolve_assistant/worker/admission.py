"""What may be run: a lease becomes a parcel only if its seal opens for this queue, and nothing is unpickled here.

bytes ─▶ a task of ours? ─▶ sealed with a key we hold, for this queue, not expired? ─▶ its own id? ─▶ Parcel
             └─ parked                └─ parked, and the caller is told                   └─ parked
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from pickle import loads
from time import monotonic
from typing import TYPE_CHECKING, Any

from .. import telemetry
from ..engine import Lease, Outcome, Parcel
from ..errors import ProtocolError, Untrusted
from ..pool.feeder import PLAIN
from ..wire import envelope as wire
from ..wire.carry import Function, Work, key_of
from ..wire.frames import REFUSED
from ..wire.seal import Purpose

if TYPE_CHECKING:
    from .held import Held
    from .worker import Worker

log = logging.getLogger("revolve_assistant")

HANDED_OUT = 13  # times beyond its retries: 3 children and 10 whole workers that it may take along
REMEMBERED = 65536  # tasks that ended here and are not run again


class Unimportable(ImportError):
    """The function's module, or the function in it, is not there."""


class Carried(Work):
    """A call that an engine of this process unpickles when it runs it, where a child would do so itself."""

    __slots__ = ("_unpickled",)

    @property
    def live(self) -> Any:
        found = getattr(self, "_unpickled", None)
        if found is None:
            try:
                fn = loads(self.function.body)
            except (ImportError, AttributeError) as error:
                raise Unimportable(f"{type(error).__name__}: {error}") from error
            found = self._unpickled = (fn, *loads(self.payload, buffers=self.buffers))
        return found

    @live.setter
    def live(self, value: Any) -> None:
        pass


class Unknowns:
    """How long functions that cannot be imported here have been waited for."""

    def __init__(self, after: float) -> None:
        self.after = after  # seconds
        self._since: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def delay(self, id: str) -> float | None:
        """Seconds until the task should be offered again; None: it was long enough."""
        now = monotonic()
        since, delay = self._since.pop(id, (now, 0.5))
        if now - since >= self.after:
            return None
        self._since[id] = (since, min(10.0, delay * 2))
        while len(self._since) > REMEMBERED:
            self._since.popitem(last=False)
        return min(delay, self.after)


class Admission:
    """Part of the Worker; on the taker's thread."""

    def __init__(self, worker: Worker) -> None:
        from .held import Held  # which needs this module

        self._worker = worker
        self._held = Held
        self.refused = 0
        self._over: OrderedDict[str, None] = OrderedDict()

    def over(self, id: str) -> None:
        """The task's end is stored: should the queue hand it out again, it is not run."""
        self._over[id] = None
        if len(self._over) > REMEMBERED:
            self._over.popitem(last=False)

    def admit(self, lease: Lease) -> Held | None:
        """The lease as something to run, or to say; None: it is over already. Never raises for what is in the body."""
        worker, held_of = self._worker, self._held
        if lease.id in self._over:
            worker.settle(lease, Outcome())
            return None
        inbox = ""
        try:
            inbox, sealed = wire.unwrap(lease.body)
            data = worker.keys.open(Purpose.TASK, f"{worker.namespace}/{lease.queue}", sealed)
            envelope = wire.decode(data)
            if envelope.id != lease.id or envelope.inbox != inbox:
                raise ProtocolError(f"task {envelope.id} came under another name")
        except Untrusted as error:
            if error.reason == "newer version":  # perhaps: somebody newer may know, but not for ever
                held = held_of(worker, lease, inbox, None)
                held.unknown(str(error))
                return held
            return self._refuse(lease, inbox, str(error))
        except wire.NewerEnvelope as error:
            held = held_of(worker, lease, inbox, None)
            held.unknown(str(error))
            return held
        except ProtocolError as error:
            self._park(lease, str(error))
            return None
        held = held_of(worker, lease, inbox, envelope)
        if lease.deliveries > HANDED_OUT + envelope.terms.retries:
            held.worn_out()
            return held
        held.coroutine = envelope.kind not in PLAIN
        function = Function(key_of(envelope.body), envelope.name, envelope.kind, envelope.body, True)
        work: Work | None = worker.local.get(envelope.id) if worker.local is not None else None
        if work is None:
            kind = Carried if worker.live else Work
            work = kind(function, envelope.payload, envelope.buffers or None)  # type: ignore[arg-type]
        held.parcel = Parcel(
            envelope.id,
            work=work,
            options=envelope.terms if envelope.terms != wire.PLAIN else None,
            owner=held,
            queue=lease.queue,
            attempt=lease.deliveries,
            headers=envelope.headers if envelope.headers or telemetry.tracer is not None else None,
        )
        return held

    def _refuse(self, lease: Lease, inbox: str, why: str) -> Held:
        self._park(lease, why, settle=False)
        held = self._held(self._worker, lease, inbox, None)
        held.asides.append((inbox, (REFUSED, why)))
        held.ended = True
        held.outcome = Outcome("bury", reason=why)
        return held

    def _park(self, lease: Lease, why: str, settle: bool = True) -> None:
        self.refused += 1
        if self.refused < 10 or self.refused % 1000 == 0:
            log.error("task %s of queue %s was refused and parked (%d so far): %s", lease.id, lease.queue,
                      self.refused, why)  # fmt: skip
        if settle:
            self._worker.settle(lease, Outcome("bury", reason=why))
