"""`map`: many items of one function, carried in chunks whose size follows from how long the items take.

    items, each packed by itself ──▶ chunks, one to each child at a time ──▶ results by index ──▶ the iterator
                                          ▲                   │
                                          └── next chunk ◀────┘  (on the pump's thread, when one has ended)

A chunk is transport only. Each item's end is in the board before the next begins, so a child's death costs the
running item alone; the rest goes to another child; and what waits behind a slow item is taken back while others idle.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import chain
from pickle import dumps
from threading import RLock
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from .. import telemetry
from ..engine import Parcel
from ..errors import ClientClosed, NotCarriable, TaskCancelled, UsageError
from ..pool.reports import (
    ITEM_ERROR,
    ITEM_PLAIN,
    REPORT_CANCELLED,
    REPORT_EVENTS,
    REPORT_FAILED,
    REPORT_ITEMS,
    REPORT_LOST,
    REPORT_RAISED,
    REPORT_STARTED,
    REPORT_SUCCEEDED,
    REPORT_TRIMMED,
    REPORT_WANT,
)
from ..wire.carry import ATOMS, Work, kind_of, pack, unpack
from ..wire.remote import not_rebuilt
from ..wire.share import collecting, distinct
from .options import PLAIN, Options
from .singly import results_of, submit_all

if TYPE_CHECKING:
    from .client import Client

_encode = msgspec.msgpack.Encoder().encode
TARGET = 0.02  # seconds that a chunk shall take
MAX_CHUNK = 4096  # items
HEAVY = 1 << 20  # bytes of payload in a chunk, at most, unless one item alone has more
_EMPTY = object()
_WHOLE: Any = ()  # marks a work whose payload is one pickle of all items


class Chunk:
    """Some items on their way; owner of their parcel. They end in order: `done` of them have."""

    __slots__ = ("done", "indices", "mapping", "stop")

    def __init__(self, mapping: Mapping, indices: Sequence[int]) -> None:
        self.mapping = mapping
        self.indices = indices
        self.done = 0
        self.stop = len(indices)  # the items from here on were taken back

    def take(self, report: tuple[Any, ...]) -> None:
        self.mapping.take(self, report)


class Mapping:
    """One running `map`. Items are pickled when their chunk is cut, by the thread that cuts it."""

    def __init__(self, client: Client, fn: Callable[..., Any], items: list[Any], chunksize: int | None) -> None:
        self.client = client
        with collecting() as held:
            self.function = client._carrier.function(fn)
        self.shares = distinct(held)  # that the function holds: each chunk needs them
        for share in self.shares:
            share.payload()
        self.chunksize = chunksize
        self.items = items  # argument tuples; None once their end is known
        self.results: list[Any] = [_EMPTY] * len(items)  # a child's record, or a `_Failed`
        self.next = 0  # first item not yet given to the engine
        self.again: list[int] = []  # items taken back
        self.seconds = 0.0  # an item takes, by the last chunks
        self.chunks: dict[str, tuple[Chunk, float]] = {}
        self.missing = len(items)
        self.bell = allocate_lock()
        self.bell.acquire()
        self.awaited = -1
        self.lock = RLock()
        self.stopped = False
        self.workers = client._engine.max_workers
        self.prefix = client._prefix
        self.context = telemetry.tracer.current() if telemetry.tracer is not None else None

    def start(self) -> None:
        for _ in range(self.workers):
            self.feed()

    def feed(self) -> None:
        """Give the engine one more chunk, if there is anything left."""
        client = self.client
        with self.lock:
            if self.stopped:
                return
            indices = self._cut()
            if not indices:
                return
            work, indices = self._carry(indices)
            chunk = Chunk(self, indices)
            parcel = Parcel(
                client._new_id(),
                work=work,
                owner=chunk,
                chunk=2 if work.live is _WHOLE else 1,
            )
            if telemetry.tracer is not None:
                telemetry.tracer.submit(parcel, len(indices), self.context)
            self.chunks[parcel.id] = (chunk, monotonic())
        from .submitter import sink

        client._engine.submit((parcel,), sink)

    def _cut(self) -> Sequence[int]:
        """The items of the next chunk."""
        if self.again:
            indices = self.again[:MAX_CHUNK]
            del self.again[: len(indices)]
            return indices
        left = len(self.items) - self.next
        if left <= 0:
            return ()
        if self.chunksize is not None:
            size = self.chunksize
        elif not self.seconds:
            size = 1
        else:
            size = max(1, min(int(TARGET / self.seconds), MAX_CHUNK, -(-left // (2 * self.workers))))
        indices_ = range(self.next, self.next + min(size, left))
        self.next += len(indices_)
        return indices_

    def _carry(self, indices: Sequence[int]) -> tuple[Work, Sequence[int]]:
        """The chunk's work, and those of its items that can travel. What cannot ends here, alone."""
        items = self.items
        chosen = items[indices[0] : indices[-1] + 1] if isinstance(indices, range) else [items[i] for i in indices]
        if ATOMS.issuperset(map(type, chain.from_iterable(chosen))):
            return Work(self.function, dumps(chosen, 5), None, self.shares, live=_WHOLE), indices
        packed: list[bytes] = []
        kept: list[int] = []
        weight = 0
        with collecting() as held:
            for position, item in enumerate(chosen):
                index = indices[position]
                known = len(held)
                try:
                    payload, buffers = pack(item, "argument")
                    for share in held[known:]:
                        share.payload()
                except NotCarriable as error:
                    del held[known:]
                    self._put(index, _Failed(error))
                    continue
                if buffers:
                    payload = dumps(item, 5)
                weight += len(payload)
                if kept and weight > HEAVY:
                    self.again = [*indices[position:], *self.again]
                    break
                packed.append(payload)
                kept.append(index)
        return Work(self.function, _encode(packed), None, distinct((*self.shares, *held))), kept

    # --- the engine's reports, on its thread

    def take(self, chunk: Chunk, report: tuple[Any, ...]) -> None:
        self._take(chunk, report)
        if (self.stopped or not self.missing) and not self.chunks:
            self._over()
        awaited = self.awaited
        if awaited >= 0 and self.results[awaited] is not _EMPTY:
            self._ring()

    def _take(self, chunk: Chunk, report: tuple[Any, ...]) -> None:
        kind = report[1]
        if kind == REPORT_ITEMS:
            indices, results, done = chunk.indices, self.results, chunk.done
            for record in report[2]:
                if record[2] == done:  # always, but for what a dead child's board repeats
                    results[indices[done]] = record
                    done += 1
            self.missing -= done - chunk.done
            chunk.done = done
            chunk.stop = max(chunk.stop, done)
            return
        if kind == REPORT_TRIMMED:
            self._back(chunk, max(report[2], chunk.done))
            for _ in range(self.workers):
                self.feed()
            return
        if kind == REPORT_STARTED or kind == REPORT_EVENTS:
            return
        if kind == REPORT_WANT:  # nobody listens to the items of a map: what they say is taken at once
            self.client._engine.grant(report[0])
            return
        parcel = report[0]
        parcel.owner = parcel._ = None
        _, began = self.chunks.pop(parcel.id, (chunk, 0.0))
        if kind == REPORT_SUCCEEDED:
            if chunk.done:
                seconds = (report[3] or (monotonic() - began)) / chunk.done
                self.seconds = max(1e-7, (self.seconds + seconds) / 2 if self.seconds else seconds)
        elif kind == REPORT_LOST:
            if len(report) > 3 and chunk.done <= report[3] < chunk.stop:
                self._put(chunk.indices[chunk.done], _Failed(report[2]))
                chunk.done += 1
        elif kind in (REPORT_RAISED, REPORT_FAILED, REPORT_CANCELLED):
            if kind == REPORT_FAILED:
                from ..wire.remote import unpack_error

                error: BaseException = unpack_error(report[2])
            else:
                error = report[2] if kind == REPORT_RAISED else TaskCancelled("the map was stopped")
            for position in range(chunk.done, chunk.stop):
                self._put(chunk.indices[position], _Failed(error))
            chunk.done = chunk.stop
        self._back(chunk, chunk.done)
        items, indices = self.items, chunk.indices
        if isinstance(indices, range):
            items[indices[0] : indices[0] + chunk.done] = [None] * chunk.done
        else:
            for index in indices[: chunk.done]:
                items[index] = None
        self.feed()

    def _back(self, chunk: Chunk, first: int) -> None:
        """The items from position `first` on are due again."""
        if first < chunk.stop:
            with self.lock:
                self.again += chunk.indices[first : chunk.stop]
            chunk.stop = first

    def _put(self, index: int, result: Any) -> None:
        self.items[index] = None
        self.results[index] = result
        self.missing -= 1

    def _ring(self) -> None:
        if self.bell.locked():
            self.bell.release()

    def _over(self) -> None:
        client = self.client
        client._maps.discard(self)
        client._check_drained()

    # --- the iterator

    def get(self, index: int, deadline: float | None) -> Any:
        """The result of an item, or an `_Failed` that holds what it raised. Blocks until it is there.

        Raises `TimeoutError` (the map's own), `ClientClosed`, `UsageError`.
        """
        results = self.results
        if results[index] is _EMPTY:
            if not self.client._owns(self.prefix):
                raise UsageError("this map() belongs to the process that this one was forked from: use it there")
            self.awaited = index
            while results[index] is _EMPTY:
                if self.client._blocks_itself():
                    raise UsageError("map() would wait for ever: this is the thread that serves its tasks")
                rest = -1.0 if deadline is None else deadline - monotonic()
                if deadline is not None and rest <= 0:
                    raise TimeoutError(f"item {index} of map() has not ended in time")
                self.bell.acquire(timeout=rest)
                if self.stopped and results[index] is _EMPTY:
                    raise ClientClosed("the client was closed before the item ended")
            self.awaited = -1
        record = results[index]
        results[index] = None
        if type(record) is _Failed:
            return record
        kind, value = record[0], record[3]
        if kind == ITEM_PLAIN:
            return value
        if kind == ITEM_ERROR:
            from ..wire.remote import unpack_error

            return _Failed(unpack_error(value))
        try:
            return unpack(value)
        except BaseException as problem:
            return _Failed(not_rebuilt(self.function.name, problem))

    def stop(self) -> None:
        """Cancel what has not started; what runs is stopped at its next item."""
        if not self.client._owns(self.prefix):
            return
        with self.lock:
            self.stopped = True
            self.again.clear()
            self.next = len(self.items)
        for id in list(self.chunks):
            self.client._engine.trim(id)
        if not self.chunks:
            self._over()
        self._ring()


class _Failed:
    """What an item raised."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def run_map(
    client: Client,
    options: Options,
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    chunksize: int | None,
    show: bool,
    errors: str,
) -> Generator[Any, None, None]:
    """The generator behind `Client.map`; starts at once."""
    if chunksize is not None and (isinstance(chunksize, bool) or not isinstance(chunksize, int) or chunksize < 1):
        raise UsageError(f"chunksize={chunksize!r} must be a whole number >= 1, or None for automatic")
    if errors not in ("raise", "return"):
        raise UsageError(f"errors={errors!r} must be 'raise' or 'return'")
    if client._shut:
        raise ClientClosed("cannot map: the client was shut down")
    deadline = None if timeout is None else monotonic() + timeout
    items = list(zip(*iterables, strict=False))
    engine = client._engine
    chunky = not client._live and options is PLAIN and client._listeners is None and hasattr(engine, "trim")
    if chunky and client._carrier.function(fn).kind == "plain":
        mapping = Mapping(client, fn, items, chunksize)
        if mapping.missing:
            client._maps.add(mapping)
            mapping.start()
        results = _from_mapping(mapping, len(items), deadline, errors)
    elif client._remote and chunksize is not None and chunksize > 1 and _can_share(client, options, fn):
        from .chunks import map_in_chunks

        results = map_in_chunks(client, options, fn, items, chunksize, deadline, errors)
    else:
        results = results_of(submit_all(client, options, fn, items), deadline, errors)
    return _shown(results, len(items), fn) if show else results


def _can_share(client: Client, options: Options, fn: Callable[..., Any]) -> bool:
    """Whether items may share a task of a queue: none needs limits, attempts, a key or a listener of its own."""
    limited = options.timeout is not None or options.stall is not None or options.unique is not None
    alone = limited or options.retries or options.capture or client._listeners is not None
    return not alone and callable(fn) and kind_of(fn) == "plain"


def _from_mapping(mapping: Mapping, count: int, deadline: float | None, errors: str) -> Generator[Any, None, None]:
    index = 0
    get, results, raises = mapping.get, mapping.results, errors == "raise"
    try:
        while index < count:
            record = results[index]
            if type(record) is list and record[0] == ITEM_PLAIN:
                results[index] = None
                index += 1
                yield record[3]
                continue
            del record
            box = [get(index, deadline)]
            index += 1
            if type(box[0]) is _Failed:
                box[0] = box[0].error
                if raises:
                    raise box.pop()
            yield box.pop()  # popped: what was yielded is not kept alive here
    finally:
        if index < count:
            mapping.stop()


def _shown(results: Generator[Any, None, None], count: int, fn: Callable[..., Any]) -> Generator[Any, None, None]:
    from ..views.bars import local_track

    try:
        yield from local_track(results, getattr(fn, "__name__", "map"), count)
    finally:
        results.close()
