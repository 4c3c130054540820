"""`map` on a queue with `chunksize=`: one task carries many items.

    items ──▶ chunks ──▶ a task each, all submitted at once ──▶ the ends of their items, in order
                             └▶ died with an item ──▶ its items once more, a task each

A chunk is transport only: an item that raises concerns itself alone, and where a whole chunk comes to nothing (its
process died, its results were too large) its items run again one by one, so that only the one at fault fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from ..errors import ClientClosed, NotCarriable, TaskCancelled, UnknownTask, Unreachable, Untrusted
from ..running.each import RAISED, Each
from ..wire.carry import name_of, unpack
from ..wire.remote import not_rebuilt, unpack_error
from .options import Options, merge
from .singly import await_end, patiently, results_of, submit_all, take_back

if TYPE_CHECKING:
    from .client import Client
    from .task import Task

log = logging.getLogger("revolve_assistant")

_FINAL = (ClientClosed, Unreachable, Untrusted, TaskCancelled, UnknownTask)
"""Ends of a chunk that are the ends of all its items: one by one they would fare no better."""


class _Chunk:
    """Some items, and the task that carries them all; or, if not `whole`, a task for each."""

    __slots__ = ("items", "tasks", "whole")

    def __init__(self, items: list[Any], tasks: list[Task[Any]], whole: bool) -> None:
        self.items, self.tasks, self.whole = items, tasks, whole


def map_in_chunks(
    client: Client,
    options: Options,
    fn: Callable[..., Any],
    items: list[Any],
    size: int,
    deadline: float | None,
    errors: str,
) -> Generator[Any, None, None]:
    """The generator behind `Client.map`. All is submitted before this returns, as fast as the queue acknowledges it.

    Raises `NotCarriable` and `ClientClosed` at once.
    """
    each = Each(fn)
    quiet = options if options.history is not None else merge(options, history=False)  # nobody knows a chunk's id
    chunks: list[_Chunk] = []
    try:
        for at in range(0, len(items), size):
            part = items[at : at + size]
            try:
                last = chunks[-1].tasks[-1] if chunks else None
                chunks.append(_Chunk(part, [patiently(client, quiet, each, (part,), last)], True))
            except NotCarriable:  # one of them: said of that one
                chunks.append(_Chunk(part, submit_all(client, options, fn, part), False))
    except BaseException:
        _take_back(chunks)
        raise
    chunks.reverse()
    return _results(client, options, fn, chunks, deadline, errors)


def _take_back(chunks: list[_Chunk]) -> None:
    for chunk in chunks:
        take_back(chunk.tasks)


def _results(
    client: Client,
    options: Options,
    fn: Callable[..., Any],
    chunks: list[_Chunk],
    deadline: float | None,
    errors: str,
) -> Generator[Any, None, None]:
    try:
        while chunks:
            chunk = chunks[-1]
            if chunk.whole:
                await_end(chunk.tasks[0], deadline)
            chunks.pop()
            if not chunk.whole:
                yield from results_of(chunk.tasks, deadline, errors)
                continue
            try:
                values, others = chunk.tasks.pop().result(0)
            except _FINAL as error:
                if errors == "raise":
                    raise
                yield from [error] * len(chunk.items)
            except Exception as error:
                log.info("%d items of %s run again one by one: %s", len(chunk.items), name_of(fn), error)
                chunks.append(_Chunk(chunk.items, submit_all(client, options, fn, chunk.items), False))
            else:
                yield from _values(fn, values, others, errors)
    finally:
        _take_back(chunks)


def _values(
    fn: Callable[..., Any], values: list[Any], others: dict[int, tuple[int, bytes]], errors: str
) -> Generator[Any, None, None]:
    values.reverse()  # popped: what was yielded is not kept alive here
    for index in range(len(values)):
        value = values.pop()
        if index not in others:
            yield value
            continue
        kind, data = others.pop(index)
        if kind == RAISED:
            error: BaseException = unpack_error(data)
        else:
            try:
                value = unpack(data)
            except Exception as problem:
                error = not_rebuilt(name_of(fn), problem)
            else:
                yield value
                continue
        if errors == "raise":
            raise error
        yield error
