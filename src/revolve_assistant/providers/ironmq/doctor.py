"""What is wrong with a project at IronMQ: asked for its queues. Changes nothing, and shows no token."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import AssistantError
from ...protocols.iron import Missing, mq
from ...protocols.iron.caller import Caller
from ..diagnosis import Finding
from ..url import Url
from .address import Place
from .names import decode

_SHOWN = 20  # queues


def diagnose(url: Url) -> list[Finding]:
    """See `providers.diagnosis`; blocks up to the URL's `timeout` for each of a few questions."""
    try:
        place = Place.read(url, {})
    except AssistantError as error:
        return [Finding("wrong", "address", str(error))]
    settings = place.settings
    where = f"project {settings.project_id} at {settings.origin}"
    found = [Finding("ok", "settings", f"IronMQ, {where}")]
    if settings.protocol == "http" and settings.host not in ("127.0.0.1", "localhost", "::1"):
        found.append(Finding("wrong", "settings", "the token travels over plain http: leave protocol=http out"))
    caller = place.caller()
    try:
        queues = mq.names(caller.once(mq.listing(place.names.prefix)))
        found.append(Finding("ok", "project", f"IronMQ answers, and takes the token for {where}"))
        found += _queues(caller, place, queues, url)
    except AssistantError as error:
        found.append(Finding("wrong", "project", str(error)))
    finally:
        caller.close()
    return found


def _queues(caller: Caller, place: Place, queues: list[str], url: Url) -> Iterator[Finding]:
    names = place.names
    tasks = [queue for queue in queues if queue.startswith(names.tasks)]
    dead = [queue for queue in queues if queue.startswith(names.dead)]
    channels = sum(queue.startswith(names.channels) for queue in queues)
    for queue in tasks[:_SHOWN]:
        info = mq.info(caller.once(mq.look(queue)))
        name = decode(queue[len(names.tasks) :])
        data = {"queue": name, "tasks": info.size, "ever": info.total}
        yield Finding("ok", f"queue {name}", f"{info.size:,} tasks in it, {info.total:,} so far", data)
    if not tasks:
        text = f"no queue of the namespace is there: nothing was submitted, no worker came (revolve worker {url})"
        yield Finding("note", "queues", text)
    for queue in dead[:_SHOWN]:
        info = mq.info(caller.once(mq.look(queue)))
        name = decode(queue[len(names.dead) :])
        if info.size:
            text = f"{info.size:,} tasks of the queue {name} buried: refused, or they killed what ran them"
            yield Finding("note", "buried", text, {"queue": name, "buried": info.size})
    if channels:
        yield Finding("ok", "channels", f"{channels} (of clients and workers)", {"channels": channels})


def clear(url: Url) -> None:
    """Remove every queue of the namespace of an address, with all in it. Raises `Unreachable`, `ProviderError`."""
    place = Place.read(url, {})
    caller = place.caller()
    try:
        while queues := mq.names(caller.once(mq.listing(place.names.prefix))):
            for queue in queues:
                try:
                    caller.once(mq.drop(queue))
                except Missing:
                    pass
    finally:
        caller.close()
