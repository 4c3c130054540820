"""What `revolve worker --setup module:function` runs in each child: never in the supervisor, which imports nothing."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def call_setup(target: str) -> Any:
    """Import and call it; what it returns may be a context manager, as of every initializer."""
    module, _, path = target.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found()
