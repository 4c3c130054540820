"""`map`: many items of one function, carried in chunks whose size follows from how long the items take.

    items, each packed by itself ──▶ chunks, one to each child at a time ──▶ results by index ──▶ the iterator
                                          ▲                   │
                                          └── next chunk ◀────┘  (on the pump's thread, when one has ended)

A chunk is transport only. Each item's end is in the board before the next begins, so a child's death costs the
running item alone; the rest goes to another child; and what waits behind a slow item is taken back while others idle.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable, Generator, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from ..engine import Parcel
from ..errors import ClientClosed, NotCarriable, TaskCancelled, UsageError
from ..pool.reports import (
    REPORT_CANCELLED,
    REPORT_FAILED,
    REPORT_ITEM,
    REPORT_LOST,
    REPORT_RAISED,
    REPORT_SUCCEEDED,
    REPORT_TRIMMED,
)
from ..wire.carry import Work, pack, unpack
from ..wire.remote import not_rebuilt
from ..wire.share import collecting
from .options import PLAIN, Options

if TYPE_CHECKING:
    from .client import Client

_encode = msgspec.msgpack.Encoder().encode
TARGET = 0.02  # seconds that a chunk shall take
MAX_CHUNK = 4096  # items
HEAVY = 1 << 20  # bytes of payload in a chunk, at most, unless one item alone has more
_EMPTY = object()


class Chunk:
    """Some consecutive items on their way; owner of their parcel."""

    __slots__ = ("indices", "mapping", "open")

    def __init__(self, mapping: Mapping, indices: list[int]) -> None:
        self.mapping = mapping
        self.indices = indices
        self.open = set(range(len(indices)))  # positions that have not ended

    def take(self, report: tuple[Any, ...]) -> None:
        self.mapping.take(self, report)


class Mapping:
    """One running `map`."""

    def __init__(
        self, client: Client, fn: Callable[..., Any], items: list[tuple[Any, ...]], chunksize: int | None
    ) -> None:
        self.client = client
        self.function = client._carrier.function(fn)
        self.chunksize = chunksize
        self.packed: list[bytes | None] = []
        self.results: list[Any] = [_EMPTY] * len(items)  # packed result, or a ready exception
        self.shares: dict[str, None] = {}
        self.next = 0  # first item not yet given to the engine
        self.again: list[int] = []  # items taken back
        self.seconds = 0.0  # an item takes, by the last chunks
        self.chunks: dict[str, tuple[Chunk, float]] = {}
        self.missing = len(items)
        self.bell = allocate_lock()
        self.bell.acquire()
        self.awaited = -1
        self.lock = allocate_lock()
        self.stopped = False
        with collecting() as keys:
            for index, item in enumerate(items):
                try:
                    payload, buffers = pack(item, "argument")
                    if buffers:
                        import pickle

                        payload = pickle.dumps(item, 5)
                    self.packed.append(payload)
                except NotCarriable as error:
                    self.packed.append(None)
                    self.results[index] = error
                    self.missing -= 1
            self.shares = dict.fromkeys(keys)
        self.workers = client._engine.max_workers

    def start(self) -> None:
        for _ in range(self.workers):
            self.feed()

    def feed(self) -> None:
        """Give the engine one more chunk, if there is anything left."""
        with self.lock:
            chunk = None if self.stopped else self._cut()
            if chunk is None:
                return
            packed = [self.packed[index] for index in chunk.indices]
        work = Work(self.function, _encode(packed), None, tuple(self.shares))
        client = self.client
        parcel = Parcel(f"{client._prefix}{next(client._number):012x}", work=work, owner=chunk, chunk=True)
        self.chunks[parcel.id] = (chunk, monotonic())
        from .client import _sink

        client._engine.submit((parcel,), _sink)

    def _cut(self) -> Chunk | None:
        if self.again:
            indices = self.again[:MAX_CHUNK]
            del self.again[: len(indices)]
            return Chunk(self, indices)
        total = len(self.packed)
        while self.next < total and self.packed[self.next] is None:
            self.next += 1
        left = total - self.next
        if left <= 0:
            return None
        if self.chunksize is not None:
            size = self.chunksize
        elif not self.seconds:
            size = 1
        else:
            size = max(1, min(int(TARGET / self.seconds), MAX_CHUNK, -(-left // (2 * self.workers))))
        indices = []
        weight = 0
        while self.next < total and len(indices) < size:
            payload = self.packed[self.next]
            if payload is not None:
                weight += len(payload)
                if indices and weight > HEAVY:
                    break
                indices.append(self.next)
            self.next += 1
        return Chunk(self, indices)

    # --- the engine's reports, on its thread

    def take(self, chunk: Chunk, report: tuple[Any, ...]) -> None:
        self._take(chunk, report)
        if (self.stopped or not self.missing) and not self.chunks:
            self._over()

    def _take(self, chunk: Chunk, report: tuple[Any, ...]) -> None:
        kind = report[1]
        if kind == REPORT_ITEM:
            self._end(chunk, report[2], report[3], report[4])
            return
        if kind == REPORT_TRIMMED:
            back = [position for position in chunk.open if position >= report[2]]
            with self.lock:
                self.again += sorted(chunk.indices[position] for position in back)
            chunk.open.difference_update(back)
            for _ in range(self.workers):
                self.feed()
            return
        parcel = report[0]
        if kind == REPORT_SUCCEEDED:
            _, began = self.chunks.pop(parcel.id)
            done = len(chunk.indices) - len(chunk.open)
            if done:
                seconds = (report[3] or (monotonic() - began)) / done
                self.seconds = max(1e-7, (self.seconds + seconds) / 2 if self.seconds else seconds)
            self._back(chunk)
            self.feed()
            return
        if kind == REPORT_LOST:
            self.chunks.pop(parcel.id, None)
            item = report[3] if len(report) > 3 else 0
            if item in chunk.open:
                self._put(chunk, item, report[2])
            self._back(chunk)
            self.feed()
        elif kind in (REPORT_RAISED, REPORT_FAILED, REPORT_CANCELLED):
            self.chunks.pop(parcel.id, None)
            if kind == REPORT_FAILED:
                from ..wire.remote import unpack_error

                error: BaseException = unpack_error(report[2])
            else:
                error = report[2] if kind == REPORT_RAISED else TaskCancelled("the map was stopped")
            for position in sorted(chunk.open):
                self._put(chunk, position, error)
            self.feed()

    def _back(self, chunk: Chunk) -> None:
        """What the chunk did not get to is due again."""
        if chunk.open:
            with self.lock:
                self.again += sorted(chunk.indices[position] for position in chunk.open)
            chunk.open.clear()

    def _end(self, chunk: Chunk, position: int, payload: bytes | None, error: bytes | None) -> None:
        if position in chunk.open:
            chunk.open.discard(position)
            index = chunk.indices[position]
            self.packed[index] = None
            self.results[index] = payload if error is None else (error,)
            self.missing -= 1
            if index == self.awaited:
                self._ring()

    def _put(self, chunk: Chunk, position: int, error: BaseException) -> None:
        chunk.open.discard(position)
        index = chunk.indices[position]
        self.packed[index] = None
        self.results[index] = error
        self.missing -= 1
        if index == self.awaited:
            self._ring()

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
        value = results[index]
        results[index] = None
        kind = type(value)
        if kind is bytes:
            try:
                return unpack(value)
            except BaseException as problem:
                return _Failed(not_rebuilt(self.function.name, problem))
        if kind is tuple:
            from ..wire.remote import unpack_error

            return _Failed(unpack_error(value[0]))
        return _Failed(value)

    def stop(self) -> None:
        """Cancel what has not started; what runs is stopped at its next item."""
        with self.lock:
            self.stopped = True
            self.again.clear()
            self.next = len(self.packed)
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
    else:
        tasks = [client._submit(options, fn, item, {}) for item in items]
        results = _from_tasks(tasks, deadline, errors)
    return _shown(results, len(items), fn) if show else results


def _from_mapping(mapping: Mapping, count: int, deadline: float | None, errors: str) -> Generator[Any, None, None]:
    index = 0
    get, raises = mapping.get, errors == "raise"
    try:
        while index < count:
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


def _from_tasks(tasks: list[Any], deadline: float | None, errors: str) -> Generator[Any, None, None]:
    tasks.reverse()
    try:
        while tasks:
            task = tasks[-1]
            if not task.done():
                task._wait(None if deadline is None else deadline - monotonic())
            tasks.pop()
            try:
                box = [task.result(0)]
            except Exception as error:
                if errors == "raise":
                    raise
                box = [error]
            del task
            yield box.pop()
    finally:
        for task in tasks:
            if not task.running():
                task.cancel()


def _shown(results: Generator[Any, None, None], count: int, fn: Callable[..., Any]) -> Generator[Any, None, None]:
    from ..views.bars import local_track

    try:
        yield from local_track(results, getattr(fn, "__name__", "map"), count)
    finally:
        results.close()
