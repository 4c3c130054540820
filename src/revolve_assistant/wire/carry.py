"""Callables, arguments and results as bytes: by reference where a fresh interpreter can import them, else by value.

       caller                                      child (never imports the caller's __main__)
       Carrier.carry(f, args, kwargs) ─ Work ───▶  unpack(function.body), kept by `key`; unpack(payload, buffers)
       unpack(result)                 ◀───────────  pack(result)

Plain C pickle comes first; cloudpickle, many times slower, only where that fails or would name an object of `__main__`.
A by-value function costs 30 µs and more to pickle, so its body is kept with all that it captures, also through other
such functions. Later carries compare that with `is`; what captures a list, an instance, a by-value class, is repickled.
"""

from __future__ import annotations

import itertools
import marshal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache, lru_cache, partial
from pickle import PickleBuffer, dumps, loads
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ref

from ..errors import UsageError
from .share import Share, distinct, met

OUT_OF_BAND = 256 << 10  # bytes: contiguous buffers from this size on travel beside the pickle
BYTES_BESIDE = 8 << 20  # the same for bytes objects, which are copied in any case: below it the socket is faster
MAX_BODIES = 4096  # bodies whose keys are remembered, least recently used go first
OPTIONS = "__revolve_defaults__"  # attribute set by @defaults; the caller's affair, so it does not travel

ATOMS = frozenset({type(None), bool, int, float, str, bytes})  # exact types: a subclass may do anything

# types whose values never change in place, or are pickled by name
STEADY = frozenset({
    "builtins.NoneType", "builtins.bool", "builtins.int", "builtins.float", "builtins.complex", "builtins.str",
    "builtins.bytes", "builtins.range", "datetime.date", "datetime.datetime", "datetime.time",
    "datetime.timedelta", "datetime.timezone", "decimal.Decimal", "fractions.Fraction", "logging.Logger", "re.Pattern",
    "uuid.UUID", "pathlib.PosixPath", "pathlib._local.PosixPath",
})  # fmt: skip
_lost = [b"_main__"]  # modules no child can import: "__main__", multiprocessing's "__mp_main__", those we met
_MISSING = object()
_LRU = type(lru_cache(int))
_counter = itertools.count(1)
_young: dict[bytes, int] = {}  # body (or the digest of a long one) -> key
_old: dict[bytes, int] = {}  # the generation before: together they keep what was used last, without a lock


class Function:
    """A callable as it travels. Equal bodies have one `key` in this process; `kind` is as `kind_of` says."""

    __slots__ = ("body", "by_value", "key", "kind", "name")

    def __init__(self, key: int, name: str, kind: str, body: bytes, by_value: bool) -> None:
        self.key, self.name, self.kind = key, name, kind
        self.body, self.by_value = body, by_value

    def __repr__(self) -> str:
        return f"<Function {self.key} {self.name} {self.kind}>"


class Work:
    """A call on its way. `live` is the call itself where nothing is pickled, else None.

    `payload` and `buffers` unpack to `(args, kwargs)`; `shares` are handles a child must receive
    before, held until the task ends.
    Buffers are views of the caller's memory: what is written to it before they are sent is sent.
    """

    __slots__ = ("buffers", "function", "live", "payload", "shares")

    def __init__(
        self,
        function: Function,
        payload: bytes = b"",
        buffers: list[PickleBuffer] | None = None,
        shares: tuple[Share[Any], ...] = (),
        live: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None = None,
    ) -> None:
        self.function, self.payload, self.buffers = function, payload, buffers
        self.shares, self.live = shares, live


class Carrier:
    """Packs the calls of one client and keeps what it learned of their functions. Thread-safe."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        # id(fn) -> (weak reference, function, what it captured or None where it goes by reference)
        self._known: dict[int, tuple[ref[Any], Function, tuple[Any, ...] | None]] = {}

    def carry(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Work:
        """The call as bytes. Raises `NotCarriable`, which names the part at fault; `UsageError` for no callable."""
        function = self._recall(fn)
        plain = ATOMS.issuperset(map(type, args)) and (not kwargs or ATOMS.issuperset(map(type, kwargs.values())))
        sent = args
        if bytes in map(type, args):
            sent = tuple(_Beside(each) if type(each) is bytes and len(each) >= BYTES_BESIDE else each for each in args)
            plain = plain and sent == args
        if plain and function is not None:
            return Work(function, dumps((args, kwargs), 5))
        outer, met.handles = met.handles, []
        try:
            if function is None:
                function = self._learn(fn)
            buffers: list[PickleBuffer] = []
            try:
                payload = encode((sent, kwargs), buffers)
            except Exception as error:
                from .remote import refuse_call

                refuse_call(fn, args, kwargs, error)
            shares = distinct(met.handles) if met.handles else ()
        finally:
            met.handles = outer
        for share in shares:
            share.payload()  # here, where the caller learns that it cannot be shared
        return Work(function, payload, buffers or None, shares)

    def function(self, fn: Callable[..., Any]) -> Function:
        """The callable alone. Raises as `carry` does."""
        return self._recall(fn) or self._learn(fn)

    def live(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Work:
        """The call for an engine that runs it in this process: nothing is pickled, `key` is 0 and `body` empty."""
        function = self._recall(fn)
        if function is None:
            _check(fn)
            function = Function(0, name_of(fn), kind_of(fn), b"", False)
        return Work(function, live=(fn, args, kwargs))

    def _recall(self, fn: Any) -> Function | None:
        known = self._known.get(id(fn))
        if known is None or known[0]() is not fn or _registered():
            return None
        captured = known[2]
        return known[1] if captured is None or _unchanged(captured) else None

    def _learn(self, fn: Any) -> Function:
        _check(fn)
        by_value, captured = not by_reference(fn), None
        if by_value and type(fn) is FunctionType:
            captured = _capture(fn)  # before pickling: what changes meanwhile is then noticed
        try:  # a plain pickle would name even a module that no child can import
            body = _cloud_dumps(fn) if by_value and type(fn) is FunctionType else encode(fn, None)
        except Exception as error:
            from .remote import refuse

            refuse(name_of(fn).partition(":")[2] + "()", "", fn, error)
        function = Function(key_of(body), name_of(fn), kind_of(fn), body, by_value)
        if (captured is not None or not by_value) and not _registered():
            slot, known = id(fn), self._known
            known[slot] = (ref(fn, lambda _: known.pop(slot, None)), function, captured)
        return function


def pack(value: Any, what: str = "value") -> tuple[bytes, list[PickleBuffer] | None]:
    """A value as pickle 5 and its large buffers; raises `NotCarriable`, whose message calls the value `what`."""
    kind = type(value)
    if kind is bytes and len(value) >= BYTES_BESIDE:
        value = _Beside(value)
    elif kind in ATOMS:
        return dumps(value, 5), None
    buffers: list[PickleBuffer] = []
    try:
        return encode(value, buffers), buffers or None
    except Exception as error:
        from .remote import refuse

        refuse(what, what, value, error)


def in_band(value: Any) -> bytes:
    """A result as one pickle, without anything beside it. Raises `NotCarriable`."""
    payload, buffers = pack(value, "result")
    return dumps(value, 5) if buffers else payload


class _Beside:
    """Large bytes that travel beside the pickle, so that they are copied once less on each side."""

    __slots__ = ("value",)

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return (bytes, (PickleBuffer(self.value),))


def unpack(data: bytes, buffers: Sequence[Any] | None = None) -> Any:
    """The value that `pack` took. Only for bytes that are trusted; re-raises whatever unpickling raises."""
    return loads(data, buffers=buffers)


def encode(value: Any, buffers: list[PickleBuffer] | None) -> bytes:
    """Pickle, plain if that serves, large buffers into `buffers` (None: all in-band). Raises what pickling raises."""

    def beside(buffer: PickleBuffer) -> bool:
        if buffers is None or buffer.raw().nbytes < OUT_OF_BAND:
            return True
        buffers.append(buffer)
        return False

    try:
        data = dumps(value, 5, buffer_callback=beside)
        if not names_lost(data):
            return data
    except RecursionError:
        raise
    except Exception:
        pass  # cloudpickle can do more
    if buffers:
        buffers.clear()
    return _cloud_dumps(value, beside)


def _cloud_dumps(value: Any, beside: Callable[[PickleBuffer], Any] | None = None) -> bytes:
    from io import BytesIO

    file = BytesIO()
    cloud_pickler()(file, protocol=5, buffer_callback=beside).dump(value)
    return file.getvalue()


@cache
def cloud_pickler() -> Any:
    """The class of cloudpickle's pickler, made to agree with `by_reference`."""
    from cloudpickle import cloudpickle  # type: ignore[import-untyped, unused-ignore]

    from . import rebuild

    class CloudPickler(cloudpickle.Pickler):  # type: ignore[misc, unused-ignore]
        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if kind is FunctionType and not by_reference(obj):
                reduced = self._dynamic_function_reduce(obj)
                reduced[2][0].pop(OPTIONS, None)  # the state's copy of __dict__
                body, space, name, defaults, closure = reduced[1]
                made = (body, space, name, defaults, closure and tuple(CellType() for _ in closure))
                return rebuild.make_function, made, reduced[2], None, None, rebuild.set_state
            if kind is CellType:
                try:
                    return rebuild.cell, (obj.cell_contents,)
                except ValueError:  # an empty one
                    return rebuild.cell, ()
            if kind is CodeType:  # with its file name, so that tracebacks show the user's source
                return rebuild.code, (marshal.dumps(obj),)
            if kind is _LRU and not by_reference(obj):  # cloudpickle would name it in __main__
                return (_cached, (obj.__wrapped__, obj.cache_parameters()))
            name = getattr(obj, "__module__", None) if issubclass(kind, type) else None
            if isinstance(name, str) and name in sys.modules and name != "__main__" and not _findable(name):
                return cloudpickle._dynamic_class_reduce(obj)  # cloudpickle takes all in sys.modules for importable
            return super().reducer_override(obj)

    return CloudPickler


def _cached(fn: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return lru_cache(**parameters)(fn)


def key_of(body: bytes) -> int:
    """The number of a body in this process: equal bodies have one."""
    global _old, _young
    if len(body) > 64:
        from hashlib import blake2b

        body = blake2b(body, digest_size=16).digest()
    key = _young.get(body)
    if key is None:
        key = _young.setdefault(body, _old.get(body) or next(_counter))
        if len(_young) > MAX_BODIES // 2:
            _old, _young = _young, {}
    return key


def _check(fn: Any) -> None:
    if not callable(fn):
        from reprlib import repr as short  # guards against a __repr__ that raises

        raise UsageError(f"submit() needs a callable, got {short(fn)} ({type(fn).__qualname__})")


def name_of(fn: Any) -> str:
    """`module:qualname`, printable; of what a partial calls, `partial(…)`; of an instance, its `__call__`."""
    if isinstance(fn, partial):
        return f"partial({name_of(fn.func)})"
    named = fn if isinstance(getattr(fn, "__qualname__", None), str) else type(fn)
    module = getattr(named, "__module__", None)
    if module is None and isinstance(fn, BuiltinFunctionType):  # a method of a built-in object
        module = getattr(type(fn.__self__), "__module__", None)
    name = f"{module or 'builtins'}:{named.__qualname__}" + (".__call__" if named is not fn else "")
    return name if name.isprintable() else ascii(name)[1:-1]


def kind_of(fn: Any) -> str:
    """`async`, `generator`, `asyncgen` or `plain`: what calling it gives. `__wrapped__` is not followed."""
    for _ in range(100):
        if isinstance(fn, partial):
            fn = fn.func
        elif isinstance(fn, MethodType):
            fn = fn.__func__
        elif isinstance(fn, (FunctionType, BuiltinFunctionType, type)):
            break
        else:
            fn = getattr(type(fn), "__call__", None)  # noqa: B004 - its code is wanted
    flags = fn.__code__.co_flags if isinstance(fn, FunctionType) else 0  # inspect.CO_COROUTINE and so on
    if flags & 0x80 or hasattr(fn, "_is_coroutine_mark"):  # inspect.markcoroutinefunction, 3.12
        return "async"
    return "asyncgen" if flags & 0x200 else "generator" if flags & 0x20 else "plain"


def _registered() -> Collection[str]:
    """The modules whose objects the user asked cloudpickle to send by value."""
    names = getattr(sys.modules.get("cloudpickle"), "list_registry_pickle_by_value", None)
    return names() if names else ()


def names_lost(data: bytes) -> bool:
    """Whether a plain pickle may name something that has to go by value."""
    return any([name in data for name in _lost]) or bool(_registered())  # noqa: C419 - faster with so few


def by_reference(fn: Any) -> bool:
    """Whether a fresh interpreter that imports the callable's module finds this very object by its qualified name."""
    if isinstance(fn, BuiltinFunctionType) and not isinstance(fn.__self__, (ModuleType, type(None))):
        return False  # a method of some object
    name = getattr(fn, "__module__", None)
    referable = isinstance(fn, (FunctionType, BuiltinFunctionType, type, _LRU))
    if not referable or not isinstance(name, str) or name not in sys.modules:
        return False
    if not _findable(name):
        if not name.endswith("_main__") and name.encode() not in _lost:
            _lost.append(name.encode())
        return False
    at: Any = sys.modules.get(name)
    for part in fn.__qualname__.split("."):
        at = getattr(at, part, None)
    return at is fn and not any(name == each or name.startswith(f"{each}.") for each in _registered())


@cache
def _findable(name: str) -> bool:
    """Whether importing `name` afresh loads what is loaded here; not so for __main__ and modules made by hand."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    parent, _, _ = name.rpartition(".")
    if spec is None or name in ("__main__", "__mp_main__") or (parent and not _findable(parent)):
        return False
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    for finder in sys.meta_path:
        try:
            found = finder.find_spec(name, path)
        except Exception:
            continue
        if found is not None:
            return bool(found.origin == spec.origin)
    return False


# --- what a by-value function captures


def global_names(code: CodeType) -> Iterator[str]:
    import dis

    for step in dis.get_instructions(code):
        if "GLOBAL" in step.opname or step.opname == "LOAD_NAME":
            yield step.argval
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from global_names(constant)


def _steady(value: Any) -> bool:
    kind = type(value)
    if kind is tuple or kind is frozenset:
        return all(map(_steady, value))
    if kind is ModuleType:
        return _findable(value.__name__)
    return f"{kind.__module__}.{kind.__qualname__}" in STEADY or by_reference(value)


def _capture(fn: FunctionType) -> tuple[Any, ...] | None:
    """All that the function and the by-value functions it names depend on, or None if some of it can change."""
    records: list[tuple[Any, ...]] = []
    queue = [fn]
    seen = {id(fn)}

    def hold(value: Any) -> Any:
        if type(value) is FunctionType and not by_reference(value):
            if id(value) not in seen:
                seen.add(id(value))
                queue.append(value)
            return ref(value)  # weak: it may well refer to `fn`
        if len(seen) > 64 or (value is not _MISSING and not _steady(value)):
            raise ValueError
        return value

    try:
        while queue:
            at = queue.pop()
            names = sorted(set(global_names(at.__code__)))
            captured = tuple((name, hold(at.__globals__.get(name, _MISSING))) for name in names)
            cells = tuple(hold(cell.cell_contents) for cell in at.__closure__ or ())
            keywords = tuple((name, hold(value)) for name, value in (at.__kwdefaults__ or {}).items())
            attributes = tuple((name, hold(value)) for name, value in at.__dict__.items() if name != OPTIONS)
            records.append((ref(at), at.__code__, hold(at.__defaults__), captured, cells, keywords, attributes))
    except ValueError:  # something that can change, or a cell still empty
        return None
    return tuple(records)


def _same(held: Any, now: Any) -> bool:
    return held is now or (type(held) is ref and held() is now)


def _alike(space: dict[str, Any], pairs: tuple[tuple[str, Any], ...]) -> bool:
    return len(space) - (OPTIONS in space) == len(pairs) and all(_same(v, space.get(k, _MISSING)) for k, v in pairs)


def _unchanged(records: tuple[Any, ...]) -> bool:
    for weak, code, defaults, names, cells, keywords, attributes in records:
        fn = weak()
        if fn is None or fn.__code__ is not code or fn.__defaults__ is not defaults:
            return False
        space = fn.__globals__
        for name, held in names:
            now = space.get(name, _MISSING)
            if now is not held and not _same(held, now):
                return False
        try:
            if cells and not all(map(_same, cells, [cell.cell_contents for cell in fn.__closure__])):
                return False
        except ValueError:  # a cell emptied by `del`
            return False
        one, two = fn.__kwdefaults__, fn.__dict__
        if (one or keywords or two or attributes) and not (_alike(one or {}, keywords) and _alike(two, attributes)):
            return False
    return True
