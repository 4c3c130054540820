"""What gearmand can hold, checked before anything is sent. Each function gives the bytes to send or a `UsageError`.

gearmand itself accepts some of what is refused here and then misbehaves: an empty function name, a unique of 64
bytes (no longer unique), a handle of 64 bytes (no answer), a tab in a name (its `status` cannot be read).
"""

from __future__ import annotations

import re

from ...errors import UsageError

MAX_FUNCTION = 512
MAX_UNIQUE = 63
MAX_HANDLE = 63
MAX_CLIENT_ID = 254

_BLANK = re.compile(rb"[\x00-\x20\x7f]")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


def check_function(name: str | bytes) -> bytes:
    """A function name: 1 … 512 bytes (text as UTF-8), no space, no control character."""
    return _check("function name", name, MAX_FUNCTION, _BLANK, "spaces or control characters", "use '-' or '_'")


def check_unique(unique: str | bytes) -> bytes:
    """A unique: up to 63 bytes, no control character. Empty: never coalesced. `-`: a hash of the workload."""
    if not unique:
        return b""
    return _check("unique", unique, MAX_UNIQUE, _CONTROL, "control characters", "send a hash of it, e.g. SHA-256[:63]")


def check_handle(handle: str | bytes) -> bytes:
    """A job handle: 1 … 63 bytes, no space, no control character."""
    return _check("job handle", handle, MAX_HANDLE, _BLANK, "spaces or control characters", "use one that submit gave")


def check_client_id(name: str | bytes) -> bytes:
    """A client id, as `workers` shows it: 1 … 254 bytes, no space, no control character."""
    return _check("client id", name, MAX_CLIENT_ID, _BLANK, "spaces or control characters", "use '-' or '_'")


def check_number(value: int, what: str = "number") -> bytes:
    """A number of a status, 0 … 2³²−1, as decimal text."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0xFFFFFFFF:
        raise UsageError(f"{what} {_short(value)} is no whole number from 0 to 2³²−1; scale it, e.g. to permille")
    return b"%d" % value


def check_workload(workload: bytes | bytearray | memoryview, max_bytes: int) -> bytes:
    """A workload, result or chunk of data: up to `max_bytes` bytes."""
    if not isinstance(workload, bytes | bytearray | memoryview):
        raise UsageError(f"a workload is bytes, not {type(workload).__name__} {_short(workload)}; encode it")
    data = workload if isinstance(workload, bytes) else bytes(workload)
    if len(data) > max_bytes:
        raise UsageError(
            f"{len(data)} bytes are more than one job may carry here, {max_bytes}; raise `max_body` on both sides, "
            "or store them and send where"
        )
    return data


def _check(what: str, value: str | bytes, most: int, bad: re.Pattern[bytes], named: str, way_out: str) -> bytes:
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogateescape")
    elif isinstance(value, bytes):
        data = value
    else:
        raise UsageError(f"a {what} is text or bytes, not {type(value).__name__} {_short(value)}")
    if not data:
        raise UsageError(f"an empty {what}; give it at least one character")
    if len(data) > most:
        raise UsageError(f"the {what} {_short(value)} has {len(data)} bytes, gearmand keeps {most}; {way_out}")
    if bad.search(data):
        raise UsageError(f"the {what} {_short(value)} holds {named}, which gearmand's lists cannot show; {way_out}")
    return data


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
