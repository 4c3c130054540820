"""What the stand-in's queues hold, and what becomes of a message.

    post ─▶ delayed ─▶ ready ─▶ reserved ─▶ deleted
                         ▲         │
                         └─────────┘  released, or the reservation ended (after max_reservations: dead letter)

Messages come in the order of their posting; one whose reservation ended, or that was released, is at the front again,
as the documentation has it, or last (`IronQueues.again = "back"`): the service was seen to do either.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

from .clock import Clock

DEFAULTS: dict[str, Any] = {"message_timeout": 60, "message_expiration": 604_800, "type": "pull"}
LOOK = 0.1  # seconds between two looks whether who waits is still there
_LIMITS = {"message_timeout": (1, 86_400), "message_expiration": (1, 2_592_000)}


class Problem(Exception):
    """An error answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Message:
    """One message of a queue. `due`: when it can be reserved (again)."""

    __slots__ = ("body", "count", "due", "expires", "headers", "id", "position", "reservation")

    def __init__(self, id: str, body: str, due: float, expires: float, headers: Any) -> None:
        self.id, self.body, self.due, self.expires, self.headers = id, body, due, expires, headers
        self.position = 0
        self.count = 0
        self.reservation: str | None = None

    def shown(self, reserved: bool = True) -> dict[str, Any]:
        found: dict[str, Any] = {"id": self.id, "body": self.body, "reserved_count": self.count}
        if reserved and self.reservation is not None:
            found["reservation_id"] = self.reservation
        if self.headers:
            found["push_headers"] = self.headers
        return found


class One:
    """One queue."""

    def __init__(self, name: str, terms: dict[str, Any]) -> None:
        self.name, self.terms = name, {**DEFAULTS, **terms}
        self.messages: dict[str, Message] = {}
        self.ready: list[tuple[int, str]] = []  # a heap of (position, id)
        self.later: list[tuple[float, str]] = []  # a heap of (due, id)
        self.total = 0


class IronQueues:
    """All queues of a project. Thread-safe; `reserve` may wait."""

    def __init__(self, clock: Clock) -> None:
        self.again: Literal["front", "back"] = "front"
        self.changed = threading.Condition()
        self.closing = False
        self._clock = clock
        self._queues: dict[str, One] = {}
        self._ids = itertools.count(int.from_bytes(os.urandom(5)) + (1 << 61))
        self._positions = itertools.count(1)

    # --- queues

    def put(self, name: str, terms: dict[str, Any], *, patch: bool) -> dict[str, Any]:
        self._check(terms)
        with self.changed:
            queue = self._queues.get(name)
            if queue is None:
                if patch:
                    raise Problem(404, "Queue not found")
                queue = self._queues[name] = One(name, terms)
            elif "type" in terms and terms["type"] != queue.terms["type"]:
                raise Problem(400, "Queue type cannot be changed")
            queue.terms.update(terms)
            return {"project_id": "", "name": name, **queue.terms}

    @staticmethod
    def _check(terms: dict[str, Any]) -> None:
        for field, (least, most) in _LIMITS.items():
            value = terms.get(field, least)
            if not isinstance(value, int) or not least <= value <= most:
                raise Problem(400, f"{field} must be from {least} to {most}")
        if terms.get("type", "pull") not in ("pull", "unicast", "multicast"):
            raise Problem(400, "Unknown queue type")

    def info(self, name: str) -> dict[str, Any]:
        with self.changed:
            queue = self._get(name)
            self._tick(queue, self._clock.now())
            return {"name": name, **queue.terms, "size": len(queue.messages), "total_messages": queue.total}

    def drop(self, name: str) -> None:
        with self.changed:
            self._get(name)
            del self._queues[name]
            self.changed.notify_all()

    def names(self, prefix: str, previous: str, per_page: int) -> list[str]:
        with self.changed:
            found = [name for name in sorted(self._queues) if name.startswith(prefix) and name > previous]
            return found[:per_page]

    def subscribers(self, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Change the subscribers of a push queue, by their names."""
        with self.changed:
            queue = self._get(name)
            push = queue.terms.setdefault("push", {})
            known = {each.get("name"): each for each in push.get("subscribers", [])}
            push["subscribers"] = list(change(known).values())

    # --- messages

    def post(self, name: str, messages: Sequence[dict[str, Any]]) -> list[str]:
        for each in messages:
            if not isinstance(each.get("body"), str):
                raise Problem(400, "Message body must be a string")
            delay = each.get("delay") or 0
            if not isinstance(delay, int) or not 0 <= delay <= 604_800:
                raise Problem(400, "delay must be from 0 to 604800")
        with self.changed:
            queue = self._queues.get(name)
            if queue is None:
                queue = self._queues[name] = One(name, {})
            now = self._clock.now()
            ids = []
            for each in messages:
                delay = each.get("delay") or 0
                expires = now + queue.terms["message_expiration"] + delay
                message = Message(str(next(self._ids)), each["body"], now + delay, expires, each.get("push_headers"))
                self._enter(queue, message, now)
                ids.append(message.id)
            self.changed.notify_all()
            return ids

    def reserve(
        self, name: str, n: int, timeout: int | None, wait: int, delete: bool, gone: Callable[[], bool] = lambda: False
    ) -> list[dict[str, Any]]:
        """`gone`: whoever asked has hung up, so nothing is to be reserved for him any more."""
        with self.changed:
            until = self._clock.now() + wait
            while True:
                queue = self._get(name)
                now = self._clock.now()
                if gone():
                    return []
                found = self._take(queue, n, now, timeout or queue.terms["message_timeout"], delete)
                if found or now >= until or self.closing:
                    return found
                due = queue.later[0][0] if queue.later else until
                self._clock.wait(self.changed, min(until, due) - now, LOOK)

    def peek(self, name: str, n: int) -> list[dict[str, Any]]:
        with self.changed:
            queue = self._get(name)
            self._tick(queue, self._clock.now())
            free = sorted((each for each in queue.messages.values() if each.position), key=lambda each: each.position)
            return [each.shown(False) for each in free[:n]]

    def find(self, name: str, id: str) -> dict[str, Any]:
        with self.changed:
            return self._message(self._get(name), id).shown()

    def delete(self, name: str, wanted: Sequence[tuple[str, str | None]]) -> None:
        """All of them or, when one cannot be, none."""
        with self.changed:
            queue = self._get(name)
            for id, reservation in wanted:
                self._own(queue, id, reservation, free=True)
            for id, _ in wanted:
                queue.messages.pop(id, None)

    def clear(self, name: str) -> None:
        with self.changed:
            self._get(name).messages.clear()

    def touch(self, name: str, id: str, reservation: Any, timeout: int | None) -> str:
        with self.changed:
            queue = self._get(name)
            message = self._own(queue, id, reservation)
            message.reservation = os.urandom(16).hex()
            self._put_off(queue, message, self._clock.now() + (timeout or queue.terms["message_timeout"]))
            return message.reservation

    def release(self, name: str, id: str, reservation: Any, delay: int) -> None:
        with self.changed:
            queue = self._get(name)
            message = self._own(queue, id, reservation)
            message.reservation = None
            now = self._clock.now()
            if delay:
                self._put_off(queue, message, now + delay)
            else:
                self._free(queue, message, now)
            self.changed.notify_all()

    # --- inside, with the lock

    def _get(self, name: str) -> One:
        queue = self._queues.get(name)
        if queue is None:
            raise Problem(404, "Queue not found")
        return queue

    def _message(self, queue: One, id: str) -> Message:
        self._tick(queue, self._clock.now())
        message = queue.messages.get(id)
        if message is None:
            raise Problem(404, "Message not found")
        return message

    def _own(self, queue: One, id: str, reservation: Any, *, free: bool = False) -> Message:
        """The message, if the reservation is that which holds it; `free`: or nobody holds it, and none is said."""
        message = self._message(queue, id)
        if message.reservation is None and free and reservation is None:
            return message
        if message.reservation is None or reservation != message.reservation:
            raise Problem(403, "Reservation has timed out or belongs to somebody else")
        return message

    def _enter(self, queue: One, message: Message, now: float) -> None:
        queue.messages[message.id] = message
        queue.total += 1
        if message.due > now:
            heapq.heappush(queue.later, (message.due, message.id))
        else:
            self._free(queue, message, now, fresh=True)

    def _free(self, queue: One, message: Message, now: float, fresh: bool = False) -> None:
        position = next(self._positions)
        message.position = position if fresh or self.again == "back" else -position
        message.due = now
        heapq.heappush(queue.ready, (message.position, message.id))

    def _put_off(self, queue: One, message: Message, due: float) -> None:
        message.due, message.position = due, 0
        heapq.heappush(queue.later, (due, message.id))

    def _tick(self, queue: One, now: float) -> None:
        """Reservations and delays that are over, in the order in which they were handed out; and what has expired."""
        over: list[Message] = []
        while queue.later and queue.later[0][0] <= now:
            due, id = heapq.heappop(queue.later)
            message = queue.messages.get(id)
            if message is not None and message.due == due and not message.position:
                over.append(message)
        for message in over if self.again == "back" else reversed(over):
            self._over(queue, message, now)
        while queue.messages and next(iter(queue.messages.values())).expires <= now:
            del queue.messages[next(iter(queue.messages))]

    def _over(self, queue: One, message: Message, now: float) -> None:
        was_reserved, message.reservation = message.reservation is not None, None
        letters = queue.terms.get("dead_letter") or {}
        if was_reserved and letters.get("queue_name") and message.count >= letters.get("max_reservations", 10):
            del queue.messages[message.id]
            other = self._queues.setdefault(letters["queue_name"], One(letters["queue_name"], {}))
            self._enter(other, message, now)
        else:
            self._free(queue, message, now, fresh=not was_reserved)

    def _take(self, queue: One, n: int, now: float, timeout: int, delete: bool) -> list[dict[str, Any]]:
        self._tick(queue, now)
        found: list[dict[str, Any]] = []
        while queue.ready and len(found) < n:
            position, id = heapq.heappop(queue.ready)
            message = queue.messages.get(id)
            if message is None or message.position != position:
                continue
            if message.expires <= now:
                del queue.messages[id]
                continue
            message.count += 1
            message.reservation = os.urandom(16).hex()
            found.append(message.shown())
            if delete:
                del queue.messages[id]
            else:
                self._put_off(queue, message, now + timeout)
        return found
