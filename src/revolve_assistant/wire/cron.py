"""Times as cron says them, on the clock of a place: `cronsim` knows the rules, change-overs of the clock included."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

from ..errors import UsageError

REQUIRES = "schedules"

from cronsim import CronSim, CronSimError  # noqa: E402

WORDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
EXAMPLE = "five fields (minute hour day month weekday) such as '*/5 * * * *', or @daily"


class Cron:
    """The moments of one expression, in Unix seconds."""

    def __init__(self, expression: str, zone: str) -> None:
        """`zone` is a name of the time zone data base; "" is UTC. Raises `UsageError`."""
        self._expression = WORDS.get(expression.strip().lower(), expression)
        self._zone: tzinfo = ZoneInfo(zone) if zone else UTC
        try:
            CronSim(self._expression, datetime.now(self._zone))
        except CronSimError as error:
            raise UsageError(f"cron={expression!r} is none: {error}; it takes {EXAMPLE}") from None

    def after(self, moment: float) -> float | None:
        """The first one after this moment; None: there is none within 50 years."""
        return next((found for found in self._from(moment) if found > moment), None)

    def before(self, moment: float) -> float | None:
        """The last one before this moment. It is one that `after` gives, also where the clock changes over."""
        start = next((found for found in self._from(moment, back=True) if found < moment), None)
        if start is None or self._zone is UTC:
            return start
        last = start  # backwards the hours that are there twice or not at all count otherwise
        for found in self._from(start - 7201):
            if found >= moment:
                break
            last = max(last, found)
        return last

    def _from(self, moment: float, back: bool = False) -> Iterator[float]:
        for found in CronSim(self._expression, datetime.fromtimestamp(moment, self._zone), reverse=back):
            yield found.timestamp()
