"""One client's inbox on one messenger: kept, read, checked, put together; what comes out are frames of events."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..errors import ProviderError, Untrusted
from ..messenger import Messenger
from ..wire import frames as wire
from ..wire.seal import Keyring, Purpose

log = logging.getLogger("revolve_assistant")

KEEP = 300.0  # seconds that an inbox outlives its client
CAP = 64 << 20  # bytes of events that wait in it
READ = 1000  # messages read at once


class Mailbox:
    """Used by one thread at a time, but for `fresh`, which anybody may look at.

    `distrusted(error)` is called for a message that does not open.
    """

    def __init__(
        self,
        messenger: Messenger,
        channel: str,
        keys: Keyring,
        namespace: str,
        distrusted: Callable[[Untrusted], None],
    ) -> None:
        self.messenger = messenger
        self.channel = channel
        self.fresh = True  # it has to be made (again)
        self.fingerprints: list[str] = []  # of the worker heard last
        self._keys = keys
        self._audience = f"{namespace}/{channel}"
        self._distrusted = distrusted
        self._kept = 0.0  # until when it is known to be kept, monotonic seconds
        self._cursor = b""
        self._joiner = wire.Joiner()

    @property
    def name(self) -> str:
        """What the messenger is called in a message for people."""
        parts = type(self.messenger).__module__.split(".")
        return parts[-2] if parts[-1] == "messenger" else parts[-1]

    def due(self) -> bool:
        """Whether `keep` should be called now."""
        if monotonic() > self._kept:  # nobody used it for long: nothing waits there
            self.fresh = True
        return self.fresh or monotonic() > self._kept - KEEP * 2 / 3

    def keep(self) -> None:
        """Make it, or renew it. Raises `Unreachable`."""
        made = monotonic()
        self.messenger.keep([self.channel], seconds=KEEP, cap=CAP)
        self._kept = made + KEEP
        if self.fresh:
            self._cursor = b""
            self.fresh = False

    def read(self, wait: float) -> tuple[list[tuple[str, list[Any]]], int]:
        """`(sender, frames)` that have come, and how many messages; blocks up to `wait` seconds. Raises `Unreachable`.

        One that is gone, with what was in it, is `fresh` afterwards: to be kept anew.
        """
        messenger, channel = self.messenger, self.channel
        batch = messenger.read({channel: self._cursor}, limit=READ, wait=min(wait, messenger.traits.max_wait))
        found: list[tuple[str, list[Any]]] = []
        for message in batch.messages:
            opened = self._open(message.frame)
            if opened is not None:
                found.append(opened)
        if batch.messages:
            self._cursor = batch.messages[-1].cursor
            try:
                messenger.forget(channel, self._cursor)
            except ProviderError as error:  # the next read says so; what was read counts all the same
                log.debug("what was read stays in the inbox: %s", error)
        if channel in batch.lost and not self.fresh:
            self.fresh = True
            log.warning("%s lost the events that waited for this client", self.name)
        return found, len(batch.messages)

    def _open(self, data: bytes) -> tuple[str, list[Any]] | None:
        try:
            whole = self._joiner.join(data)
            if whole is None:
                return None
            sender, self.fingerprints, frames = wire.decode(self._keys.open(Purpose.EVENT, self._audience, whole))
        except Untrusted as error:
            self._distrusted(error)
        except ProviderError as error:
            log.warning("a message was dropped: %s", error)
        else:
            return sender, frames
        return None

    def forget(self) -> None:
        """Remove it."""
        try:
            self.messenger.forget(self.channel)
        except ProviderError as error:
            log.debug("the inbox stays until it expires: %s", error)
