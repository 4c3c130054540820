"""Worker processes on this machine: the default engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..pool.supervisor import Supervisor
from .url import Url

if TYPE_CHECKING:
    from ..wire.share import Share


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
        packed: bytes | None = None
        shares: tuple[Share[Any], ...] = ()
        if initializer is not None:
            from ..wire.carry import encode, pack
            from ..wire.share import collecting, distinct

            with collecting() as held:
                packed, buffers = pack((initializer, initargs), "initializer")
                if buffers:
                    packed = encode((initializer, initargs), None)
            for share in held:
                share.payload()
            shares = distinct(held)
        engine = cls(initializer=packed, **options)
        engine.shares = shares
        return engine
