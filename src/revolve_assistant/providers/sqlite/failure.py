"""What went wrong with a database, as an error of ours that says what to do."""

from __future__ import annotations

import sqlite3

from ...errors import Overloaded, ProviderError, Unreachable
from .place import Place

BUSY = frozenset({"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"})


def code(error: sqlite3.Error) -> str:
    """The name of the primary error code, such as "SQLITE_BUSY"; "" if there is none."""
    return "_".join(getattr(error, "sqlite_errorname", "").split("_")[:2])


def failure(error: sqlite3.Error, place: Place) -> ProviderError:
    """Ours for theirs."""
    name, path = code(error), place.path
    if name in BUSY:
        return Unreachable(
            f"{path} is locked: another program has written to it for more than {place.timeout:g} s; see who has it "
            f"open (fuser {path}), or wait longer (timeout=)"
        )
    if name == "SQLITE_FULL":
        return Overloaded(f"{path}: no space is left on the disk; make room, nothing was changed")
    if name == "SQLITE_NOTADB":
        return ProviderError(f"{path} is no SQLite database: name another file")
    if name == "SQLITE_CORRUPT":
        return ProviderError(
            f"{path} is damaged ({error}): stop who uses it, then save what can be read: "
            f"sqlite3 {path} .recover | sqlite3 new.db"
        )
    if name in ("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH"):
        return ProviderError(f"{path} cannot be written to ({error}): it and its folder must be writable for this user")
    if name == "SQLITE_CANTOPEN":
        return Unreachable(f"{path} cannot be opened ({error}): does its folder exist, and may this user write there?")
    if name == "SQLITE_IOERR":
        return Unreachable(f"{path}: the disk failed or is full ({getattr(error, 'sqlite_errorname', error)})")
    return ProviderError(f"{path}: {error}")
