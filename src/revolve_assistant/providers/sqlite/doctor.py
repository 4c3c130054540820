"""What is wrong with an SQLite address; see `providers.diagnosis`. It makes no file and changes nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator

from ...errors import AssistantError
from ..diagnosis import Finding
from ..filesystem.network import is_network
from ..url import Url
from . import schema
from .failure import failure
from .place import Place
from .queue import Queue

SPACE = 256 << 20  # bytes
LOG = 512 << 20  # bytes of a log that does not get into the file
QUICK = 64 << 20  # bytes of a file that is read to see whether it is whole


def diagnose(url: Url) -> list[Finding]:
    """Look at the file, its folder and what is in it. Blocks up to `timeout` if it is locked."""
    try:
        place = Place.read(url, {})
        Queue.from_url(url)
    except AssistantError as error:
        return [Finding("wrong", "address", str(error))]
    found = list(_folder(place))
    if any(one.level == "wrong" for one in found):
        return found
    if not os.path.exists(place.path):
        return [*found, Finding("ok", "file", f"{place.path} is not there yet: its first user makes it")]
    return [*found, *_file(place), *_content(place)]


def _folder(place: Place) -> Iterator[Finding]:
    folder = os.path.dirname(place.path)
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError as error:
        yield Finding("wrong", "folder", f"{folder} cannot be opened ({error.strerror}): make that folder")
        return
    try:
        network = is_network(fd)
    finally:
        os.close(fd)
    if network and place.network is None:
        yield Finding("wrong", "folder", f"{folder} is on a network file system: put the file on a local disk, or use "
                      "redis:// for several machines; network=no says that it is local after all")  # fmt: skip
    elif network:
        yield Finding("note", "folder", f"{folder} looks like a network file system, and network=no says it is none: "
                      "on a true one the file will be damaged")  # fmt: skip
    if not os.access(folder, os.W_OK):
        yield Finding("wrong", "folder", f"{folder} cannot be written to by this user: SQLite makes its log there")
    free = shutil.disk_usage(folder).free
    level = "wrong" if free < SPACE // 16 else "note" if free < SPACE else "ok"
    yield Finding(level, "space", f"{free >> 20:,} MiB are free on its disk" + ("" if level == "ok" else ": make room"))  # type: ignore[arg-type]


def _file(place: Place) -> Iterator[Finding]:
    about = os.stat(place.path)
    if not stat.S_ISREG(about.st_mode):
        yield Finding("wrong", "file", f"{place.path} is no file")
        return
    size = about.st_size
    yield Finding("ok", "file", f"{place.path} has {size:,} bytes", {"bytes": size})
    if about.st_mode & 0o077:
        yield Finding("note", "mode", f"others may open {place.path}, which holds arguments and results: "
                      f"chmod 600 {place.path}")  # fmt: skip
    if not os.access(place.path, os.R_OK | os.W_OK):
        yield Finding("wrong", "mode", f"{place.path} cannot be written to by this user")
    try:
        log = os.stat(place.path + "-wal").st_size
    except OSError:
        return
    if log > LOG:
        yield Finding("note", "log", f"its log has {log >> 20:,} MiB: some program keeps a transaction open on it; "
                      f"fuser {place.path} says which have it open")  # fmt: skip


def _content(place: Place) -> Iterator[Finding]:
    try:
        db = sqlite3.connect(f"file:{_quoted(place.path)}?mode=ro", uri=True, timeout=place.timeout)
    except sqlite3.Error as error:
        yield Finding("wrong", "file", str(failure(error, place)))
        return
    try:
        if not schema.version(db, place):
            yield Finding("ok", "tables", "it is empty: its first user makes the tables")
            return
        if os.path.getsize(place.path) <= QUICK:
            whole = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if whole != "ok":
                yield Finding("wrong", "file", str(failure(_damaged(whole), place)))
                return
        stages = dict(db.execute("SELECT stage, count(*) FROM task GROUP BY stage").fetchall())
        waiting = sum(stages.get(stage, 0) for stage in (0, 1, 3))
        logs, dead = db.execute("SELECT (SELECT count(*) FROM channel), (SELECT count(*) FROM buried)").fetchone()
        figures = {"waiting": waiting, "leased": stages.get(2, 0), "buried": dead, "channels": logs}
        yield Finding("ok", "content", f"{waiting:,} tasks wait, {figures['leased']:,} are taken, {dead:,} are buried; "
                      f"{logs:,} channels", figures)  # fmt: skip
    except sqlite3.Error as error:
        yield Finding("wrong", "file", str(failure(error, place)))
        return
    except AssistantError as error:
        yield Finding("wrong", "file", str(error))
        return
    finally:
        db.close()
    kept = {
        "off": "a power cut may damage the file: say synchronous=normal",
        "normal": "a crash of any process loses nothing; a power cut may lose the last moments, for all else say "
        "synchronous=full",
        "full": "a power cut loses nothing that was acknowledged",
        "extra": "a power cut loses nothing that was acknowledged",
    }[place.synchronous]
    yield Finding(
        "note" if place.synchronous == "off" else "ok", "durability", f"synchronous={place.synchronous}: {kept}"
    )


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _damaged(what: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(what)
    error.sqlite_errorname = "SQLITE_CORRUPT"
    return error
