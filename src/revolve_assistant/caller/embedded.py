"""A local engine with another messenger than its own pipe: the client and a Worker in one process.

    Client ──memory queue──▶ Worker ──▶ process, thread, fork …
       ▲                        │
       └──── any Messenger ◀────┘

So every engine goes with every messenger, by the very code that serves queues. Callables of live engines (thread,
fork, inline) stay where they are: the queue carries only the name of the task.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..engine import Parcel, Sink
from ..errors import UsageError
from ..messenger import Messenger
from ..providers.carriers import choose
from ..worker.worker import Worker
from .remote import Remote


class Embedded(Remote):
    """The far side is in this process. `engine` is a local engine, not opened; it is closed with this."""

    lets_go = False  # leaving the client's block waits for the ends, as on every local engine

    def __init__(self, engine: Any, messenger: Any, secret: Any, namespace: str, *, driven: bool) -> None:
        if isinstance(messenger, Messenger):
            raise UsageError("with a local engine say messenger= as an address: both sides open one of their own")
        address = f"memory://{os.urandom(8).hex()}"
        super().__init__(choose(address, messenger, secret, namespace), driven=driven)
        self.worker = Worker(address, messenger=messenger, secret=secret, namespace=namespace, engine=engine)
        self.worker.deaths = 1
        self.worker.buries = False  # nobody could look
        self.worker.local = {}
        self.traits = engine.traits
        self.place = f"{type(engine).__module__.rpartition('.')[2]} in this process"

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        works = self.worker.local
        if works is not None and self.traits.live:
            for parcel in parcels:
                works[parcel.id] = parcel.work
        super().submit(parcels, sink)

    def start(self) -> None:
        if self.sender is None and not self._closing:
            with self._starting:
                if self.worker.state == "new":
                    self.worker.start()
        super().start()

    def close(self) -> None:
        if self._closing:
            return
        super().close()
        self.worker.stop(0.0)

    def abandon(self) -> None:
        super().abandon()
        self.worker.engine.after_fork()
