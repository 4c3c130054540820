"""A channel that a client reads: its inbox, or the log of one task. Read, checked, put together: frames of events.

An inbox is this client's alone: kept by it, and what was read is forgotten. A log (`TaskLog`) is there for everybody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from ..errors import ClientClosed, ProviderError, Untrusted
from ..messenger import Message, Messenger
from ..wire import frames as wire
from ..wire.seal import Keyring, Purpose

log = logging.getLogger("revolve_assistant")

KEEP = 300.0  # seconds that an inbox outlives its client
CAP = 64 << 20  # bytes of events that wait in it
READ = 1000  # messages read at once
TURN = 0.05  # seconds that a read waits while others read another place of the same channel
UNTIDY = (200, 256 << 10)  # messages, and their bytes, that were read and may stay in it for a moment
TIDY = 0.05  # seconds of quiet after which they go


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
        self.turn = 0.0  # when it was read last among others of its channel, monotonic seconds
        self._cursor = b""
        self._left = [0, 0]  # messages that were read and are still there, and their bytes
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
            self._left = [0, 0]
            self.fresh = False

    def read(self, wait: float) -> tuple[list[tuple[str, list[Any]]], int]:
        """`(sender, frames)` that have come, and how many messages; blocks up to `wait` seconds. Raises `Unreachable`.

        One that is gone, with what was in it, is `fresh` afterwards: to be kept anew.
        """
        (_, found, count), *_ = read_together(self.messenger, [self], wait)
        return found, count

    def take(self, messages: list[Message], lost: bool) -> list[tuple[str, list[Any]]]:
        """`(sender, frames)` of messages that were read from it."""
        found: list[tuple[str, list[Any]]] = []
        for message in messages:
            opened = self._open(message.frame)
            if opened is not None:
                found.append(opened)
        if messages:
            self._cursor = messages[-1].cursor
            self._taken(messages)
        if lost:
            self._lost()
        return found

    def _taken(self, messages: list[Message]) -> None:
        self._left[0] += len(messages)
        self._left[1] += sum([len(message.frame) for message in messages])

    @property
    def untidy(self) -> bool:
        """Something is in it that was read."""
        return self._left[0] > 0

    def tidy(self, quiet: bool) -> None:
        """Forget what was read, if it is much or there is time for it: it takes a request, and nobody waits for it."""
        if self._left[0] >= UNTIDY[0] or self._left[1] >= UNTIDY[1] or (quiet and self._left[0]):
            self._left = [0, 0]
            try:
                self.messenger.forget(self.channel, self._cursor)
            except ProviderError as error:  # the next read says so; what was read counts all the same
                log.debug("what was read stays in the inbox: %s", error)

    def _lost(self) -> None:
        if not self.fresh:
            self.fresh = True
            log.warning("%s lost the events that waited for this client", self.name)

    def _open(self, data: bytes) -> tuple[str, list[Any]] | None:
        try:
            whole = self._joiner.join(data)
            if whole is None:
                return None
            return self._read(whole)
        except Untrusted as error:
            self._distrusted(error)
        except ProviderError as error:
            log.warning("a message was dropped: %s", error)
        return None

    def _read(self, whole: bytes) -> tuple[str, list[Any]]:
        sender, self.fingerprints, frames = wire.decode(self._keys.open(Purpose.EVENT, self._audience, whole))
        return sender, frames

    def forget(self) -> None:
        """Remove it."""
        try:
            self.messenger.forget(self.channel)
        except (ProviderError, ClientClosed) as error:  # closed: it never could be opened
            log.debug("the inbox stays until it expires: %s", error)


class TaskLog(Mailbox):
    """The log of one task, which others keep and read as well; from its start."""

    def __init__(
        self,
        messenger: Messenger,
        task_id: str,
        keys: Keyring,
        namespace: str,
        distrusted: Callable[[Untrusted], None],
    ) -> None:
        def refuse(error: Untrusted) -> None:
            self.refused = True
            distrusted(error)

        super().__init__(messenger, wire.log_of(task_id), keys, namespace, refuse)
        self.fresh = False
        self.refused = False  # something in it was not sealed with a key of ours
        self.gone = False
        self.missed = 0.0  # when it was found to be gone, monotonic seconds
        self.drained = 0.0  # when it was last read to its end, monotonic seconds
        self.heard = False  # anything at all

    def _taken(self, messages: list[Message]) -> None:
        self.heard = True

    def _lost(self) -> None:
        self.gone = True
        self.missed = monotonic()


def read_together(
    messenger: Messenger, boxes: Sequence[Mailbox], wait: float
) -> list[tuple[Mailbox, list[tuple[str, list[Any]]], int]]:
    """One read for all boxes of a messenger: (box, what came for it, how many messages). Raises `Unreachable`."""
    asked = monotonic()
    boxes, behind = _at_one_place(boxes, asked)
    wait = min(wait, messenger.traits.max_wait, TURN if behind else wait)
    batch = messenger.read({box.channel: box._cursor for box in boxes}, limit=READ, wait=wait)
    if len(boxes) == 1:
        box = boxes[0]
        found = box.take(list(batch.messages), box.channel in batch.lost)
        if not batch.messages and type(box) is TaskLog:
            box.drained = asked
        return [(box, found, len(batch.messages))]
    sorted_: dict[str, list[Message]] = {}
    for message in batch.messages:
        sorted_.setdefault(message.channel, []).append(message)
    result = []
    for box in boxes:
        mine = sorted_.get(box.channel)
        if mine or box.channel in batch.lost:
            result.append((box, box.take(mine or [], box.channel in batch.lost), len(mine or ())))
        if len(batch.messages) < READ and not mine and type(box) is TaskLog:
            box.drained = asked
    return result


def _at_one_place(boxes: Sequence[Mailbox], now: float) -> tuple[Sequence[Mailbox], bool]:
    """The boxes that one read can serve: of several that read one channel those at the same place, by turns.

    And whether others are elsewhere in it. At its end all are at one place.
    """
    channels: dict[str, dict[bytes, list[Mailbox]]] = {}
    for box in boxes:
        channels.setdefault(box.channel, {}).setdefault(box._cursor, []).append(box)
    if len(channels) == len(boxes):
        return boxes, False
    chosen: list[Mailbox] = []
    behind = False
    for places in channels.values():
        groups = list(places.values())
        if len(groups) > 1:
            behind = True
            groups.sort(key=lambda group: min(box.turn for box in group))
        for box in groups[0]:
            box.turn = now
        chosen += groups[0]
    return chosen, behind
