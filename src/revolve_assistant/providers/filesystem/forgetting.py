"""What was forgotten: whole files are removed, and within a file a cursor says where the rest begins.

Who forgets writes that cursor to a file of its own, in place; readers that start a channel take the furthest of all. A
file goes when it is read to its end and its writer has begun another, has said that it is done, or has been silent for
so long that it would begin another.
"""

from __future__ import annotations

import contextlib
import os
import time

from .folder import READ, UPDATE, Folder, write
from .record import Place, Source, floor_of, later, numbered, pack_floor, parts_of, places_of
from .writing import ABANDONED, finished


def forget(folder: Folder, who: str, name: str, upto: bytes) -> None:
    """Drop what the cursor `upto` has passed in the channel of this hash. Raises `OSError`."""
    try:
        with folder.channel(name) as within:
            lease = folder.lease_in(within)
            places = None if lease is None else places_of(upto, lease.incarnation)
            if lease is None or not places:
                return
            files = numbered(os.listdir(within))
            for identity, place in places.items():
                for segment in list(files.get(identity, ())):
                    if segment < place.segment or (
                        segment == place.segment and _spent(folder, within, files[identity], identity, place)
                    ):
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(Source(identity, segment, 0).name, dir_fd=within)
                        files[identity].remove(segment)
            floor = f"floor-{who}"
            places = later(read_floor(within, floor, lease.incarnation), places)
            left = {identity: place for identity, place in places.items() if files.get(identity)}
            fd = os.open(floor, UPDATE | os.O_CREAT, 0o600, dir_fd=within)
            try:
                write(fd, pack_floor(lease.incarnation + b"".join(parts_of(left).values())))
            finally:
                os.close(fd)
    except FileNotFoundError:  # the channel is gone, or going
        return


def _spent(folder: Folder, within: int, segments: list[int], identity: bytes, place: Place) -> bool:
    """Whether the file was read to its end, and no more will come into it."""
    try:
        found = os.stat(Source(identity, place.segment, 0).name, dir_fd=within)
    except FileNotFoundError:
        return True
    if found.st_size > place.offset:
        return False
    return place.segment != segments[-1] or finished(found) or found.st_mtime_ns + ABANDONED * 1e9 < folder.now()


def read_floor(within: int, name: str, incarnation: bytes) -> dict[bytes, Place]:
    """Up to where somebody has forgotten; nothing if that is of another incarnation, or damaged."""
    for _ in range(100):  # it may be written at this moment
        try:
            fd = os.open(name, READ, dir_fd=within)
        except FileNotFoundError:
            return {}
        try:
            cursor = floor_of(os.pread(fd, 1 << 20, 0))
        finally:
            os.close(fd)
        if cursor is not None:
            return places_of(cursor, incarnation) or {}
        time.sleep(0)
    return {}
