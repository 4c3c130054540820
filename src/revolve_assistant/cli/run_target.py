"""Finds the function that `module:function` names, and says in one line why it cannot."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from types import ModuleType
from typing import Any


class TargetError(Exception):
    """There is no such function; the message is one line."""


def find(target: str) -> Callable[[Any], Any]:
    """Import the module and return the function. Raises `TargetError`."""
    name, colon, path = target.partition(":")
    if not colon or not name or not path:
        raise TargetError(f"{target!r} is not of the form module:function{_meant(target)}")
    if name.endswith(".py") or "/" in name:
        raise TargetError(f"{target!r} names a file; a module is {_as_module(name)}:{path}")
    found: Any = _import(name)
    walked = name
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            what = "module" if isinstance(found, ModuleType) else "class" if isinstance(found, type) else "object"
            raise TargetError(f"{what} {walked} has no {part!r}{_nearest(part, _callables(found))}") from None
        walked = f"{walked}:{part}" if walked == name else f"{walked}.{part}"
    if not callable(found):
        raise TargetError(f"{walked} is a {type(found).__name__}, nothing that can be called")
    return found  # type: ignore[no-any-return]


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            where = f"in {os.getcwd()} or on sys.path"
            raise TargetError(f"no module {error.name!r} {where}{_nearest(error.name, _modules())}") from None
        raise TargetError(f"module {name} cannot be imported: {_said(error)}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a SystemExit too: a script without `if __name__ == "__main__"`
        raise TargetError(f"module {name} cannot be imported: {_said(error)}") from None


def _said(error: BaseException) -> str:
    text = str(error).splitlines()
    said = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    if isinstance(error, SyntaxError):
        return said  # names file and line itself
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else said


def _meant(target: str) -> str:
    if target.endswith(".py"):
        return f": say {_as_module(target)}:NAME"
    name, dot, function = target.rpartition(".")
    return f": did you mean {name}:{function}?" if dot and name and function else ", such as mymodule:resize"


def _as_module(path: str) -> str:
    relative = os.path.relpath(path) if os.path.isabs(path) else os.path.normpath(path)
    return relative.removesuffix(".py").replace(os.sep, ".").lstrip(".")


def _callables(found: object) -> list[str]:
    return [name for name in dir(found) if not name.startswith("__") and callable(getattr(found, name, None))]


def _modules() -> list[str]:
    here = [module.name for module in pkgutil.iter_modules([os.getcwd()])]
    return [*here, *sys.stdlib_module_names]


def _nearest(name: str, among: list[str]) -> str:
    near = get_close_matches(name, among, 1)
    return f"; did you mean {near[0]!r}?" if near else ""
