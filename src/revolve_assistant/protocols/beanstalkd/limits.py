"""What beanstalkd can hold, checked before anything is sent: it closes no connection over it, but says little."""

from __future__ import annotations

import math
import re

from ...errors import UsageError

MAX_TUBE = 200
"""Bytes of a tube's name."""
MAX_PRIORITY = MAX_SECONDS = 0xFFFFFFFF
"""The least urgent priority, and the longest delay or time to run in seconds."""
MAX_LINE = 224
"""Bytes of a command with its end of line."""
MAX_JOB = 1 << 30
"""Bytes of a job, as far as any server can be told to take them (`-z`); its own limit is in its `stats`."""
DEFAULT_JOB = 65535
"""Bytes of a job on a server that was told nothing."""

_TUBE = re.compile(rb"[A-Za-z0-9+/;.$_()][A-Za-z0-9\-+/;.$_()]*\Z")


def check_tube(name: str | bytes) -> bytes:
    """A tube's name as bytes. Raises `UsageError`."""
    try:
        raw = name.encode("ascii") if isinstance(name, str) else bytes(name)
    except UnicodeEncodeError:
        raw = b""
    if not _TUBE.match(raw) or len(raw) > MAX_TUBE:
        raise UsageError(
            f"{name!r:.250} cannot be the name of a tube: that is 1 to {MAX_TUBE} of A-Z a-z 0-9 + - / ; . $ _ ( ), "
            "and does not begin with a dash"
        )
    return raw


def check_priority(value: int) -> int:
    """0, the most urgent, to 4,294,967,295. Raises `UsageError`."""
    if type(value) is not int or not 0 <= value <= MAX_PRIORITY:
        raise UsageError(f"priority {value!r} must be a whole number from 0, the most urgent, to {MAX_PRIORITY}")
    return value


def check_seconds(value: float, what: str, least: int = 0) -> int:
    """Whole seconds, rounded up. Raises `UsageError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_SECONDS:
        raise UsageError(f"{what} of {value!r} s must be from 0 to {MAX_SECONDS} seconds")
    return max(least, math.ceil(value))


def check_job(value: int) -> int:
    """A job's number. Raises `UsageError`."""
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise UsageError(f"{value!r} is no number of a job")
    return value


def check_body(data: bytes | bytearray | memoryview, most: int = MAX_JOB) -> bytes:
    """A job's bytes, up to `most`. Raises `UsageError`."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise UsageError(f"a job holds bytes, not {type(data).__name__}")
    data = bytes(data)
    if len(data) > most:
        raise UsageError(f"{len(data):,} bytes are more than a job may have here, {most:,}: start beanstalkd with -z")
    return data
