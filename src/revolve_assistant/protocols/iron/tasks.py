"""IronWorker v2: its requests about tasks as data, and what their answers say. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec

from ...errors import UsageError
from .limits import BATCH, LONGEST_DELAY, LONGEST_RUN, PAYLOAD, check_id, whole
from .mq import Request, decode

WAITING = frozenset({"queued", "preparing"})
OVER = frozenset({"complete", "error", "cancelled", "timeout", "killed"})
"""Statuses after which nothing happens any more. The documentation says that new ones may appear."""
_encode = msgspec.json.Encoder().encode


class Job(NamedTuple):
    """A task to be queued: the name of a code package, the payload, and what IronWorker is to do with it.

    `priority` 0 … 2; `timeout` and `delay` in seconds; `cluster` None: the default one; `label` is for people.
    """

    code: str
    payload: str
    priority: int = 0
    timeout: float | None = None
    delay: float = 0.0
    cluster: str | None = None
    label: str | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A task as IronWorker tells of it. Times are RFC 3339, `duration` in milliseconds, `percent` what it reported."""

    id: str
    status: str
    code_name: str = ""
    msg: str | None = None
    percent: int | None = None
    duration: int | None = None
    timeout: int | None = None
    label: str | None = None
    created_at: str = ""
    updated_at: str = ""
    start_time: str | int = ""
    end_time: str | int = ""

    @property
    def over(self) -> bool:
        """It has ended, as far as we know the status."""
        return self.status in OVER


class _Id(msgspec.Struct):
    id: str


class _Queued(msgspec.Struct):
    tasks: list[_Id]


def queue(jobs: Sequence[Job]) -> Request:
    """Queue 1 to 100 tasks: see `queued`. Raises `UsageError` for a payload that is too large."""
    if not 1 <= len(jobs) <= BATCH:
        raise UsageError(f"{len(jobs)} tasks: one request takes 1 to {BATCH}")
    tasks: list[dict[str, Any]] = []
    for job in jobs:
        if len(job.payload.encode()) > PAYLOAD:
            raise UsageError(f"a payload of {len(job.payload):,} bytes is more than the {PAYLOAD:,} of IronWorker")
        task: dict[str, Any] = {"code_name": job.code, "payload": job.payload, "priority": max(0, min(2, job.priority))}
        if job.timeout is not None:
            task["timeout"] = whole(job.timeout, LONGEST_RUN, 1)
        if job.delay > 0:
            task["delay"] = whole(job.delay, LONGEST_DELAY)
        if job.cluster is not None:
            task["cluster"] = job.cluster
        if job.label is not None:
            task["label"] = job.label
        tasks.append(task)
    return Request("POST", "tasks", _encode({"tasks": tasks}))


def look(id: str) -> Request:
    """What has become of a task: see `status`."""
    return Request("GET", f"tasks/{check_id(id)}")


def log(id: str) -> Request:
    """What it printed, as text; there once it has ended."""
    return Request("GET", f"tasks/{check_id(id)}/log", text=True)


def cancel(id: str) -> Request:
    """Stop a task, or do not start it."""
    return Request("POST", f"tasks/{check_id(id)}/cancel", b"{}")


def progress(id: str, percent: int, message: str) -> Request:
    """Show how far a task is, from inside it."""
    return Request("POST", f"tasks/{check_id(id)}/progress", _encode({"percent": percent, "msg": message[:1000]}))


def packages(page: int = 0) -> Request:
    """Up to 100 code packages: see `codes`."""
    return Request("GET", f"codes?{urlencode({'page': page, 'per_page': BATCH})}")


def queued(body: bytes) -> list[str]:
    """The ids of the tasks, in the order of the request."""
    return [each.id for each in decode(body, _Queued).tasks]


def status(body: bytes) -> Status:
    """What has become of it."""
    return decode(body, Status)


class _Code(msgspec.Struct):
    name: str


class _Codes(msgspec.Struct):
    codes: list[_Code]


def codes(body: bytes) -> list[str]:
    """The names of code packages."""
    return [each.name for each in decode(body, _Codes).codes]
