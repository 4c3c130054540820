"""Who may come in, and what for: an ASGI layer before the pages.

    Host header ─▶ is it us? ─▶ who asks? ─▶ a POST: of our own page? ─▶ the pages
        421            403/401, the login page        403

* The Host header must be an address, `localhost`, this machine's name or one of `hosts`: a name that somebody else
  turned to this address (DNS rebinding) is refused before anything else is looked at.
* Without `token` and `allow` only who sits at this machine comes in: the peer's address and the Host header are both
  of the loopback. With `token` it is shown once in the address (`?token=…`), typed into the login page, or sent as
  `Authorization: Bearer`; the browser keeps a cookie made of it (HttpOnly, SameSite=Strict), from which it cannot be
  computed. A signed token (`tokens.token`) is taken too, for its tasks alone; one for "*" is for all. With `allow` the
  application decides.
* What changes something is a POST with a header that no form and no page of another origin can send, of JSON, and its
  `Origin` and `Sec-Fetch-Site` must say that it is from here.
"""

from __future__ import annotations

import hmac
import inspect
import ipaddress
import os
from collections.abc import Awaitable, Callable, Collection
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from ...errors import Untrusted, UsageError
from .tokens import check

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ...caller.client import Client

SHORTEST = 16  # characters of a token
HEADER = "x-revolve-act"
STAY = 30 * 86400  # seconds for which a browser stays logged in
LARGEST = 20 << 10  # bytes of what the login page sends
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
SAFE = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Word = Literal["act", "read"] | None
Allow = Callable[[Request], Awaitable[Word] | Word]


class Access(NamedTuple):
    """What somebody may do: look, and perhaps act, at all tasks (None) or some."""

    act: bool
    tasks: frozenset[str] | None = None

    def to(self, task: str) -> bool:
        return self.tasks is None or task in self.tasks


class Gate:
    """The layer. `access` of a request that came through is in its scope as `revolve.access`. Raises `UsageError`."""

    def __init__(
        self, app: ASGIApp, client: Client, login: bytes, token: str | None, allow: Allow | None, hosts: Collection[str]
    ) -> None:
        if token is not None and (len(token) < SHORTEST or not token.isascii() or not token.isprintable()):
            raise UsageError(f"the token of the pages needs at least {SHORTEST} plain characters: revolve secret new")
        self._app = app
        self._client = client
        self._login = login
        self._token = token
        self._allow = allow
        self._hosts = {name.lower().rstrip(".") for name in hosts} | {"localhost", os.uname().nodename.lower()}
        digest = sha256((token or "").encode()).hexdigest()
        self._cookie = f"revolve-{digest[:8]}"
        self._badge = hmac.new((token or "").encode(), b"revolve pages", "sha256").hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        response = await self._refusal(request)
        await (response or self._app)(scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        """What is answered in place of what was asked for; None: nothing stands against it."""
        host = name_of(request.headers.get("host", ""))
        if self._allow is None and not self._is_us(host):
            why = f"this server is not called {host!r}: open it by its address, or start it with --allow-host {host}"
            return _no(421, why)
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if path == "/login" and request.method == "POST" and self._token is not None:
            return await self._log_in(request)
        if path.startswith("/static/") and request.method == "GET":
            return None  # what everybody has who has this library
        access = await self._access(request, host)
        if isinstance(access, Response):
            return access
        if access is None:
            return self._stranger(request, path)
        if request.method not in ("GET", "HEAD"):
            problem = _forged(request)
            if problem:
                return _no(403, problem)
        request.scope["revolve.access"] = access
        given = request.query_params.get("token")
        if given and self._allow is None and request.method == "GET" and not path.startswith("/api/"):
            return self._enter(request, given)  # so that the token does not stay in the address
        return None

    def _is_us(self, host: str) -> bool:
        if host in self._hosts:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    async def _access(self, request: Request, host: str) -> Access | Response | None:
        if self._allow is not None:
            answer = self._allow(request)
            word = await answer if inspect.isawaitable(answer) else answer
            if word not in ("act", "read", None):
                raise UsageError(f"allow= returned {word!r}: it returns 'act', 'read' or None")
            return Access(word == "act") if word else None
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        shown = request.query_params.get("token") or (bearer.strip() if scheme.lower() == "bearer" else "")
        if self._token is not None and shown and _same(shown, self._token):
            return Access(True)
        kept = request.cookies.get(self._cookie, "")
        if self._token is not None and kept and _same(kept, self._badge):
            return Access(True)
        for text in (shown, kept):
            if text:
                try:
                    grant = check(self._client, text)
                except Untrusted:
                    continue
                return Access(grant.act, None if "*" in grant.tasks else grant.tasks)
        if self._token is None and is_loopback(host) and _is_near(request):
            return Access(True)
        return None

    def _stranger(self, request: Request, path: str) -> Response:
        if self._allow is not None:
            return _no(403, "this is not for you")
        if self._token is None:
            why = "only who sits at this machine may come in: start it with a token (--token, REVOLVE_WEB_TOKEN)"
            return _no(403, why)
        if request.method == "GET" and "text/html" in request.headers.get("accept", "") and not path.startswith("/api"):
            return Response(self._login_page(request), 401, SAFE, "text/html")
        return _no(401, "say the token: Authorization: Bearer …")

    def _login_page(self, request: Request) -> bytes:
        from .pages import based

        return based(self._login, request)

    async def _log_in(self, request: Request) -> Response:
        if not _is_from_here(request):
            return _no(403, "this came from another page")
        data = b""
        async for part in request.stream():
            data += part
            if len(data) > LARGEST:
                return _no(413, "that is no token")
        given = parse_qs(data.decode("ascii", "replace")).get("token", [""])[0].strip()
        if not self._fits(given):
            page = self._login_page(request).replace(b'id="wrong" hidden', b'id="wrong"')
            return Response(page, 401, SAFE, "text/html")
        return self._enter(request, given)

    def _fits(self, given: str) -> bool:
        if self._token is not None and _same(given, self._token):
            return True
        try:
            check(self._client, given)
        except Untrusted:
            return False
        return True

    def _enter(self, request: Request, given: str) -> Response:
        """Have the browser keep that it may come in, and go to where it wanted without saying how."""
        rest = [(key, value) for key, value in request.query_params.multi_items() if key != "token"]
        root = request.scope.get("root_path", "")
        path = request.scope["path"]
        if request.method == "POST":
            path = f"{root}/"
        target = "/" + path.lstrip("/") + (f"?{urlencode(rest)}" if rest else "")
        response = RedirectResponse(target, 303, SAFE)
        ours = self._token is not None and _same(given, self._token)
        response.set_cookie(
            self._cookie,
            self._badge if ours else given,
            max_age=STAY if ours else None,
            path=f"{root}/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response


def name_of(host: str) -> str:
    """The name or address in a Host header, in small letters."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower().rstrip(".")
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a name or address is that of this machine to itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_near(request: Request) -> bool:
    """Whether who asks is on this machine; over a Unix socket he is."""
    peer: Any = request.scope.get("client")
    return peer is None or is_loopback(str(peer[0]))


def _forged(request: Request) -> str:
    """Why a request that would change something cannot be of our own page; "": nothing says that."""
    if HEADER not in request.headers:
        return f"the header {HEADER} is missing"
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return "send JSON"
    return "" if _is_from_here(request) else "this came from another page"


def _is_from_here(request: Request) -> bool:
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _no(code: int, why: str) -> Response:
    return JSONResponse({"error": why}, code, SAFE)
