"""Signatures over what crosses a shared carrier: checked before a single byte of the content is read.

    offset  bytes  field
    0       1      version, 1
    1       8      key id: the fingerprint of the secret that sealed it
    9       8      expiry, Unix milliseconds, big-endian; 0: none
    17      32     HMAC-SHA256 over the head (17 bytes), purpose, audience and payload
    49      …      payload

The key of a purpose is HKDF-SHA256 (RFC 5869) of the secret with the purpose as `info`, so what was sealed as an
event never opens as a task. Purpose and audience (namespace and queue, or namespace and channel) are signed but not
sent: both sides know them, and a message moved elsewhere does not open. HMAC-SHA256 because every language has it;
keyed BLAKE2b would be as fast. A signature is no encryption: who runs the carrier can read what it carries.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from time import time
from typing import Any, Final, NoReturn

from ..errors import Untrusted, UsageError

VERSION: Final = 1
_head = struct.Struct(">B8sQ")
_MAC_END: Final = _head.size + 32
OVERHEAD: Final = _MAC_END  # bytes that a seal adds
MIN_SECRET: Final = 16  # bytes
SMALL: Final = 16 << 10  # bytes
_SALT: Final = b"revolve-assistant"
_length = struct.Struct(">I").pack


class Purpose(StrEnum):
    """What a message is for. Tasks and control messages go to workers, events to callers, monitor to anybody."""

    TASK = "task"
    CONTROL = "control"
    EVENT = "event"
    MONITOR = "monitor"


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 of RFC 5869, extract and expand."""
    key = hmac.digest(salt or bytes(32), secret, "sha256")
    found = block = b""
    for count in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes([count]), "sha256")
        found += block
    return found[:length]


class _Key:
    """One secret, as what is derived from it."""

    __slots__ = ("id", "purposes")

    def __init__(self, secret: bytes) -> None:
        self.id = hkdf(secret, _SALT, b"fingerprint", 8)
        self.purposes = {purpose: hkdf(secret, _SALT, purpose.encode()) for purpose in Purpose}

    def mac(self, purpose: Purpose, head: bytes, audience: str, payload: Any) -> bytes:
        about = _about(purpose, audience)
        key = self.purposes[purpose]
        if len(payload) < SMALL:  # one call of C, which is worth a copy
            return hmac.digest(key, b"".join((head, about, payload)), "sha256")
        state = hmac.new(key, head + about, sha256)
        state.update(payload)
        return state.digest()


@lru_cache(maxsize=4096)
def _about(purpose: Purpose, audience: str) -> bytes:
    """What is signed of purpose and audience, neither of which can run into the other."""
    name = audience.encode()
    return purpose.encode() + b"\0" + _length(len(name)) + name


class Keyring:
    """Secrets that seal and open messages: the first one seals, all open. Thread-safe; never pickled, never printed.

    Raises `UsageError` for no secret, and for one shorter than 16 bytes.
    """

    __slots__ = ("_first", "_keys", "fingerprints")

    def __init__(self, secrets: Sequence[bytes | str]) -> None:
        keys = []
        for number, secret in enumerate(secrets, 1):
            raw = secret.encode() if isinstance(secret, str) else bytes(secret)
            if len(raw) < MIN_SECRET:
                raise UsageError(
                    f"secret {number} has {len(raw)} bytes, it needs {MIN_SECRET}: `revolve secret new` makes one"
                )
            keys.append(_Key(raw))
        if not keys:
            raise UsageError(
                "no secret: `revolve secret new` makes one, REVOLVE_SECRET or REVOLVE_SECRET_FILE names it"
            )
        self._first = keys[0]
        self._keys = {key.id: key for key in reversed(keys)}
        self.fingerprints = tuple(dict.fromkeys(key.id.hex() for key in keys))
        """Of each secret, 16 hexadecimal digits; safe to publish."""

    def seal(self, purpose: Purpose, audience: str, payload: bytes, *, expires: float = 0.0) -> bytes:
        """The payload with its seal. `expires` is a Unix time in seconds, 0: never."""
        key = self._first
        head = _head.pack(VERSION, key.id, int(expires * 1000))
        return b"".join((head, key.mac(purpose, head, audience, payload), payload))

    def open(
        self, purpose: Purpose, audience: str, sealed: bytes | memoryview, *, now: float | None = None
    ) -> memoryview:
        """The payload, a view of `sealed`. Raises `Untrusted`, whose `reason` says why."""
        view = memoryview(sealed)
        if len(view) < _MAC_END:
            _refuse("truncated" if view and view[0] == VERSION else "unsigned", "is too short to carry a seal")
        version, id, expires = _head.unpack_from(view)
        if version != VERSION:
            if VERSION < version < 16:
                _refuse("newer version", f"is sealed by version {version}; this release opens {VERSION}: update it")
            _refuse("unsigned", "carries no seal")
        key = self._keys.get(id)
        if key is None:
            held = ", ".join(self.fingerprints)
            _refuse("unknown key", f"is sealed with the key {id.hex()}, held here: {held}", id.hex())
        payload = view[_MAC_END:]
        mac = key.mac(purpose, bytes(view[: _head.size]), audience, payload)
        if not hmac.compare_digest(view[_head.size : _MAC_END], mac):
            _refuse(
                "forged", f"does not open as {purpose} for {audience}: it was changed, or meant for elsewhere", id.hex()
            )
        if expires and (time() if now is None else now) * 1000 >= expires:
            _refuse("expired", "is past its expiry", id.hex())
        return payload

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self.fingerprints)}>"

    def __reduce__(self) -> NoReturn:
        raise UsageError("a Keyring never leaves its process")


def _refuse(reason: str, text: str, fingerprint: str = "") -> NoReturn:
    error = Untrusted(f"a message {text}")
    error.reason = reason
    error.fingerprint = fingerprint
    raise error
