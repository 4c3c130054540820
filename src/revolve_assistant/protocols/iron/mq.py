"""IronMQ v3: its requests as data, and what their answers say. No I/O.

    for some in batches(messages, limit):
        ids = posted(caller.call(post(queue, some)))
    held = reserved(caller.call(reserve(queue, n=100, timeout=60, wait=30)))
    caller.call(delete(queue, [(each.id, each.reservation) for each in held]))

Nothing here can clear a queue. IronMQ clears one for a DELETE of its messages whose body names none, so a client that
deletes "all of these" with an empty list throws away everything: `delete` refuses that, `delete_one` refuses an id that
is empty, and `caller` looks once more at what goes out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

import msgspec

from ...errors import ProtocolError, UsageError
from .limits import (
    BATCH,
    LONGEST_DELAY,
    LONGEST_EXPIRATION,
    LONGEST_POLL,
    LONGEST_RESERVATION,
    SHORTEST_EXPIRATION,
    check_id,
    check_queue,
    whole,
)

T = TypeVar("T")

_HEAD = 16  # bytes of `{"messages":[…]}`
_EACH = 12  # of `{"body":"…"},`
_DELAY = 18  # of `"delay":604800,`, about
_encode = msgspec.json.Encoder().encode


class Request(NamedTuple):
    """One request. `path` follows the project; `wait`: seconds that the other side may take its time by design.

    `text`: the answer is no JSON.
    """

    method: str
    path: str
    body: bytes | None = None
    wait: float = 0.0
    text: bool = False

    @property
    def what(self) -> str:
        """For errors."""
        return f"{self.method} {self.path.partition('?')[0]}"


class Text(NamedTuple):
    """A message to be posted: text that JSON holds as it is (base64), and whole seconds until it can be reserved."""

    body: str
    delay: int = 0

    @property
    def size(self) -> int:
        """Bytes that it takes in a request, or a few less."""
        return len(self.body) + _EACH + (_DELAY if self.delay else 0)


class Reserved(NamedTuple):
    """A message as it was handed out: `times` so far, under the reservation."""

    id: str
    body: str
    times: int = 0
    reservation: str = ""


class Info(NamedTuple):
    """A queue: how many messages are in it, and how many ever were."""

    name: str
    size: int = 0
    total: int = 0


# --- queues


def create(queue: str, *, timeout: float, expiration: float) -> Request:
    """Make a queue, or change it: seconds of a reservation, and of a message's life."""
    terms = {
        "type": "pull",
        "message_timeout": whole(timeout, LONGEST_RESERVATION, 1),
        "message_expiration": whole(expiration, LONGEST_EXPIRATION, SHORTEST_EXPIRATION),
    }
    return Request("PUT", f"queues/{check_queue(queue)}", _encode({"queue": terms}))


def look(queue: str) -> Request:
    """What is known of a queue: see `info`."""
    return Request("GET", f"queues/{check_queue(queue)}")


def drop(queue: str) -> Request:
    """Remove a queue with all that is in it."""
    return Request("DELETE", f"queues/{check_queue(queue)}")


def listing(prefix: str, previous: str = "") -> Request:
    """Up to 100 queues whose names begin so, after `previous`: see `names`."""
    words = {"per_page": BATCH, "prefix": prefix} | ({"previous": previous} if previous else {})
    return Request("GET", f"queues?{urlencode(words)}")


# --- messages


def room(limit: int) -> int:
    """Characters of a message that is alone in its request, so that the request has no more than `limit` bytes."""
    return limit - _HEAD - _EACH - _DELAY


def batches(messages: Iterable[Text], limit: int) -> Iterator[list[Text]]:
    """The messages in order, as many at once as one request takes. Raises `UsageError` for one that never fits."""
    some: list[Text] = []
    size = _HEAD
    for message in messages:
        if _HEAD + message.size > limit:
            raise UsageError(f"a message of {message.size:,} bytes is more than the {limit:,} of a request")
        if len(some) >= BATCH or size + message.size > limit:
            yield some
            some, size = [], _HEAD
        some.append(message)
        size += message.size
    if some:
        yield some


def post(queue: str, messages: Sequence[Text]) -> Request:
    """Append 1 to 100 messages, in their order: see `posted`."""
    _some(messages)
    put = [{"body": each.body, "delay": each.delay} if each.delay else {"body": each.body} for each in messages]
    return Request("POST", f"queues/{check_queue(queue)}/messages", _encode({"messages": put}))


def reserve(queue: str, *, n: int, timeout: float, wait: float = 0.0) -> Request:
    """Take up to `n` (100) messages, hidden from others for `timeout` seconds; waits up to `wait` (30) for one."""
    patience = whole(wait, LONGEST_POLL)
    words = {
        "n": max(1, min(BATCH, n)),
        "timeout": whole(timeout, LONGEST_RESERVATION, 1),
        "wait": patience,
        "delete": False,
    }
    return Request("POST", f"queues/{check_queue(queue)}/reservations", _encode(words), float(patience))


def peek(queue: str, n: int = BATCH) -> Request:
    """The first messages that nobody has reserved, without reserving them: see `reserved`."""
    return Request("GET", f"queues/{check_queue(queue)}/messages?n={max(1, min(BATCH, n))}")


def find(queue: str, id: str) -> Request:
    """One message: see `found`."""
    return Request("GET", f"queues/{check_queue(queue)}/messages/{check_id(id)}")


def delete(queue: str, messages: Sequence[tuple[str, str | None]]) -> Request:
    """Delete 1 to 100 messages, (id, reservation) each; None: nobody has reserved it.

    Raises `UsageError` for no messages: see above. When one of them cannot be deleted nobody knows of the others.
    """
    _some(messages)
    ids = [
        {"id": check_id(id)} if reservation is None else {"id": check_id(id), "reservation_id": check_id(reservation)}
        for id, reservation in messages
    ]
    return Request("DELETE", f"queues/{check_queue(queue)}/messages", _encode({"ids": ids}))


def delete_one(queue: str, id: str, reservation: str | None) -> Request:
    """Delete a message; without a reservation only one that nobody has reserved."""
    body = {} if reservation is None else {"reservation_id": check_id(reservation)}
    return Request("DELETE", f"queues/{check_queue(queue)}/messages/{check_id(id)}", _encode(body))


def touch(queue: str, id: str, reservation: str, timeout: float) -> Request:
    """Reserve it for `timeout` seconds from now: under a new reservation, see `touched`."""
    body = {"reservation_id": check_id(reservation), "timeout": whole(timeout, LONGEST_RESERVATION, 1)}
    return Request("POST", f"queues/{check_queue(queue)}/messages/{check_id(id)}/touch", _encode(body))


def release(queue: str, id: str, reservation: str, delay: float = 0.0) -> Request:
    """Give it back, to be handed out after `delay` seconds."""
    body: dict[str, Any] = {"reservation_id": check_id(reservation)}
    if delay > 0:
        body["delay"] = whole(delay, LONGEST_DELAY)
    return Request("POST", f"queues/{check_queue(queue)}/messages/{check_id(id)}/release", _encode(body))


def clears(request: Request) -> bool:
    """Whether IronMQ would understand it as "clear the queue"."""
    path = request.path.partition("?")[0].rstrip("/")
    if request.method != "DELETE" or not path.endswith("/messages"):
        return False
    try:
        return not msgspec.json.decode(request.body or b"{}", type=_Ids).ids
    except msgspec.MsgspecError:
        return True


def _some(messages: Sequence[Any]) -> None:
    if not 1 <= len(messages) <= BATCH:
        raise UsageError(f"{len(messages)} messages: one request takes 1 to {BATCH}")


# --- answers


class _Ids(msgspec.Struct):
    ids: list[Any] = []


class _Posted(msgspec.Struct):
    ids: list[str | int]


class _Message(msgspec.Struct):
    id: str | int
    body: str = ""
    reserved_count: int = 0
    reservation_id: str | int | None = None

    def read(self) -> Reserved:
        held = "" if self.reservation_id is None else str(self.reservation_id)
        return Reserved(str(self.id), self.body, self.reserved_count, held)


class _Messages(msgspec.Struct):
    messages: list[_Message]


class _Found(msgspec.Struct):
    message: _Message


class _Touched(msgspec.Struct):
    reservation_id: str | int


class _Queue(msgspec.Struct):
    name: str = ""
    size: int = 0
    total_messages: int = 0


class _Info(msgspec.Struct):
    queue: _Queue


class _Named(msgspec.Struct):
    name: str


class _Listing(msgspec.Struct):
    queues: list[_Named]


def decode(body: bytes, type: type[T]) -> T:
    """JSON of that shape. Raises `ProtocolError`."""
    try:
        return msgspec.json.decode(body, type=type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        problem = error
    try:  # a message of somebody else's may hold what msgspec takes for no text, such as half of a surrogate pair
        return msgspec.convert(json.loads(body), type)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        raise ProtocolError(f"an answer that is none of Iron's: {problem}") from None


def posted(body: bytes) -> list[str]:
    """The ids of the messages, in the order of the request."""
    return [str(each) for each in decode(body, _Posted).ids]


def reserved(body: bytes) -> list[Reserved]:
    """The messages that were reserved, or peeked at."""
    return [each.read() for each in decode(body, _Messages).messages]


def found(body: bytes) -> Reserved:
    """One message; its reservation is empty where nobody has it, as far as IronMQ tells."""
    return decode(body, _Found).message.read()


def touched(body: bytes) -> str:
    """The new reservation."""
    return str(decode(body, _Touched).reservation_id)


def info(body: bytes) -> Info:
    """What a queue holds."""
    queue = decode(body, _Info).queue
    return Info(queue.name, queue.size, queue.total_messages)


def names(body: bytes) -> list[str]:
    """The names of queues, alphabetically."""
    return [each.name for each in decode(body, _Listing).queues]
