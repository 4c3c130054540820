"""What a page shows to be allowed to see a task: signed, for some tasks, to read or to act, until a time.

A token is a sealed frame (see `wire.seal`) in base64url. Its purpose is its own, so that no event, parcel or order that
somebody captured is a token, nor the other way round. On a queue every web process with the same secret and namespace
takes it; with an engine of this process it is good as long as that process lives, and so are the tasks: what a token
is for is kept until it expires, whoever else lets go of it (the last `HELD` of a client; an event buffer is bounded).
"""

from __future__ import annotations

import base64
import binascii
import os
import threading
import weakref
from collections.abc import Iterable
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ...errors import Untrusted, UsageError
from ...wire.seal import Keyring, Purpose

if TYPE_CHECKING:
    from ...caller.client import Client

SECONDS = 3600.0
LONGEST = 16 << 10  # characters
HELD = 1000  # tasks
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[list[str], bool]).decode
_lock = threading.Lock()
_own: weakref.WeakKeyDictionary[Any, Keyring] = weakref.WeakKeyDictionary()


class Grant(NamedTuple):
    """What a token allows: to see these tasks and, if `act`, to stop them and answer their questions."""

    tasks: frozenset[str]
    act: bool


def token(client: Client, *task_ids: str, act: bool = False, seconds: float = SECONDS) -> str:
    """Text for a page that may see these tasks for `seconds`; with `act` it may stop and answer them too.

    Whoever has it has what it allows: give it to the page of the user whose tasks they are. No I/O; thread-safe.
    Raises `UsageError`.
    """
    if not task_ids or not all(isinstance(each, str) and each for each in task_ids):
        raise UsageError("token() needs the ids of the tasks that it is for")
    if not 0 < seconds < 1e9:
        raise UsageError(f"seconds={seconds!r} must be a positive number of seconds")
    keys, audience = _keys(client)
    expires = time() + seconds
    sealed = keys.seal(Purpose.VIEW, audience, _encode((task_ids, act)), expires=expires)
    if not client._remote:
        _hold(client, task_ids, expires)
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()


def _hold(client: Client, task_ids: Iterable[str], expires: float) -> None:
    with _lock:
        held, now = client._held, time()
        for id in task_ids:
            task = client._tasks.get(id) or client._known.get(id)
            if task is not None:
                held[id] = (max(expires, held.pop(id, (0.0, task))[0]), task)
        for id in [id for id, (until, _) in held.items() if until <= now]:
            del held[id]
        while len(held) > HELD:
            del held[next(iter(held))]


def check(client: Client, text: str) -> Grant:
    """What a token allows. Raises `Untrusted`: not ours, changed, expired. No I/O; thread-safe."""
    if len(text) > LONGEST:
        raise Untrusted("the token is too long")
    try:
        sealed = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise Untrusted("this is no token") from None
    keys, audience = _keys(client)
    opened = keys.open(Purpose.VIEW, audience, sealed)
    tasks, act = _decode(opened)
    return Grant(frozenset(tasks), act)


def _keys(client: Client) -> tuple[Keyring, str]:
    keys = getattr(client._engine, "keys", None) if client._remote else None
    if keys is None:
        with _lock:
            keys = _own.get(client)
            if keys is None:
                keys = _own[client] = Keyring([os.urandom(32)])
    return keys, f"{client.namespace}/view"
