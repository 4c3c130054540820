"""The ASGI side: `events_response` for a route of one's own, `Live` to mount.

    GET  events?task=ID&task=ID&token=…     text/event-stream; `Last-Event-ID` or `last_event_id=` goes on from there
    POST stop     {"task": ID}              X-Revolve-Token: …     202, or 409: it has ended
    POST answer   {"task": ID, "text": …}   X-Revolve-Token: …
    GET  live.js                            the elements <revolve-progress> and <revolve-output>

What is asked for is allowed by a token and by nothing else: no cookie is looked at. An action needs it in a header that
no form and no page of another origin can send, so there is nothing to forge. A viewer that leaves costs the work
nothing. A slow one is waited for: its events stay in the log, and here are at most `ROOM` of a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Collection, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ...errors import AssistantError, Untrusted, UsageError
from ...event import Event
from .feed import Place, fields, follow, places
from .tokens import Grant, check

if TYPE_CHECKING:
    from ...caller.client import Client
    from ...caller.task import Task

KEEP_ALIVE = 15.0  # seconds of silence after which a comment is sent
AGAIN = 1000  # milliseconds after which a browser connects again
ROOM = 64  # events that are held for a browser beside the log
MOST_TASKS = 100  # of one stream
LARGEST = 64 << 10  # bytes of what is posted
HEADER = "x-revolve-token"
SAFE = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LIVE = {**SAFE, "X-Accel-Buffering": "no"}  # nginx would gather it


def events_response(
    client: Client,
    task_id: str | Sequence[str],
    last_event_id: str | None = None,
    *,
    show: Collection[str] = (),
    keep_alive: float = KEEP_ALIVE,
) -> Response:
    """What one or several tasks say, as server-sent events, for a route of Starlette or FastAPI. Does not block.

    `last_event_id` is the request's header `Last-Event-ID`: what comes after it, complete and in order. Each event is
    a JSON object with `task`, `event`, `attempt` and `time`. Results, errors' texts and events of your own are told
    only if `show` names the event: `show={"succeeded", "item"}`. After the end of all the stream ends, and a browser
    that asks again gets 204. Raises `UsageError`. Who may see the task is for the route to decide.
    """
    ids = [task_id] if isinstance(task_id, str) else list(dict.fromkeys(task_id))
    if not 0 < len(ids) <= MOST_TASKS:
        raise UsageError(f"{len(ids)} tasks: a stream takes 1 to {MOST_TASKS}")
    begin = places(last_event_id or "", len(ids))
    if all(place.ended for place in begin):
        return Response(status_code=204, headers=SAFE)
    body = _stream(client, ids, begin, frozenset(show), keep_alive)
    return StreamingResponse(body, media_type="text/event-stream", headers=_LIVE)


async def _stream(
    client: Client, ids: list[str], begin: list[Place], show: frozenset[str], keep_alive: float
) -> AsyncIterator[str]:
    gathered: asyncio.Queue[tuple[int, Place, Event] | BaseException | None] = asyncio.Queue(ROOM)
    at = list(begin)
    readers = [
        asyncio.create_task(_read(client, id, number, begin[number], gathered))
        for number, id in enumerate(ids)
        if not begin[number].ended
    ]
    left = len(readers)
    try:
        yield f"retry: {AGAIN}\n\n"
        while left:
            try:
                found = await asyncio.wait_for(gathered.get(), keep_alive)
            except TimeoutError:
                yield ":\n\n"
                continue
            if found is None:
                left -= 1
            elif isinstance(found, BaseException):
                return  # the browser comes again, perhaps to a process that can
            else:
                number, at[number], event = found
                said = fields(event, show)
                if said is not None:
                    data = json.dumps(said, allow_nan=False)
                    yield f"id: {'_'.join(map(str, at))}\ndata: {data}\n\n"
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(client: Client, id: str, number: int, place: Place, gathered: asyncio.Queue[Any]) -> None:
    try:
        async with contextlib.aclosing(follow(client, id, place)) as events:  # type: ignore[type-var]
            async for each, event in events:
                await gathered.put((number, each, event))
        await gathered.put(None)
    except AssistantError as error:
        await gathered.put(error)


class Live(Starlette):
    """An ASGI application to mount: `app.mount("/live", Live(client))`. `show` and `keep_alive`: `events_response`."""

    def __init__(self, client: Client, *, show: Collection[str] = (), keep_alive: float = KEEP_ALIVE) -> None:
        self._client = client
        self._show = frozenset(show)
        self._keep_alive = keep_alive
        routes = [
            Route("/events", self._events),
            Route("/stop", self._stop, methods=["POST"]),
            Route("/answer", self._answer, methods=["POST"]),
            Route("/live.js", self._script),
        ]
        super().__init__(routes=routes)

    async def _events(self, request: Request) -> Response:
        ids = list(dict.fromkeys(request.query_params.getlist("task")))
        try:
            grant = check(self._client, request.query_params.get("token", ""))
        except Untrusted:
            return _no(403, "the token is not valid, or no longer")
        if not ids or not grant.tasks.issuperset(ids):
            return _no(403, "the token is not for this task")
        last = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
        try:
            return events_response(self._client, ids, last, show=self._show, keep_alive=self._keep_alive)
        except UsageError as error:
            return _no(400, str(error))

    async def _stop(self, request: Request) -> Response:
        asked = await self._asked(request)
        if isinstance(asked, Response):
            return asked
        return _took(self._task(asked).cancel())

    async def _answer(self, request: Request) -> Response:
        asked = await self._asked(request)
        if isinstance(asked, Response):
            return asked
        text = asked.get("text")
        if not isinstance(text, str):
            return _no(400, "an answer is text")
        return _took(self._task(asked).send("answer", text))

    def _task(self, asked: dict[str, Any]) -> Task[Any]:
        task = self._client.attach(asked["task"])
        task.add_done_callback(_nothing)  # kept to its end: what it is told is not dropped with it
        return task

    async def _asked(self, request: Request) -> dict[str, Any] | Response:
        """What is asked for, if it is allowed."""
        try:
            grant: Grant = check(self._client, request.headers.get(HEADER, ""))
        except Untrusted:
            return _no(403, "the token is not valid, or no longer")
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _no(415, "send JSON")
        data = b""
        async for part in request.stream():
            data += part
            if len(data) > LARGEST:
                return _no(413, f"more than {LARGEST} bytes")
        try:
            asked = json.loads(data)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict) or not isinstance(asked.get("task"), str):
            return _no(400, 'send {"task": ID}')
        if not grant.act or asked["task"] not in grant.tasks:
            return _no(403, "the token does not allow this")
        return asked

    async def _script(self, request: Request) -> Response:
        headers = {**SAFE, "Cache-Control": "max-age=3600"}
        return Response(_script(), media_type="text/javascript", headers=headers)


def _script() -> bytes:
    return files(__package__).joinpath("live.js").read_bytes()


def _nothing(task: Task[Any]) -> None: ...


def _took(taken: bool) -> Response:
    return JSONResponse({"taken": True}, 202, SAFE) if taken else _no(409, "the task has ended")


def _no(code: int, why: str) -> Response:
    return JSONResponse({"error": why}, code, SAFE)
