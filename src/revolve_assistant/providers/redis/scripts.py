"""The scripts that change a queue or a channel on the server, each in one step; they stand in the folder `lua`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from .connection import Script

_FOLDER = Path(__file__).parent / "lua"


@cache
def script(name: str) -> Script:
    """A script of that name, with what all of its folder share in front of it."""
    file = _FOLDER / f"{name}.lua"
    return Script(file.with_name("shared.lua").read_text("utf-8") + file.read_text("utf-8"))
