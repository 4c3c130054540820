"""Runs the callable right where it is submitted: for tests and debugging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from ..engine import Parcel, Sink
from ..errors import Unreachable
from ..pool.live import LiveEngine, entered
from ..traits import Traits
from .url import Url


class Engine(LiveEngine):
    """`inline://`: `submit` returns when the task has ended. Delayed tasks and retries run on the clock's thread."""

    traits: ClassVar[Traits] = Traits(summary="in the calling thread", local=True, live=True, cancels=True)
    worker = "inline"

    def __init__(
        self, *, initializer: Callable[..., Any] | None = None, initargs: tuple[Any, ...] = (), max_workers: int = 1
    ) -> None:
        super().__init__()
        self._initialize = (initializer, initargs) if initializer is not None else None

    def begin(self) -> None:
        super().begin()
        self._context: Any = None
        self._initialized = False

    @classmethod
    def from_url(cls, url: Url, **options: Any) -> Engine:
        return cls(**options)

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        if self.closing:
            raise Unreachable("the engine is closed")
        if self._initialize is not None and not self._initialized:
            initializer, initargs = self._initialize
            self._initialized = True
            self._context = entered(initializer, initargs)
        for parcel in parcels:
            self.run(self.take(parcel, sink))

    def close(self) -> None:
        super().close()
        context, self._context = self._context, None
        if context is not None:
            context.__exit__(None, None, None)
