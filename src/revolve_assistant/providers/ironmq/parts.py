"""A task's body that is larger than a message: in parts, in a queue of its own.

    submit ─ one request each ─▶ NAMESPACE.b.HASH: part 0, part 1, …        then the task, with the digest of the whole
    take   ─ one peek ────────▶ all of them, and the digest is checked      so whoever takes it again has them again
    done   ─ the queue is removed

A peek shows 100 messages at most, and a part may be there twice (the answer to a post was lost): so there are at most
90. The digest says that the parts are those of this very body; that it comes from somebody who may send it the seal
says, which is inside.
"""

from __future__ import annotations

import hashlib

from ...errors import ProviderError
from ...protocols.iron import mq
from ...protocols.iron.caller import Caller
from ...protocols.iron.limits import LONGEST_DELAY, LONGEST_EXPIRATION
from . import wrapping
from .address import Place
from .janitor import Janitor

MOST = 90
TRIES = 5  # deliveries after which a body whose parts are not there is taken to be lost


def largest(limit: int) -> int:
    """Bytes of the largest body, where a request has at most `limit`."""
    return MOST * wrapping.part_room(mq.room(limit))


def put(caller: Caller, place: Place, janitor: Janitor, id: str, body: bytes) -> tuple[wrapping.Wrapped, str]:
    """Post the parts; what stands in the task's message, and the queue of the parts."""
    digest = hashlib.sha256(body).digest()
    queue = place.names.parts(id, digest)
    size = wrapping.part_room(mq.room(place.limit))
    caller.call(mq.create(queue, timeout=60.0, expiration=LONGEST_EXPIRATION))
    janitor.keep([queue], LONGEST_DELAY)
    texts = [mq.Text(wrapping.part(at // size, body[at : at + size])) for at in range(0, len(body), size)]
    for some in mq.batches(texts, place.limit):
        caller.call(mq.post(queue, some))
    return wrapping.Wrapped(id, digest, len(texts)), queue


def get(caller: Caller, queue: str, task: wrapping.Wrapped) -> bytes | None:
    """The whole body; None: something of it is missing, or is not what it was."""
    try:
        messages = mq.reserved(caller.call(mq.peek(queue)))
    except ProviderError as error:
        if isinstance(error, ConnectionError):
            raise
        return None
    found = dict(each for each in (wrapping.read_part(message.body) for message in messages) if each is not None)
    if not all(number in found for number in range(task.parts)):
        return None
    body = b"".join(found[number] for number in range(task.parts))
    return body if hashlib.sha256(body).digest() == task.body else None
