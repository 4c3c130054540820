"""Worker processes on this machine: the default engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..pool.supervisor import Supervisor
from .url import Url


class Engine(Supervisor):
    """`process://`: see `Supervisor`."""

    @classmethod
    def from_url(
        cls,
        url: Url,
        *,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
        **options: Any,
    ) -> Engine:
        packed = None
        if initializer is not None:
            from ..wire.carry import encode, pack

            packed, buffers = pack((initializer, initargs), "initializer")
            if buffers:
                packed = encode((initializer, initargs), None)
        return cls(initializer=packed, **options)
