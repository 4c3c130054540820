"""Rebuilds by-value functions in a child. As cloudpickle's own rebuilders, which cost a child 9 ms to import."""

from __future__ import annotations

import builtins
from marshal import loads as code
from types import CellType as cell  # noqa: N813 - named for what it makes
from types import FunctionType
from typing import Any

__all__ = ["cell", "code", "make_function", "set_state"]


def make_function(body: Any, space: dict[str, Any], name: Any, defaults: Any, closure: Any) -> FunctionType:
    """A function without its state, which may refer to the function."""
    space["__builtins__"] = builtins.__dict__
    return FunctionType(body, space, name, defaults, closure)


def set_state(fn: FunctionType, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Fill in what `make_function` left out: attributes, globals, the closure's values."""
    attributes, slots = state
    fn.__dict__.update(attributes)
    fn.__globals__.update(slots.pop("__globals__"))
    slots.pop("_cloudpickle_submodules")  # held for their import alone
    for mine, sent in zip(fn.__closure__ or (), slots.pop("__closure__") or (), strict=True):
        try:
            mine.cell_contents = sent.cell_contents
        except ValueError:  # an empty one
            continue
    for name, value in slots.items():
        setattr(fn, name, value)
