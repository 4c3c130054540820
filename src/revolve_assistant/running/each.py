"""What a worker does for a chunk of `map`: one call after the other, each with an end of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import CancelSignal
from ..wire.carry import ATOMS, in_band, name_of

RAISED = 0  # of an `Ends.others`: (RAISED, packed error)
PICKLED = 1  # (PICKLED, pickle)

Ends = tuple[list[Any], dict[int, tuple[int, bytes]]]
"""The values of the items in their order, and by index those that are no atoms: they stay pickled until they are asked
for, so that one which cannot be rebuilt concerns its item alone."""


class Each:
    """The callable of a chunk: `fn` for each of its items. To rules and to people it has the name of `fn`."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.__module__, _, self.__qualname__ = name_of(fn).partition(":")

    def __reduce__(self) -> Any:
        return Each, (self.fn,)

    def __call__(self, items: Sequence[tuple[Any, ...]]) -> Ends:
        values: list[Any] = []
        others: dict[int, tuple[int, bytes]] = {}
        fn = self.fn
        for args in items:
            try:
                value = fn(*args)
                if type(value) not in ATOMS:
                    others[len(values)] = (PICKLED, in_band(value))
                    value = None
            except CancelSignal:
                raise
            except BaseException as error:
                from ..wire.remote import pack_error

                others[len(values)] = (RAISED, pack_error(error))
                value = None
            values.append(value)
        return values, others
