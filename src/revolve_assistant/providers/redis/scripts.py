"""The scripts that change a queue on the server, each in one step; they stand in the folder `lua`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from .connection import Script

_FOLDER = Path(__file__).parent / "lua"


@cache
def script(name: str) -> Script:
    """A script of that name, with what all share in front of it."""
    shared = (_FOLDER / "shared.lua").read_text("utf-8")
    return Script(shared + (_FOLDER / f"{name}.lua").read_text("utf-8"))
