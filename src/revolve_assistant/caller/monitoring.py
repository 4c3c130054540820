"""What all workers say of all tasks, read by a client beside its inbox: no connection and no thread more.

workers ══▶ channel "monitor" ──▶ Monitored ──▶ heard(worker, entries)      on the client's reader
        ◀══ channel "watch" ◀── ask                                         progress is told only if asked for
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from ..errors import Untrusted
from ..messenger import Message
from ..wire.seal import Purpose
from ..worker.monitor import CHANNEL, WATCH, asking, decode
from .mailbox import Mailbox

if TYPE_CHECKING:
    from .remote import Remote

KEEP = 60.0  # seconds that the channel outlives who looks
CAP = 4 << 20  # bytes of it
WANTED = 15.0  # seconds for which progress is asked at once
VALID = 3600.0  # seconds that such a request may be under way, by clocks that differ


class Monitored(Mailbox):
    """The monitor channel. `heard(worker, entries)` must be quick and not raise; `entries` are `worker.monitor`'s."""

    def __init__(self, remote: Remote, heard: Callable[[str, list[list[Any]]], None]) -> None:
        super().__init__(remote.messenger, CHANNEL, remote.keys, remote.namespace, self._refuse)
        self.heard = heard
        self.refused = 0  # messages that were not sealed with a key of ours
        self.gaps = 0  # times that the messenger lost what waited there
        self._remote = remote
        self._asked = 0.0  # until when progress is asked for, monotonic seconds

    def ask(self, all: bool = False) -> None:
        """Have progress told from now on for some seconds, with `all` also what was told before. No I/O.

        Call it again and again, and with `all` when there is a worker that may not have heard it.
        """
        now = monotonic()
        if not all and now < self._asked - WANTED / 2:
            return
        all = all or now > self._asked
        self._asked = now + WANTED
        remote = self._remote
        sealed = remote.keys.seal(
            Purpose.CONTROL, f"{remote.namespace}/{WATCH}", asking(WANTED, all), expires=time() + VALID
        )
        remote.post(WATCH, sealed)

    def due(self) -> bool:
        if monotonic() > self._kept:
            self.fresh = True
        return self.fresh or monotonic() > self._kept - KEEP / 2

    def keep(self) -> None:
        made = monotonic()
        self.messenger.keep([self.channel], seconds=KEEP, cap=CAP)
        self._kept = made + KEEP
        if self.fresh:
            self._cursor = b""
            self._asked = 0.0  # what was told meanwhile is to be told again
            self.fresh = False

    def take(self, messages: list[Message], lost: bool) -> list[tuple[str, list[Any]]]:
        found = super().take(messages, lost)
        for worker, entries in found:
            self.heard(worker, entries)
        return []

    def _taken(self, messages: list[Message]) -> None:
        pass  # others read it too: it is capped, and what is in it stays

    def _lost(self) -> None:
        self.gaps += not self.fresh
        self.fresh = True
        self._remote.ring()

    def _refuse(self, error: Untrusted) -> None:
        self.refused += 1

    def _read(self, whole: bytes) -> tuple[str, list[Any]]:
        return decode(self._keys.open(Purpose.MONITOR, self._audience, whole))
