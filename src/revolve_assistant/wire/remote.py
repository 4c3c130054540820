"""What went wrong, told across processes: an exception of the callable, and why something could not be carried.

       child                                         caller
       pack_error(exc) ── msgpack of the chain ───▶  unpack_error(data) -> the exception itself, or a RemoteError

An exception crosses as a pickle only if the child could read it back: one whose `__init__` does not take its `args`
arrives as a `RemoteError` with its name, message and traceback. Whatever it holds, packing is bounded: links of the
chain, frames, characters and bytes are counted, and no `__repr__` of a user's class is called. The caller's printout
shows the traceback from there, as with `concurrent.futures`.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType, TracebackType, WrapperDescriptorType
from typing import Any, NoReturn

import msgspec

from ..errors import NotCarriable, ProtocolError, RemoteError
from .carry import ATOMS, STEADY, by_reference, cloud_pickler, encode, global_names, name_of, names_lost

MAX_LINKS = 10  # exceptions of a chain, the raised one included
MAX_FRAMES = 200  # of one traceback: a quarter from the top, the rest from the bottom
MAX_TEXT = 64 << 10  # characters of a traceback's text, and of a message
MAX_NOTES = 50
MAX_MEMBERS = 50  # of exception groups, in the text

_set_cause = BaseException.__dict__["__cause__"].__set__  # past a class's own __setattr__ (a frozen dataclass)
_set_context = BaseException.__dict__["__context__"].__set__
_set_suppress = BaseException.__dict__["__suppress_context__"].__set__


class _Link(msgspec.Struct, array_like=True):
    """One exception of a chain; `cause` and `context` are indices of later links, or -1."""

    type_name: str
    message: str
    notes: list[str]
    pickled: bytes | None
    cause: int
    context: int
    suppress: bool


class _Error(msgspec.Struct, array_like=True):
    links: list[_Link]
    traceback: str


class RemoteTraceback(Exception):
    """Stands at the end of a delivered exception's chain; its text is the traceback in the process that raised."""

    def __str__(self) -> str:
        return f'\n"""\n{str(self.args[0]).rstrip()}\n"""'


def remote_traceback(exc: BaseException) -> str | None:
    """The text of the traceback in the process that raised `exc`; None for an exception of this process."""
    for link in _walk(exc, 1000):
        if isinstance(link, RemoteTraceback):
            return str(link.args[0])
        if isinstance(link, RemoteError) and link.remote_traceback:
            return link.remote_traceback
    return None


def _walk(exc: BaseException, limit: int) -> Iterator[BaseException]:
    """The chain as it is printed, newest first."""
    seen: set[int] = set()
    at: BaseException | None = exc
    while at is not None and id(at) not in seen and len(seen) < limit:
        seen.add(id(at))
        yield at
        at = at.__cause__ if at.__cause__ is not None or at.__suppress_context__ else at.__context__


# --- in the child


def pack_error(exc: BaseException, *, limit: int = 256 << 10) -> bytes:
    """The exception, its chain and the text of its traceback; pickles only up to `limit` bytes together.

    Never raises because of what the exception holds. Runs the exception's own code (`__str__`, `__reduce__`).
    """
    links: list[_Link] = []
    found = [exc]
    place = {id(exc): 0}
    for at in found:  # grows meanwhile
        ends: list[int] = []
        for other in (at.__cause__, at.__context__):
            if other is not None and id(other) not in place and len(found) < MAX_LINKS:
                place[id(other)] = len(found)
                found.append(other)
            index = place.get(id(other), -1)
            ends.append(index if index > len(links) else -1)  # never back: no cycles over there
        data = _pickled(at, limit)
        limit -= len(data or b"")
        name = _type_name(type(at))
        links.append(_Link(name, _message(at), _notes(at), data, ends[0], ends[1], at.__suppress_context__))
    try:
        text = _text(exc, [MAX_MEMBERS])
    except Exception:  # its code, or a source file that cannot be read
        text = _headline(exc)
    return msgspec.msgpack.encode(_Error(links, _clean(text)))


class _Bounded(io.BytesIO):
    room = 0

    def write(self, data: Any, /) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OverflowError
        return super().write(data)


def _pickled(exc: BaseException, limit: int) -> bytes | None:
    """The exception's pickle if it is an `Exception` that comes back as it was."""
    if not isinstance(exc, Exception):
        return None  # delivering SystemExit or KeyboardInterrupt would end the caller's program
    for pickler in (lambda: pickle.Pickler, cloud_pickler):
        file = _Bounded()
        file.room = limit
        try:
            pickler()(file, protocol=5).dump(exc)
            data = file.getvalue()
            if pickler is not cloud_pickler and names_lost(data):
                continue
            return data if _alike(exc, pickle.loads(data), set()) else None
        except OverflowError:
            return None
        except BaseException:  # the exception's own code
            continue
    return None


def _alike(exc: Any, copy: Any, seen: set[int]) -> bool:
    seen.add(id(exc))
    if type(copy) is not type(exc) or len(copy.args) != len(exc.args):
        return False
    if isinstance(exc, BaseExceptionGroup):
        both = zip(exc.exceptions, copy.exceptions, strict=True)
        return all(id(one) in seen or _alike(one, other, seen) for one, other in both)
    pairs = zip(exc.args, copy.args, strict=True)
    return all(type(a) is type(b) and (type(a) not in ATOMS or a == b or type(a) is float) for a, b in pairs)  # nan


def _type_name(kind: type) -> str:
    module = kind.__module__
    return _clean(kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}", 500)


def _clean(text: str, room: int = MAX_TEXT) -> str:
    """Text that fits and that UTF-8 can encode."""
    text = str.__str__(text)  # a subclass may do anything
    if len(text) > room:
        text = f"{text[: room // 2]} … {len(text) - room} characters … {text[-room // 2 :]}"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _harmless(value: Any, depth: int = 3) -> bool:
    """Whether `repr(value)` runs no code of a user's class."""
    kind = type(value)
    if kind in (tuple, list, set, frozenset):
        return depth > 0 and len(value) < 1000 and all(_harmless(item, depth - 1) for item in value)
    if kind is dict:
        return _harmless(list(value), depth) and _harmless(list(value.values()), depth)
    return kind in ATOMS or f"{kind.__module__}.{kind.__qualname__}" in STEADY


def _shown(value: Any, plain: bool) -> str:
    if isinstance(value, type):
        return f"<class {value.__module__}.{value.__qualname__}>"
    if type(value) is str:  # its repr may be four times as long
        return value if plain else repr(value[:MAX_TEXT])
    return repr(value) if _harmless(value) else f"<{type(value).__module__}.{type(value).__qualname__} object>"


def _message(exc: BaseException) -> str:
    """`str(exc)`, made here where it would call some `__repr__` of the arguments."""
    try:
        own = type(exc).__str__
        alone = isinstance(exc, BaseExceptionGroup) or (len(exc.args) == 1 and type(exc.args[0]) is str)
        extra = (getattr(exc, "filename", None), getattr(exc, "filename2", None))
        if not isinstance(own, WrapperDescriptorType) or alone or _harmless((*exc.args, *extra)):
            return _clean(str(exc))
        if len(exc.args) == 1:
            return _clean(_shown(exc.args[0], True))
        return _clean(f"({', '.join(_shown(each, False) for each in exc.args[:100])})")
    except BaseException as error:  # a user's __str__
        return f"<message unavailable: __str__ raised {_clean(type(error).__qualname__, 500)}>"


def _notes(exc: BaseException) -> list[str]:
    notes = getattr(exc, "__notes__", None)
    if not isinstance(notes, (list, tuple)):
        return []
    return [_clean(note, 4096) if isinstance(note, str) else _shown(note, True)[:4096] for note in notes[:MAX_NOTES]]


def _text(exc: BaseException, room: list[int]) -> str:
    """As `traceback.format_exception` prints it, but bounded, and without this library's frames on top."""
    chain = list(_walk(exc, MAX_LINKS + 1))
    parts = ["(earlier exceptions left out)\n\n"] if len(chain) > MAX_LINKS else []
    for index, at in reversed([*enumerate(chain[:MAX_LINKS])]):
        if isinstance(at, RemoteTraceback):
            parts.append(f"{str(at.args[0]).rstrip()}\n")
        else:
            parts.append(_frames(at.__traceback__) + _headline(at))
        if isinstance(at, BaseExceptionGroup):
            parts.append(_members(at, room))
        if index:
            cause = chain[index - 1].__cause__ is at
            why = "The above exception was the direct cause of the following exception"
            parts.append(
                f"\n{why if cause else 'During handling of the above exception, another exception occurred'}:\n\n"
            )
    return "".join(parts)


def _headline(exc: BaseException) -> str:
    message = _message(exc)
    first = f"{_type_name(type(exc))}: {message}" if message else _type_name(type(exc))
    return "".join(f"{line}\n" for line in (first, *_notes(exc)))


def _members(group: BaseExceptionGroup[BaseException], room: list[int]) -> str:
    lines = []
    for number, member in enumerate(group.exceptions, 1):
        if room[0] <= 0:
            lines.append(f"  +---------------- and {len(group.exceptions) - number + 1} more")
            break
        room[0] -= 1
        lines.append(f"  +---------------- {number} ----------------")
        lines += [f"  | {line}" for line in _clean(_text(member, room)).splitlines()]
    return "\n".join([*lines, "  +------------------------------------", ""])


def _frames(tb: TracebackType | None) -> str:
    own = [str(frame.f_globals.get("__name__")).partition(".")[0] == __name__.partition(".")[0]
           for frame, _ in traceback.walk_tb(tb)]  # fmt: skip
    for _ in range(own.index(False) if False in own else 0):
        tb = tb and tb.tb_next
        own.pop(0)
    if tb is None:
        return ""
    limits = [MAX_FRAMES // 4, MAX_FRAMES // 4 - MAX_FRAMES] if len(own) > MAX_FRAMES else [MAX_FRAMES]
    left_out = f"  … {len(own) - MAX_FRAMES} frames left out …\n"
    return "Traceback (most recent call last):\n" + left_out.join("".join(traceback.format_tb(tb, n)) for n in limits)


# --- in the caller


def unpack_error(data: bytes) -> BaseException:
    """The exception that `pack_error` took, or a `RemoteError` in its place; always an `Exception`.

    Only for bytes that are trusted: it unpickles. Raises `ProtocolError` for bytes of another kind, else nothing.
    """
    try:
        error = msgspec.msgpack.decode(data, type=_Error)
    except Exception as cause:  # MsgspecError, UnicodeDecodeError, RecursionError
        raise ProtocolError(f"an error that is none: {cause}") from cause
    if not error.links:
        raise ProtocolError("an error without an exception")
    rebuilt = [_rebuilt(link, error.traceback) for link in error.links]
    for index, (link, exc) in enumerate(zip(error.links, rebuilt, strict=True)):
        for place, setter in ((link.cause, _set_cause), (link.context, _set_context)):
            if index < place < len(rebuilt):
                setter(exc, rebuilt[place])
        _set_suppress(exc, link.suppress)
    *_, deepest = _walk(rebuilt[0], 1000)
    if not isinstance(deepest, RemoteTraceback):
        suppress = deepest.__suppress_context__
        _set_cause(deepest, RemoteTraceback(error.traceback))
        _set_suppress(deepest, suppress)
    return rebuilt[0]


def headline(data: bytes) -> str:
    """The class and message of a packed error, in one line; unpickles nothing. Never raises."""
    try:
        link = msgspec.msgpack.decode(data, type=_Error).links[0]
    except Exception:
        return "an error that cannot be read"
    return f"{link.type_name}: {link.message}" if link.message else link.type_name


def described(data: bytes) -> tuple[str, str, str]:
    """The class, message and traceback of a packed error, as texts; unpickles nothing. Never raises."""
    try:
        error = msgspec.msgpack.decode(data, type=_Error)
        link = error.links[0]
    except Exception:
        return "RemoteError", "an error that cannot be read", ""
    return link.type_name, link.message, error.traceback


def not_rebuilt(name: str, problem: BaseException) -> RemoteError:
    """The error of a result that could not be unpickled here. Re-raises a Ctrl-C of the main thread."""
    if isinstance(problem, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise problem
    error = RemoteError(f"the result of {name}() cannot be rebuilt here: {type(problem).__name__}: {problem}")
    error.__cause__ = problem
    return error


def _rebuilt(link: _Link, text: str) -> BaseException:
    try:
        exc = pickle.loads(link.pickled) if link.pickled is not None else None
        if isinstance(exc, Exception):
            return exc  # its notes are in the pickle
    except BaseException as error:  # the exception's own code
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise  # Ctrl-C, which only the main thread gets
    remote = RemoteError(f"{link.type_name}: {link.message}" if link.message else link.type_name)
    remote.type_name = link.type_name
    remote.remote_traceback = text
    for note in link.notes:
        remote.add_note(note)
    return remote


# --- why something cannot be carried


def refuse_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> NoReturn:
    """Raise `NotCarriable` for the argument at fault."""
    call = name_of(fn).partition(":")[2] + "()"
    code = getattr(fn, "__code__", None)
    names = code.co_varnames[isinstance(fn, MethodType) : code.co_argcount] if code else ()
    labels = [(repr(name), name) for name in names[: len(args)]]
    labels += [(str(i + 1), f"args[{i}]") for i in range(len(labels), len(args))]
    labels += [(repr(name), name) for name in kwargs]
    for (label, path), value in zip(labels, (*args, *kwargs.values()), strict=True):
        if type(value) not in ATOMS:
            try:
                encode(value, [])
            except Exception as found:
                refuse(f"argument {label} of {call}", path, value, found)
    raise NotCarriable(f"cannot carry the arguments of {call}: {_why(error)}") from error


def refuse(what: str, path: str, value: Any, error: Exception) -> NoReturn:
    """Raise `NotCarriable` naming the smallest part of `value` that does not pickle. Searches for a second at most."""
    deadline = time.monotonic() + 1.0
    seen: set[int] = set()
    kept: list[Any] = []

    def search(part: Any, at: str, depth: int) -> tuple[str, Any, Exception] | None:
        if type(part) in ATOMS or id(part) in seen or len(seen) > 5000 or time.monotonic() > deadline:
            return None
        seen.add(id(part))
        try:
            encode(part, [])
        except Exception as found:
            with contextlib.suppress(Exception):  # of the part's own code
                for name, inner in _parts(part, at) if depth else ():
                    kept.append(inner)  # an id in `seen` must not be used again
                    if hit := search(inner, name, depth - 1):
                        return hit
            return at, part, found
        return None

    at, part, found = (path, value, error) if _deep(error) else search(value, path, 30) or (path, value, error)
    reason = "nested too deeply to be pickled"
    if not _deep(found):
        reason = f"{at or 'it'} is a {_type_name(type(part))} ({_why(found)})"
    raise NotCarriable(f"cannot carry {what}: {reason}") from found


def _deep(error: BaseException) -> bool:
    return isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)


def _why(error: Exception) -> str:
    text = _message(error)[:300]
    return text if isinstance(error, (TypeError, pickle.PicklingError)) else f"{type(error).__qualname__}: {text}"


def _parts(value: Any, at: str) -> Iterator[tuple[str, Any]]:
    """What pickling `value` pickles in turn, with the path to each."""
    kind = type(value)
    if kind is FunctionType:
        yield from () if by_reference(value) else _captured(value, at + ", " if at else "")
    elif kind is MethodType:
        yield from ((f"{at}.__self__", value.__self__), (f"{at}.__func__", value.__func__))
    elif isinstance(value, type):
        yield from () if by_reference(value) else ((f"{at}.{name}", each) for name, each in vars(value).items())
    elif kind is dict:
        yield from ((f"{at}[{_shown(key, False)}]", item) for key, item in value.items())
        yield from ((f"a key of {at}", key) for key in value)
    elif isinstance(value, tuple) or kind is list:
        yield from ((f"{at}[{index}]", item) for index, item in enumerate(value))
    elif kind in (set, frozenset):
        yield from ((f"an element of {at}", item) for item in value)
    else:
        import copyreg

        reducer = copyreg.dispatch_table.get(kind)
        reduced = reducer(value) if reducer else value.__reduce_ex__(5)
        if isinstance(reduced, tuple):
            padded: tuple[Any, ...] = (*reduced, None, None, None)
            _, args, state, items, pairs, *_ = padded
            for each in state if isinstance(state, tuple) else (state,):
                for name, inner in each.items() if isinstance(each, dict) else [("__getstate__()", each)]:
                    yield f"{at}.{name}", inner
            yield from ((f"{at}[{index}]", item) for index, item in enumerate(items or ()))
            yield from ((f"{at}[{_shown(key, False)}]", item) for key, item in pairs or ())
            yield from ((f"{at}.__reduce__()[1][{index}]", item) for index, item in enumerate(args))


def _captured(fn: FunctionType, at: str) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        yield f"{at}closure variable {name!r}", cell.cell_contents
    for name in sorted(set(global_names(fn.__code__))):
        if name in fn.__globals__:
            yield f"{at}global {name!r}", fn.__globals__[name]
    yield from ((f"{at}default {index}", value) for index, value in enumerate(fn.__defaults__ or (), 1))
    yield from ((f"{at}{name!r}", value) for name, value in {**(fn.__kwdefaults__ or {}), **fn.__dict__}.items())
