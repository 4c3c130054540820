"""The contract of a Messenger: ordered logs of bytes, by channel.

A provider implements it with ordinary blocking calls; `write` and `read` may run at the same time in two
threads, each is called by one thread at a time. Bytes in, bytes out: a provider never sees a pickle or a class.
The checks in `revolve_assistant.testing` say in code what this page says in words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from .traits import Traits

if TYPE_CHECKING:
    from .engine import Queue


class Message(NamedTuple):
    """One message read: its channel, its bytes, and the cursor from which a later read goes on after it."""

    channel: str
    frame: bytes
    cursor: bytes


class Batch(NamedTuple):
    """What one `read` found: messages in the order of each channel, and channels that are gone.

    `lost` names the channels that were asked for and no longer exist (never created, expired, evicted, or wiped
    by a restart): a reader turns them into `gap` or `lost`, so that loss is never silence.
    """

    messages: Sequence[Message] = ()
    lost: frozenset[str] = frozenset()


class Messenger(ABC):
    """Carries events back and messages forth."""

    traits: ClassVar[Traits]

    def join(self, queue: Queue) -> None:  # noqa: B027 - most have nothing to share
        """Whoever opens both writes here and asks `queue` from one and the same thread: they may share a connection.

        Before `open`, which then comes after the queue's, as `close` comes before.
        """

    @abstractmethod
    def open(self) -> None:
        """Connect. Blocks up to the provider's connect time-out; raises `Unreachable`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of every connection; a second call does nothing."""

    @abstractmethod
    def wake(self) -> None:
        """End a `read` that waits in another thread, now or the next one. Callable from any thread."""

    @abstractmethod
    def write(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Append `(channel, frame)` pairs as one batch, order kept. Returns once the carrier has them.

        Raises `Unreachable`; then any prefix of the batch may have been written, and writing it again is right
        (readers remove duplicates). A frame larger than `traits.max_bytes` is a `UsageError`, nothing written.
        """

    @abstractmethod
    def read(self, cursors: Mapping[str, bytes], *, limit: int, wait: float) -> Batch:
        """Up to `limit` messages after each channel's cursor; `b""` is the start of the log.

        Waits up to `wait` seconds for the first one; may return early and empty. Raises `Unreachable`.
        `wait` also says how urgent the reader is to a carrier that must be polled (`traits.waits` is False): with at
        most 1 second it looks every 8 ms or sooner, with more it backs off to 250 ms.
        """

    @abstractmethod
    def keep(self, channels: Iterable[str], *, seconds: float, cap: int) -> None:
        """Create the channels, or renew them: kept at least `seconds` from now, at most `cap` bytes each.

        Where the carrier can, a later call with fewer seconds shortens the time. Past the cap the oldest messages go
        first; the newest stays, whatever its size.
        """

    @abstractmethod
    def forget(self, channel: str, upto: bytes | None = None) -> None:
        """Drop the messages up to and including cursor `upto`, or the whole channel. Unknown ones: nothing."""
