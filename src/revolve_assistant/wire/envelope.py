"""A task on its way through a queue: what the queue holds, and what is inside once the seal was checked.

    body of a queue's message:  0xA5  length of the inbox's name (1 byte)  inbox  sealed( envelope )

The inbox stands outside as well, so that a worker that cannot open the seal can say so to the one who waits. Nothing
else is read before the seal was checked. The envelope is a msgpack array (`docs/reference/wire.md`); callable and
arguments are pickles in it, which only a child unpickles.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import msgspec

from ..errors import ProtocolError

VERSION = 1
MARK = 0xA5
_INBOX = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")


class Terms(msgspec.Struct, array_like=True, frozen=True):
    """How the task is to be run, in plain data. `pickled` is what of the retries needs a pickle."""

    timeout: float | None = None
    stall: float | None = None
    retries: int = 0
    base: float = 1.0  # of the exponential backoff, seconds
    cap: float = 60.0
    constant: float | None = None  # seconds of a constant backoff
    capture: bool = False
    pickled: bytes | None = None

    @property
    def retry(self) -> list[Any] | None:
        """What a child needs to say whether a failure is worth another attempt; None: it never is."""
        return [self.retries, self.base, self.cap, self.constant, self.pickled] if self.retries else None


PLAIN = Terms()


class Envelope(msgspec.Struct, array_like=True, frozen=True):
    """One task. `sent` is the caller's Unix time, for display and expiry; `buffers` are out-of-band pickle
    buffers; `reads` the addresses of further messengers that the caller reads (`task.write_to`). `history` are the
    seconds that the task's log is kept after its end, 0: there is none. `headers` is what a caller says beside the
    task, such as the trace it belongs to (`traceparent`, `tracestate`, `baggage`); unknown ones are passed over.
    """

    version: int
    id: str
    inbox: str
    name: str
    kind: str
    body: bytes
    payload: bytes
    sent: float
    terms: Terms = PLAIN
    buffers: list[bytes] = []
    reads: list[str] = []
    history: float = 0.0
    headers: dict[str, str] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Envelope).decode
_first = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class NewerEnvelope(ProtocolError):
    """Made by a newer release than this one: somebody else must run it."""


def encode(envelope: Envelope) -> bytes:
    """The envelope as bytes, to be sealed."""
    return _encode(envelope)


def decode(data: bytes | memoryview) -> Envelope:
    """Read an envelope whose seal was checked. Raises `NewerEnvelope`, `ProtocolError`."""
    try:
        found = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        try:
            parts = _first(data)
            version = msgspec.msgpack.decode(parts[0]) if parts else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            version = None
        if isinstance(version, int) and version > VERSION:
            raise NewerEnvelope(f"an envelope of version {version}; this release reads up to {VERSION}") from None
        raise ProtocolError(f"what was sealed is no task: {error}") from error
    if found.version != VERSION:
        if found.version > VERSION:
            raise NewerEnvelope(f"an envelope of version {found.version}; this release reads up to {VERSION}")
        raise ProtocolError(f"an envelope of version {found.version}, which no release wrote")
    return found


def wrap(inbox: str, sealed: bytes) -> bytes:
    """The body of a queue's message."""
    name = inbox.encode()
    return bytes((MARK, len(name))) + name + sealed


def unwrap(body: bytes) -> tuple[str, memoryview]:
    """The inbox's name (unchecked: anybody may have written it) and the sealed envelope. Raises `ProtocolError`."""
    if len(body) < 3 or body[0] != MARK or len(body) < 2 + body[1]:
        raise ProtocolError("not a task of this library")
    end = 2 + body[1]
    inbox = _inbox(bytes(body[2:end]))
    if not inbox:
        raise ProtocolError("a task whose inbox has no valid name")
    return inbox, memoryview(body)[end:]


@lru_cache(maxsize=1024)
def _inbox(name: bytes) -> str:
    """The name of an inbox; empty: it is none."""
    try:
        text = name.decode("ascii")
    except UnicodeDecodeError:
        return ""
    return text if _INBOX.match(text) else ""


def terms_of(options: Any) -> Terms:
    """The terms of a task's options (`caller.options.Options`)."""
    if options is None:
        return PLAIN
    from ..caller.options import PLAIN as NONE
    from ..caller.options import Exponential

    if options is NONE:
        return PLAIN
    backoff = options.backoff
    plain = backoff is None or isinstance(backoff, (int, float, Exponential))
    rest = None
    if options.retries and (options.retry_on != (Exception,) or not plain):
        from .carry import encode as pickled

        rest = pickled((options.retry_on, backoff), None)
    shape = backoff if isinstance(backoff, Exponential) else Exponential()
    constant = float(backoff) if isinstance(backoff, (int, float)) else None
    return Terms(
        options.timeout, options.stall, options.retries, shape.base, shape.cap, constant, options.capture, rest
    )
