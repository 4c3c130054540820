"""The dashboard, an ASGI application: by itself (`revolve web`) or mounted, `app.mount("/tasks", Pages(client))`.

    GET  .  task/ID  workers  queues        the page; which of them it is, its script finds in the address
    GET  api/stream?task=ID                 text/event-stream: `hello`, `rows`, `view`, and of one task `told`
    GET  api/task/ID                        what it was called with
    POST api/see                            {"viewer": KEY, "ids": [ID, …]}: what is on the screen
    POST api/task/ID/stop|retry|answer      {} or {"text": …}: 202 {"taken": true, "id": …}, 409: it has ended

Who may come in is `gate`'s affair, what is told `shown`'s, when it is told `hub`'s. Nothing here blocks the event loop.
"""

from __future__ import annotations

import contextlib
import html
import json
from collections.abc import AsyncIterator, Collection
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ... import __version__
from ...errors import AssistantError, UsageError
from ..board import MOST
from ..escape import printable
from ..feed import Feed
from .gate import SAFE, Access, Allow, Gate
from .hub import Hub
from .shown import allowed, text_of

if TYPE_CHECKING:
    from ...caller.client import Client

LARGEST = 128 << 10  # bytes of what is posted
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
FILES = frozenset({"page.css", "main.js", "store.js", "dom.js", "list.js", "task.js", "places.js", "icon.svg"})


class Pages(Starlette):
    """The dashboard of a client's queue, or of its own tasks where it has none.

    `show` names what is told besides: `arguments`, `results`, `errors`, `events`, or `all`. Without `token` and `allow`
    only browsers of this machine come in; `token` is what others have to say; `allow(request)`, plain or async, returns
    "act", "read" or None and leaves it to the application. `hosts` are names by which the server may be called. `most`:
    tasks that are remembered. Raises `UsageError`, `ClientClosed`.
    """

    def __init__(
        self,
        client: Client,
        *,
        show: Collection[str] | str = (),
        token: str | None = None,
        allow: Allow | None = None,
        hosts: Collection[str] = (),
        most: int = MOST,
    ) -> None:
        if token is not None and allow is not None:
            raise UsageError("token= and allow= exclude each other")
        self._client = client
        self._shown = allowed(show)
        self._feed = Feed(client, most=most)
        self._hub = Hub(self._feed, self._shown)
        routes = [
            Route("/", self._page),
            Route("/task/{id:str}", self._page),
            Route("/workers", self._page),
            Route("/queues", self._page),
            Route("/static/{name:str}", self._static),
            Route("/api/stream", self._stream),
            Route("/api/see", self._see, methods=["POST"]),
            Route("/api/task/{id:str}", self._about),
            Route("/api/task/{id:str}/{act:str}", self._act, methods=["POST"]),
        ]
        gate = Middleware(Gate, client=client, login=_file("login.html"), token=token, allow=allow, hosts=hosts)
        # Made now, so that a wrong token is an error here and not at the first request.
        Gate(self, client, b"", token, allow, hosts)
        super().__init__(routes=routes, middleware=[gate], lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self._hub.close()
        await run_in_threadpool(self._feed.close)

    def open(self) -> None:
        """Note from now on what happens, before anybody looks; else that begins with the first viewer. No I/O."""
        self._feed.open()

    def close(self) -> None:
        """End all streams, and let go of the feed. The client goes on. In the thread of the event loop; no waiting."""
        self._hub.close()
        self._feed.close(0.0)

    # --- the page

    async def _page(self, request: Request) -> Response:
        return Response(based(_file("page.html"), request), headers=SAFE, media_type="text/html")

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            return _no(404, "there is no such file")
        data = _file(name)
        tag = f'"{sha256(data).hexdigest()[:16]}"'
        headers = {**SAFE, "Cache-Control": "no-cache", "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=KINDS[name.rpartition(".")[2]])

    # --- what is told

    async def _stream(self, request: Request) -> Response:
        access: Access = request.scope["revolve.access"]
        only = request.query_params.get("task", "")
        if not only and access.tasks is not None:
            return _no(403, "you may see some tasks, and not the list: open task/ID")
        if only and not access.to(only):
            return _no(403, "you may not see this task")
        since = request.headers.get("last-event-id") or request.query_params.get("since", "")
        can = sorted(self._feed.can) if access.act else []
        if access.tasks is not None:
            can = [each for each in can if each != "retry"]
        notes = {
            "place": printable(self._feed.place),
            "namespace": printable(self._feed.namespace),
            "can": can,
            "show": sorted(self._shown),
            "version": __version__,
            "all": access.tasks is None,
        }
        body = self._hub.stream(only, since, notes, everything=access.tasks is None)
        headers = {**SAFE, "X-Accel-Buffering": "no"}  # nginx would gather it
        return StreamingResponse(body, media_type="text/event-stream", headers=headers)

    async def _see(self, request: Request) -> Response:
        asked = await _json(request)
        if isinstance(asked, Response):
            return asked
        viewer, ids = asked.get("viewer"), asked.get("ids")
        if not isinstance(viewer, str) or not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
            return _no(400, 'send {"viewer": KEY, "ids": [ID, …]}')
        self._hub.see(viewer, ids)  # one that has just left: nothing
        return Response(status_code=204, headers=SAFE)

    async def _about(self, request: Request) -> Response:
        """What a task was called with, if that may be told and is known."""
        access: Access = request.scope["revolve.access"]
        id = request.path_params["id"]
        if not access.to(id):
            return _no(403, "you may not see this task")
        if "arguments" not in self._shown:
            return JSONResponse({"arguments": None, "why": "hidden"}, headers=SAFE)
        from .arguments import arguments_of

        try:
            found = await run_in_threadpool(arguments_of, self._client, id)
        except (AssistantError, LookupError) as error:
            return JSONResponse({"arguments": None, "why": printable(str(error))}, headers=SAFE)
        return JSONResponse({"arguments": [[name, text_of(value)] for name, value in found], "why": ""}, headers=SAFE)

    # --- what is done

    async def _act(self, request: Request) -> Response:
        access: Access = request.scope["revolve.access"]
        id, act = request.path_params["id"], request.path_params["act"]
        asked = await _json(request)
        if isinstance(asked, Response):
            return asked
        if not access.act:
            return _no(403, "you may look, and change nothing")
        if not access.to(id) or (act == "retry" and access.tasks is not None):
            return _no(403, "you may not do this to this task")
        feed = self._feed
        try:
            if act == "stop":
                taken: Any = await run_in_threadpool(feed.stop, id)
            elif act == "answer":
                text = asked.get("text")
                if not isinstance(text, str):
                    return _no(400, "an answer is text")
                taken = await run_in_threadpool(feed.answer, id, text)
            elif act == "retry" and "retry" in feed.can:
                return JSONResponse({"taken": True, "id": await run_in_threadpool(feed.retry, id)}, 202, SAFE)
            else:
                return _no(404, f"nobody can do that here: there are {', '.join(sorted(feed.can))}")
        except LookupError as error:
            return _no(404, printable(str(error.args[0] if error.args else error)))
        except AssistantError as error:
            return _no(503, printable(str(error)))
        return JSONResponse({"taken": True}, 202, SAFE) if taken else _no(409, "the task has ended")


def based(page: bytes, request: Request) -> bytes:
    """A page whose addresses are relative to where the application is mounted."""
    root = quote(request.scope.get("root_path", ""), safe="/")
    return page.replace(b"{{base}}", html.escape(f"{root}/", quote=True).encode())


@lru_cache
def _file(name: str) -> bytes:
    return files(__package__).joinpath("page", name).read_bytes()


async def _json(request: Request) -> dict[str, Any] | Response:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > LARGEST:
            return _no(413, f"more than {LARGEST} bytes")
    try:
        asked = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        asked = None
    return asked if isinstance(asked, dict) else _no(400, "send a JSON object")


def _no(code: int, why: str) -> Response:
    return JSONResponse({"error": why}, code, SAFE)
