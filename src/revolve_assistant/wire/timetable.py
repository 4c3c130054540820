"""When a schedule is due: every so many seconds, or as cron says.

           before(now)      now       after(now)
    ───┼────────┼────────────┊───────────┼────────┼───▶        ticks

Ticks follow from the words alone, and from nothing that happens: all who compute them find the same, whenever they
start, and none is ever a little later than the one before. Those of `every` stand at multiples of it since 1970, moved
by a phase that follows from the key, so that schedules of the same period are not all due at once.
"""

from __future__ import annotations

import math
from datetime import UTC, timedelta, tzinfo
from hashlib import blake2b
from typing import Any

from ..errors import ProviderMissing, UsageError

LEAST = 0.1  # seconds between two ticks
MOST = 366 * 86400.0  # seconds


class Timetable:
    """The ticks of one schedule, in Unix seconds."""

    def __init__(self, key: str, every: float, cron: str, zone: str) -> None:
        """`every` is 0.0 where `cron` says it. Raises `UsageError`, `ProviderMissing`."""
        self.every = every
        self._cron = _cron(cron, zone) if cron else None
        share = int.from_bytes(blake2b(key.encode(), digest_size=6).digest()) / 2**48
        self._phase = round(share * every, 3)

    def after(self, moment: float) -> float:
        """The first tick after this moment; infinity: there is none."""
        if self._cron is not None:
            found = self._cron.after(moment)
            return math.inf if found is None else found
        number = math.floor((moment - self._phase) / self.every) - 1
        while self._tick(number) <= moment:
            number += 1
        return self._tick(number)

    def before(self, moment: float) -> float:
        """The last tick before this moment; minus infinity: there is none."""
        if self._cron is not None:
            found = self._cron.before(moment)
            return -math.inf if found is None else found
        number = math.ceil((moment - self._phase) / self.every) + 1
        while self._tick(number) >= moment:
            number -= 1
        return self._tick(number)

    def _tick(self, number: int) -> float:
        return round(self._phase + number * self.every, 3)


def _cron(expression: str, zone: str) -> Any:
    try:
        from .cron import Cron
    except ImportError as error:
        raise ProviderMissing("cron= needs: pip install 'revolve-assistant[schedules]'") from error
    return Cron(expression, zone)


def words_of(every: Any, cron: Any, tz: Any) -> tuple[float, str, str]:
    """What the user said of the times, checked: `(every, cron, zone)`. Raises `UsageError`."""
    if (every is None) == (cron is None):
        raise UsageError(f"every={every!r}, cron={cron!r}: say one of them, such as every=60 or cron='*/5 * * * *'")
    if cron is None:
        if tz is not None:
            raise UsageError(f"tz={tz!r} goes with cron=: every= counts seconds, which are the same everywhere")
        return _period(every), "", ""
    if not isinstance(cron, str) or not cron.strip():
        raise UsageError(f"cron={cron!r} must be a text such as '*/5 * * * *' or '@daily'")
    return 0.0, cron.strip(), _zone(tz)


def _period(every: Any) -> float:
    seconds = every.total_seconds() if isinstance(every, timedelta) else every
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not LEAST <= seconds <= MOST:
        raise UsageError(
            f"every={every!r} must be a timedelta or a number of seconds from {LEAST} to {MOST:.0f} (a year)"
        )
    return float(seconds)


def _zone(tz: Any) -> str:
    from zoneinfo import ZoneInfo

    if tz is None or tz is UTC:
        return ""
    name = tz.key if isinstance(tz, ZoneInfo) else tz
    if not isinstance(name, str) or not name:
        kind = " (its key, that is: a fixed offset or a file has none)" if isinstance(tz, tzinfo) else ""
        raise UsageError(f"tz={tz!r} must be the name of a time zone{kind}, such as 'Europe/Berlin', or None for UTC")
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise UsageError(
            f"tz={name!r} is no time zone known here; they are called like 'Europe/Berlin' "
            "(where the system has no list of them: pip install tzdata)"
        ) from None
    return "" if name == "UTC" else name
