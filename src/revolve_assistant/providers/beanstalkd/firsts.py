"""Which jobs are handed out for the first time, known without asking about each.

beanstalkd tells how often a job was handed out to who asks about that job alone (`stats-job`), which costs about half
as much as taking and deleting it. But a tube gives the most urgent job first, and of those the oldest:

    m    was handed out to us, and never before; it was never delayed
    n    is as urgent, and younger: as long as m stood there, nobody was given n

After that somebody may have been given n, but it did not come back: `stats`, asked once behind each round of reserves,
counts all that brings jobs back, which are releases, burials, times that ran out and connections that ended.

    stats ─▶ 7 3 0 12 ── reserve m ── stats-job m ── reserve n ── stats ─▶ 7 3 0 12     so n is new, too

How urgent a task was put, and for how long it may be held, stands in its header. What was there before the server was
started is no m: its log does not know who had it then. Whoever names a job (`reserve-job`) has it out of turn, and is
not seen here: we do so nowhere, and others only by hand.
"""

from __future__ import annotations

from operator import itemgetter

_COUNTS = b"cmd-release", b"cmd-bury", b"job-timeouts", b"current-connections", b"total-connections", b"uptime"
_NOWHERE = 1 << 20  # line of `stats` in which there is what this server does not tell
_MOST = 1000  # tubes and priorities that are known of


class Firsts:
    """What one connection that reserves knows. `era`: grows whenever something may have come back."""

    __slots__ = ("era", "_counts", "_known", "_pick", "_uptime")

    def __init__(self, stats: bytes) -> None:
        """`stats`: what the server says of itself, before anything is reserved."""
        names = [line.partition(b":")[0] for line in stats.split(b"\n")]
        self._pick = itemgetter(*[names.index(name) if name in names else _NOWHERE for name in _COUNTS])
        self.era = 0
        self._counts: tuple[bytes, bytes, bytes, int] | None = None
        self._known: dict[tuple[bytes, int], int] = {}  # by tube and priority: the oldest that was new, in this era
        self._uptime = 0
        self.counted(stats)

    def counted(self, stats: bytes) -> None:
        """Take what the server says of itself after a round of reserves."""
        try:
            releases, burials, timeouts, current, total, uptime = self._pick(stats.split(b"\n"))
            counts = releases, burials, timeouts, _number(total) - _number(current)
            self._uptime = _number(uptime)
        except (IndexError, ValueError):
            counts = None
        if counts is None or counts != self._counts:
            self._counts = counts
            self.era += 1
            self._known.clear()

    def new(self, tube: bytes, priority: int, number: int, era: int) -> bool:
        """Whether a job that was reserved in that era was never handed out before. False: nobody knows."""
        return era == self.era and self._known.get((tube, priority), number) < number

    def learn(self, tube: bytes, priority: int, number: int, era: int, age: int) -> None:
        """A job that was reserved in that era is new, as the server says, and was never delayed."""
        key = tube, priority
        if era == self.era and 0 <= age < self._uptime and len(self._known) < _MOST:
            self._known[key] = min(number, self._known.get(key, number))


def _number(line: bytes) -> int:
    return int(line.partition(b": ")[2])
