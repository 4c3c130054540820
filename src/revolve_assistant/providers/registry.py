"""Finds a provider by its name or URL scheme.

A provider is a module that holds any of `Queue`, `Engine` and `Messenger`, each built by
`Class.from_url(url, **options)`. Other distributions declare theirs by an entry point of the group
`revolve_assistant.providers`, whose value is the path of the module: a string, so that nothing is imported before
its first use. Our own stand in a table, since listing entry points reads every installed distribution (about 10 ms);
they cannot be replaced by an entry point.

A module may name the extra that brings its library, `REQUIRES = "redis"`, before it imports that library.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import ProviderMissing, UnknownProvider, Unsupported, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint
    from types import ModuleType

    from ..engine import Engine
    from ..messenger import Messenger
    from .url import Url

GROUP = "revolve_assistant.providers"

_BUILT_IN = {
    name: f"{GROUP}.{name}"
    for name in (
        "beanstalkd",
        "executor",
        "filesystem",
        "fork",
        "gearman",
        "inline",
        "ironmq",
        "ironworker",
        "memcached",
        "memory",
        "process",
        "redis",
        "sqlite",
        "thread",
    )
}
_ALIASES = {
    "file": "filesystem",
    "rediss": "redis",
    "redis+unix": "redis",
    "redis+sentinel": "redis",
}
_declared: dict[str, str] = {}  # names already found through entry points


def engine(url: str | Url, **options: Any) -> Engine:
    """The Queue, or else the Engine, at a URL; not opened yet, no I/O. Thread-safe.

    Raises `UnknownProvider`, `ProviderMissing`, `Unsupported` (that provider has none), `UsageError` (an option).
    """
    built: Engine = _build(url, ("Queue", "Engine"), "tasks", options)
    return built


def messenger(url: str | Url, **options: Any) -> Messenger:
    """The Messenger at a URL; not opened yet, no I/O. Thread-safe. Raises as `engine` does."""
    built: Messenger = _build(url, ("Messenger",), "messages", options)
    return built


def find(name: str) -> ModuleType:
    """The module of a provider, by name or URL scheme; imports it and its library at first use. Thread-safe.

    Raises `UnknownProvider`, naming the nearest one, and `ProviderMissing`, naming what to install.
    """
    plain = name.lower()
    plain = _ALIASES.get(plain, plain)
    path = _BUILT_IN.get(plain) or _declared.get(plain) or _declare(plain)
    if path is None:
        raise _unknown(name)
    try:
        return import_module(path)
    except ImportError as error:
        if plain in _BUILT_IN and error.name == path:
            raise UnknownProvider(f"{name!r} is not part of this release (known: {', '.join(known())})") from None
        if (error.name or "").startswith("revolve_assistant."):
            raise  # a fault of ours, which nothing to install would mend
        raise _missing(plain, path, error) from error


def known() -> list[str]:
    """The names of all providers, ours and those that are installed, sorted. Reads every distribution: ~10 ms."""
    from importlib.util import find_spec

    ours = [name for name, path in _BUILT_IN.items() if path in sys.modules or find_spec(path) is not None]
    return sorted({*ours, *(point.name.lower() for point in _entry_points())})


def _build(url: str | Url, kinds: tuple[str, ...], carried: str, options: dict[str, Any]) -> Any:
    from .url import Url

    url = Url.parse(url)
    module = find(url.scheme)
    for kind in kinds:
        found = getattr(module, kind, None)
        # A module may have imported the contract itself under that name: abstract, so not what we look for.
        if found is not None and not getattr(found, "__abstractmethods__", None):
            refuse_unknown(url.scheme, found, options)
            try:
                return found.from_url(url, **options)
            except ImportError as error:
                if isinstance(error, ProviderMissing):
                    raise
                raise _missing(_ALIASES.get(url.scheme, url.scheme), module.__name__, error) from error
    raise Unsupported(f"{url.scheme} does not carry {carried}: it has no {' or '.join(kinds)}")


def refuse_unknown(name: str, kind: type, options: dict[str, Any]) -> None:
    """Raise `UsageError` for an option that neither `from_url` nor the constructor takes by name."""
    if not options or not kind.traits.local:  # type: ignore[attr-defined]
        return
    taken: set[str] = set()
    wide = 0
    for function in (kind.from_url, kind.__init__):  # type: ignore[attr-defined, misc]
        code = getattr(function, "__func__", function).__code__  # inspect.signature would cost 4 ms of every start
        taken.update(code.co_varnames[code.co_posonlyargcount : code.co_argcount + code.co_kwonlyargcount])
        wide += bool(code.co_flags & 0x08)  # CO_VARKEYWORDS
    if wide == 2:
        return
    taken -= {"self", "cls", "url"}
    for option in options:
        if option not in taken:
            from .url import nearest

            raise UsageError(f"{name}: unknown option {option!r}{nearest(option, taken)}")


def _entry_points() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return list(entry_points(group=GROUP))


def _declare(name: str) -> str | None:
    """The module path that an installed distribution declares under this name."""
    paths = {point.value.partition("[")[0].strip() for point in _entry_points() if point.name.lower() == name}
    if not paths:
        return None
    if len(paths) > 1:
        raise UsageError(f"two installed packages provide {name!r}: {', '.join(sorted(paths))}; uninstall one of them")
    path = paths.pop()
    if ":" in path:
        raise UsageError(f"the entry point {name!r} must be the path of a module, not {path!r}")
    _declared[name] = path
    return path


def _unknown(name: str) -> UnknownProvider:
    from .url import nearest

    names = known()
    tail = nearest(name, {*names, *_ALIASES}, listing=False)
    shown = name if len(name) <= 64 else name[:63] + "…"
    return UnknownProvider(f"no provider {shown!r}{tail} (known: {', '.join(names)})")


def _missing(name: str, path: str, error: ImportError) -> ProviderMissing:
    """What to install. `REQUIRES` of a module whose import failed half-way is found in the traceback's frame."""
    extra = getattr(sys.modules.get(path), "REQUIRES", None)
    frame = error.__traceback__
    while frame is not None and extra is None:
        if frame.tb_frame.f_globals.get("__name__") == path:
            extra = frame.tb_frame.f_globals.get("REQUIRES")
        frame = frame.tb_next
    if extra is None and path not in _BUILT_IN.values():
        return ProviderMissing(f"{name} cannot be loaded: {error}")
    remedy = f"{name} needs: pip install 'revolve-assistant[{extra or name}]'"
    return ProviderMissing(remedy if isinstance(error, ModuleNotFoundError) else f"{remedy} ({error})")
