"""Seals what crosses a carrier that others can reach, and opens it: nothing is decoded before its seal holds.

      caller ── seal(TASK, queue, parcel) ─────▶ carrier ── open(TASK, queue, …) ──▶ worker: decode, run
      caller ◀─ open(EVENT, inbox, …) ────────── carrier ◀─ seal(EVENT, inbox, frame) ── worker

A sealed frame is a header of 49 bytes and the payload as it is (docs/reference/wire.md has the table):

      version · key id · expiry · MAC ‖ payload          HMAC-SHA256 over version, key id, purpose, audience,
                                                         expiry and payload, with a key of the purpose's own
Why so:

* Purpose and audience are covered by the MAC and not sent: who opens says what he expects. So a captured event is no
  task, and a task for one queue is none for another. Each purpose has one direction, so nothing can be sent back.
* The key id names the secret, so that several can be valid while one is replaced, and so that a stranger's message
  costs a look into a dict and no hashing. It is public: the output of a one-way function.
* HMAC-SHA256 and not keyed BLAKE2b: measured, 0.9 against 0.5 µs for 100 bytes and 0.5 against 0.8 ms for 1 MiB; PHP,
  Node and a shell have the former and mostly lack the latter.

The seal says that a holder of the secret made it. It hides nothing, and all holders are equal
(docs/explanation/security.md says what follows from that).
"""

from __future__ import annotations

import hmac
import struct
import threading
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NoReturn

from ..errors import Untrusted, UsageError

VERSION = 1
LEAST = 16  # bytes of a secret
_HEAD = struct.Struct(">B8sQ32s")  # version, key id, expiry in ms or 0, MAC
_EXPIRY = struct.Struct(">Q")
OVERHEAD = _HEAD.size
"""Bytes that a seal adds to its payload."""

_VERSIONS = range(1, 16)  # of sealed frames, ever; no msgpack map or array, pickle or JSON text begins like that
_SALT = b"revolve-assistant/1"
_KEPT_STATES = 256  # of about 1 KiB


class Purpose(StrEnum):
    """What a message is for, and with it which way it goes."""

    TASK = "task"  # caller -> worker
    EVENT = "event"  # worker -> caller
    CONTROL = "control"  # caller -> worker
    MONITOR = "monitor"  # worker -> anyone
    PLAN = "plan"  # caller -> worker, again and again
    VIEW = "view"  # web application -> itself, by way of a browser


def hkdf(secret: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 of RFC 5869: `length` bytes (at most 8160), different ones for each `info`."""
    root = hmac.digest(salt or bytes(32), secret, "sha256")
    out = block = b""
    for count in range(1, -(-length // 32) + 1):
        block = hmac.digest(root, block + info + bytes((count,)), "sha256")
        out += block
    return out[:length]


class Keyring:
    """The secrets that one side holds: the first one seals, all of them open. Thread-safe; no I/O.

    It keeps keys made from the secrets, not the secrets, and shows neither: its `repr` has the fingerprints, and it
    refuses to be pickled or copied, so that it cannot travel to a child. `fingerprints` (16 hexadecimal digits each)
    name the secrets in their order, and may be published.
    """

    __slots__ = ("_roots", "_seal_id", "_states", "fingerprints")

    fingerprints: tuple[str, ...]

    def __init__(self, secrets: Sequence[bytes | str]) -> None:
        """Raises `UsageError` for none, or for one of less than 16 bytes; text counts as UTF-8."""
        self.fingerprints = ()
        found, problem = _keys_of(secrets)
        if problem:
            del secrets, found  # what shows the variables of a traceback must not show them
            raise UsageError(problem)
        self._roots: dict[bytes, dict[Purpose, hmac.HMAC]] = {}
        for secret in found:
            name = hkdf(secret, salt=_SALT, info=b"key id", length=8)
            self._roots[name] = {
                purpose: hmac.new(hkdf(secret, salt=_SALT, info=purpose.encode(), length=32), None, "sha256")
                for purpose in Purpose
            }
        self._seal_id = next(iter(self._roots))
        self._states: dict[tuple[bytes, Purpose, str], Callable[[], hmac.HMAC]] = {}
        self.fingerprints = tuple(name.hex() for name in self._roots)

    def seal(self, purpose: Purpose, audience: str, payload: bytes | memoryview, *, expires: float = 0.0) -> bytes:
        """The payload, sealed for `audience` (a queue, an inbox; at most 65,535 bytes of UTF-8).

        `expires` is the Unix time in seconds from which on it is refused, 0.0: never. Raises `UsageError`.
        """
        until = 0
        if expires:
            if not 0 < expires < 1e15:
                raise UsageError(f"expires={expires!r} must be a Unix time in seconds, or 0.0 for never")
            until = max(1, int(expires * 1000))
        name = self._seal_id
        state = self._states.get((name, purpose, audience))
        mac = state() if state is not None else self._state(name, purpose, audience)
        mac.update(_EXPIRY.pack(until))
        mac.update(payload)
        return b"".join((_HEAD.pack(VERSION, name, until, mac.digest()), payload))

    def open(
        self, purpose: Purpose, audience: str, sealed: bytes | memoryview, *, now: float | None = None
    ) -> memoryview:
        """The payload of a frame that a holder of one of our secrets sealed for this purpose and audience.

        It is a view into `sealed`, nothing is copied: `sealed` must not change any more. `now` is the Unix time in
        seconds to judge the expiry by, None: the clock. Raises `Untrusted`, with `reason` and `fingerprint`, and
        nothing else whatever `sealed` holds.
        """
        view = memoryview(sealed)
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        size = len(view)
        if not size or view[0] != VERSION or size < OVERHEAD:
            _refuse_form(view, purpose, audience)
        _, name, until, claimed = _HEAD.unpack_from(view)
        if name not in self._roots:
            self._refuse_key(name, purpose, audience)
        payload = view[OVERHEAD:]
        state = self._states.get((name, purpose, audience))
        mac = state() if state is not None else self._state(name, purpose, audience)
        mac.update(view[9:17])
        mac.update(payload)
        if not hmac.compare_digest(mac.digest(), claimed):
            _refuse("forged", name, f"{_what(purpose, audience)} was changed on the way, or sealed for something else")
        if until:
            late = (time.time() if now is None else now) - until / 1000
            if late >= 0:
                _refuse(
                    "expired", name, f"{_what(purpose, audience)} expired {late:.1f} s ago by the clock of this host"
                )
        return payload

    def _state(self, name: bytes, purpose: Purpose, audience: str) -> hmac.HMAC:
        """The MAC of all that comes before the expiry; the next one of the same kind is a copy of it."""
        state = self._roots[name][Purpose(purpose)].copy()
        try:
            reader = audience.encode()
            state.update(struct.pack(">B8sH", VERSION, name, len(purpose)) + purpose.encode())
            state.update(struct.pack(">H", len(reader)) + reader)
        except (UnicodeEncodeError, struct.error):
            raise UsageError(f"an audience is text of at most 65,535 bytes of UTF-8, not {audience[:80]!r}") from None
        if len(self._states) >= _KEPT_STATES:
            self._states.clear()
        self._states[name, purpose, audience] = state.copy
        return state.copy()

    def _refuse_key(self, name: bytes, purpose: Purpose, audience: str) -> NoReturn:
        ours = ", ".join(self.fingerprints)
        way_out = "give both sides the same REVOLVE_SECRET, and the old one too while it is replaced"
        text = f"{_what(purpose, audience)} is sealed with the secret {name.hex()}, and ours are {ours}; {way_out}"
        _refuse("unknown key", name, text)

    def __repr__(self) -> str:
        return f"<Keyring {' '.join(self.fingerprints)}>"

    def __reduce__(self) -> NoReturn:
        raise UsageError("a Keyring stays in its process: it cannot be pickled, copied or sent to a child")

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        self.__reduce__()


def _keys_of(secrets: Sequence[bytes | str]) -> tuple[list[bytes], str]:
    """The secrets as bytes, or what is wrong with them."""
    if isinstance(secrets, str | bytes | bytearray | memoryview):
        return [], "Keyring takes a list of secrets, not one secret"
    found: list[bytes] = []
    for number, secret in enumerate(secrets, 1):
        which = f"secret {number} of {len(secrets)}" if len(secrets) > 1 else "the secret"
        if isinstance(secret, str):
            try:
                data = secret.encode("utf-8", "surrogateescape")  # bytes of the environment as they were
            except UnicodeEncodeError:
                return [], f"{which} is no text that UTF-8 can hold"
        elif isinstance(secret, bytes | bytearray | memoryview):
            data = bytes(secret)
        else:
            return [], f"{which} is {type(secret).__qualname__}, and must be text or bytes"
        if len(data) < LEAST:
            return [], f"{which} has {len(data)} bytes, at least {LEAST} are needed; `revolve secret new` makes one"
        found.append(data)
    return found, "" if found else "no secret given; `revolve secret new` makes one"


# --- refusals


def _refuse_form(view: memoryview, purpose: Purpose, audience: str) -> NoReturn:
    what = _what(purpose, audience)
    if not view:
        _refuse("truncated", b"", f"{what} is empty")
    if view[0] not in _VERSIONS:
        _refuse("unsigned", b"", f"{what} is not sealed")
    if view[0] != VERSION:
        name = view[1:9].tobytes()  # where the versions known to us have it
        text = f"{what} says it is a sealed frame of version {view[0]}, and this release reads {VERSION}; upgrade it"
        _refuse("newer version", name if len(name) == 8 else b"", text)
    _refuse("truncated", b"", f"{what} has {len(view)} bytes, and a sealed frame at least {OVERHEAD}")


def _refuse(reason: str, name: bytes, text: str) -> NoReturn:
    error = Untrusted(f"{reason}: {text}")
    error.reason = reason
    error.fingerprint = name.hex()
    raise error


def _what(purpose: Purpose, audience: str) -> str:
    shown = audience if len(audience) <= 80 else audience[:79] + "…"
    return f"a message of the kind '{purpose}' for {shown!r}"


# --- replay


class Seen:
    """Remembers what was handled, so that a copy of a sealed message that somebody kept is not handled again.

    Best effort: one process's memory of the last `limit` ids. A restart forgets, other workers do not know, and past
    `limit` the oldest goes first, expired or not. A queue that delivers the same parcel again after a death is right
    to do so: put an id in once its end is stored, or take it out when the parcel is released. Thread-safe.
    """

    __slots__ = ("_limit", "_lock", "_until")

    def __init__(self, limit: int = 65536) -> None:
        if limit < 1:
            raise UsageError(f"limit={limit!r} must be 1 or more")
        self._limit = limit
        self._until: dict[str | bytes, float] = {}
        self._lock = threading.Lock()

    def add(self, id: str | bytes, *, expires: float = 0.0, now: float | None = None) -> bool:
        """Remember `id` until the Unix time `expires` (0.0: while there is room). False: it was there already."""
        moment = time.time() if now is None else now
        with self._lock:
            until = self._until.get(id)
            if until is not None and (not until or until > moment):
                return False
            self._until.pop(id, None)  # the new one goes to the end
            self._until[id] = expires
            while self._until:
                oldest = next(iter(self._until))
                if len(self._until) <= self._limit and not 0 < self._until[oldest] <= moment:
                    break
                del self._until[oldest]
        return True

    def discard(self, id: str | bytes) -> None:
        """Forget `id`: the parcel was given back, and comes again."""
        with self._lock:
            self._until.pop(id, None)

    def __contains__(self, id: str | bytes) -> bool:
        with self._lock:
            until = self._until.get(id)
        return until is not None and (not until or until > time.time())

    def __len__(self) -> int:
        return len(self._until)
