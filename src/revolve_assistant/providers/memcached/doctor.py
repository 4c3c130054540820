"""What a memcached is too small for, asked with one `stats`. Changes nothing."""

from __future__ import annotations

import re
import socket

from ..url import Url
from .messenger import LARGEST, PORT

_ROOM = 4 * LARGEST  # bytes: two of the largest frames, and what memcached itself needs of its memory
_SECONDS = 5.0


def excused(url: Url) -> dict[str, str]:
    """Checks of the conformance kit that a small server cannot hold, with the reason. Raises nothing."""
    if url.password is not None:
        return {}  # it answers nobody who has not said who he is; whoever set accounts up knows its memory
    for address in url.addresses(PORT):
        memory = _memory(address)
        if memory is not None and memory < _ROOM:
            small = (
                f"the server has {memory >> 20} MB of memory: -m {_ROOM >> 20} holds two frames of {LARGEST >> 20} MiB"
            )
            return {"largest": small}
    return {}


def _memory(address: tuple[str, int]) -> int | None:
    try:
        with socket.create_connection(address, timeout=_SECONDS) as sock:
            sock.sendall(b"stats\r\n")
            data = b""
            while b"END\r\n" not in data and len(data) < 1 << 16 and (more := sock.recv(1 << 14)):
                data += more
    except OSError:
        return None
    found = re.search(rb"STAT limit_maxbytes (\d+)", data)
    return int(found[1]) if found else None
