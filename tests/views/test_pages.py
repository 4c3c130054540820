"""The dashboard's server: who may come in, what is told, and what is not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from revolve_assistant import Client, Worker, current_task, emit, report
from revolve_assistant.errors import Unreachable, UsageError
from revolve_assistant.views.web import Pages, token
from revolve_assistant.views.web.gate import name_of
from revolve_assistant.views.web.serving import Serving, place_of

SECRET = "a-token-of-24-characters"
ACT = {"X-Revolve-Act": "1", "Content-Type": "application/json"}


def works(word: str, place: str = "") -> str:
    emit("output", "<script>alert(1)</script>\x1b[31m\u202e")
    emit("own", f"own {word}")
    report(0.5, "half\x07way")
    current_task().receive(timeout=60)
    return f"result {word}"


def fails(word: str) -> None:
    raise ValueError(f"error {word}")


class Visitor(httpx.Client):
    """A browser without a page: reads a stream until it has seen what it looks for."""

    def until(self, path, wanted):
        told = []
        with self.stream("GET", path) as response:
            assert response.status_code == 200, response.read()
            name = ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    told.append((name, json.loads(line[6:])))
                    if wanted(told):
                        return told
        raise AssertionError(told)


@pytest.fixture
def visitor():
    with contextlib.ExitStack() as stack:
        yield lambda url, **more: stack.enter_context(Visitor(base_url=url, timeout=30, trust_env=False, **more))


def rows(told):
    return {row[0]: row for name, data in told if name == "rows" for row in data["rows"]}


def events(told):
    return [each for name, data in told if name == "told" for each in data]


@pytest.fixture
def client(request):
    place = f"memory://pages-{request.node.name[:40]}"
    with Worker(place, concurrency=2), Client(place) as client:
        yield client


@pytest.fixture
def serve(client):
    begun = []

    def start(**options):
        begun.append(Serving(client, port=0, **options).start())
        return begun[-1].url

    yield start
    for each in begun:
        each.close()


def test_what_is_hidden_is_not_told_unless_it_is_allowed(client, serve, visitor):
    hidden, shown = visitor(serve()), visitor(serve(show="all"))
    good, bad = client.submit(works, "secret", place="safe"), client.submit(fails, "secret")
    bad.exception(60)

    def begun(told):
        return any("lines" in each for each in events(told)) and any(each["event"] == "own" for each in events(told))

    told = hidden.until(f"api/stream?task={good.id}", begun)
    assert "secret" not in json.dumps(told)
    [said] = [each for each in events(told) if each["event"] == "output"]
    assert said["lines"] == ["<script>alert(1)</script>\\x1b[31m\\u202e"]  # as text, and what acts on nobody's screen
    assert hidden.get(f"api/task/{good.id}").json() == {"arguments": None, "why": "hidden"}
    assert shown.get(f"api/task/{good.id}").json()["arguments"] == [["argument 1", "secret"], ["place", "safe"]]
    told = hidden.until("api/stream", lambda told: good.id in rows(told) and rows(told).get(bad.id, [0] * 10)[9])
    assert "secret" not in json.dumps(told)
    told = hidden.until(f"api/stream?task={good.id}", lambda told: rows(told).get(good.id, [None] * 7)[6])
    assert rows(told)[good.id][4:7:2] == ["running", [0.5, None, None, "half\\x07way"]]
    good.send("go")
    assert good.result(60) == "result secret"

    def over(told):
        return any(each["event"] == "over" for each in events(told))

    for id, own in ((good.id, {"result": "result secret"}), (bad.id, {"error": "ValueError: error secret"})):
        assert "secret" not in json.dumps(hidden.until(f"api/stream?task={id}", over))
        [end] = [each for each in events(shown.until(f"api/stream?task={id}", over)) if each.keys() & own.keys()]
        assert end.get("result", end.get("error", {}).get("headline") if "error" in end else None) == next(
            iter(own.values())
        )
    assert "fails" in end["error"]["traceback"]
    assert shown.get(f"api/task/{bad.id}").json()["arguments"] == [["argument 1", "secret"]]  # of a buried one
    assert "not kept" in shown.get("api/task/nobody").json()["why"]


def test_what_changes_something_must_come_from_the_page_itself(client, serve, visitor):
    url = serve()
    task = client.submit(works, "x")
    next(task.events("progress"))
    browser = visitor(url)
    stop = f"api/task/{task.id}/stop"
    for headers, code in (
        ({}, 403),  # as a form of another site
        ({"X-Revolve-Act": "1"}, 403),
        ({**ACT, "Origin": "http://evil.example"}, 403),
        ({**ACT, "Origin": "null"}, 403),
        ({**ACT, "Sec-Fetch-Site": "cross-site"}, 403),
        ({**ACT, "Host": "evil.example"}, 421),  # a name that was turned to this address
        ({**ACT, "Host": "127.0.0.1.evil.example:80"}, 421),
        ({**ACT, "Host": ""}, 421),
    ):
        assert browser.post(stop, headers=headers, content=b"{}").status_code == code, headers
    assert browser.get("", headers={"Host": "evil.example"}).status_code == 421
    assert browser.request("DELETE", stop, headers=ACT).status_code == 405
    for body, code in ((b"[", 400), (b"[]", 400), (b'"x"', 400), (b"[" * 60_000, 400), (b" " * 140_000, 413)):
        assert browser.post(stop, headers=ACT, content=body).status_code == code
    assert browser.post(f"api/task/{task.id}/answer", headers=ACT, json={"text": 1}).status_code == 400
    assert browser.post(f"api/task/{task.id}/explode", headers=ACT, json={}).status_code == 404
    assert browser.post("api/see", headers=ACT, json={"viewer": "x", "ids": "x"}).status_code == 400
    assert browser.post("api/task/nobody/retry", headers=ACT, json={}).status_code == 404
    assert task.state == "running"
    same = {**ACT, "Origin": url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert browser.post(stop, headers=same, json={}).status_code == 202
    assert [event.name for event in task.events()][-1] == "cancelled"
    assert browser.post(stop, headers=same, json={}).status_code == 409
    page = browser.get("")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=|javascript:", page.text)
    assert page.headers["x-content-type-options"] == "nosniff"


def test_with_a_token_nobody_comes_in_without_it(client, serve, visitor):
    url = serve(token=SECRET, hosts=["tasks.example"])
    task = client.submit(works, "x")
    stranger = visitor(url)
    assert stranger.get("api/stream").status_code == 401
    assert stranger.post(f"api/task/{task.id}/stop", headers=ACT, json={}).status_code == 401
    page = stranger.get("", headers={"Accept": "text/html"})
    assert page.status_code == 401
    assert 'action="login"' in page.text
    assert stranger.get("static/page.css").status_code == 200
    wrong = stranger.post("login", data={"token": "wrong"})
    assert wrong.status_code == 401
    assert "not the token" in wrong.text
    assert not stranger.cookies
    foreign = stranger.post("login", data={"token": SECRET}, headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403
    for way in ("form", "address"):
        browser = visitor(url)
        if way == "form":
            answer = browser.post("login", data={"token": SECRET})
        else:
            answer = browser.get(f"task/{task.id}?token={SECRET}&x=1")
            assert answer.headers["location"] == f"/task/{task.id}?x=1"  # it does not stay in the address
        assert answer.status_code == 303
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert SECRET not in cookie
        assert browser.get("").status_code == 200
        assert browser.get("", headers={"Host": "tasks.example"}).status_code == 200
    assert visitor(url, headers={"Authorization": f"Bearer {SECRET}"}).get("").status_code == 200
    assert visitor(url).get(f"//evil.example/?token={SECRET}").headers.get("location", "/")[:2] != "//"
    task.send("go")
    task.result(60)


def test_a_signed_token_shows_its_task_and_nothing_else(client, serve, visitor):
    url = serve(token=SECRET)
    task, other = client.submit(works, "x"), client.submit(works, "y")
    looks = visitor(url, headers={"Authorization": f"Bearer {token(client, task.id)}"})
    acts = visitor(url, headers={"Authorization": f"Bearer {token(client, task.id, act=True)}"})
    everything = visitor(url, headers={"Authorization": f"Bearer {token(client, '*')}"})
    told = looks.until(f"api/stream?task={task.id}", lambda told: task.id in rows(told))
    assert [name for name, _ in told if name == "view"] == []  # nor workers and queues
    assert looks.get("api/stream").status_code == 403
    assert looks.get(f"api/stream?task={other.id}").status_code == 403
    assert looks.get(f"api/task/{other.id}").status_code == 403
    for browser, id, code in (
        (looks, task.id, 403), (acts, other.id, 403), (everything, task.id, 403), (acts, task.id, 202)
    ):  # fmt: skip
        assert browser.post(f"api/task/{id}/stop", headers=ACT, json={}).status_code == code
    assert {task.id, other.id} <= rows(everything.until("api/stream", lambda told: len(rows(told)) > 1)).keys()
    other.send("go")
    other.result(60)


def test_mounted_the_application_decides(client):
    """Under a path of its own, with who may come in left to the application."""
    import asyncio

    async def allow(request):
        return request.headers.get("x-user")

    pages = Pages(client, allow=allow)
    app = Starlette(routes=[Mount("/admin/tasks", pages)])

    async def look():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as browser:
            assert (await browser.get("/admin/tasks/")).status_code == 403
            page = await browser.get("/admin/tasks/workers", headers={"x-user": "read"})
            assert page.status_code == 200
            assert '<base href="/admin/tasks/">' in page.text
            assert (await browser.get("/admin/tasks/static/main.js")).headers["content-type"].startswith("text/java")
            stop = await browser.post("/admin/tasks/api/task/x/stop", headers={**ACT, "x-user": "read"}, json={})
            assert stop.status_code == 403
            odd = f"/admin/tasks/task/{'%22%3E%3Cscript%3E'}"
            assert "<script>" not in (await browser.get(odd, headers={"x-user": "act"})).text
            return await browser.get("/admin/tasks/static/..%2fgate.py")

    assert asyncio.run(look()).status_code == 404
    pages.close()


def test_what_cannot_be_is_said_at_once(client):
    with pytest.raises(UsageError, match="REVOLVE_WEB_TOKEN"):
        Serving(client, "0.0.0.0", 0)
    with pytest.raises(UsageError, match="16"):
        Pages(client, token="short")
    with pytest.raises(UsageError, match="exclude"):
        Pages(client, token=SECRET, allow=lambda request: "act")
    with pytest.raises(UsageError, match="arguments, results"):
        Pages(client, show="everything")
    for wrong in ("x", "host:", 70_000, -1, True):
        with pytest.raises(UsageError, match="web="):
            place_of(wrong)
    assert [place_of(each) for each in (80, "8080", "host:1", "[::1]:2")] == [
        ("127.0.0.1", 80), ("127.0.0.1", 8080), ("host", 1), ("::1", 2)
    ]  # fmt: skip
    assert [name_of(each) for each in ("A.b:80", "[::1]:80", "", "[", "a b")] == ["a.b", "::1", "", "", "a b"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Unreachable, match=str(port)):
            Client("process://", web=port)


def test_the_command_serves_until_it_is_told_to_end(redis, visitor):
    command = [sys.executable, "-m", "revolve_assistant.cli", "web"]
    environment = {**os.environ, "REVOLVE_WEB_PORT": "0"}
    running = subprocess.Popen([*command, redis], stderr=subprocess.PIPE, text=True, env=environment)
    assert running.stderr is not None
    url = re.search(r"http://127\.0\.0\.1:\d+/", running.stderr.readline())
    assert url is not None
    with Worker(redis), Client(redis) as client:
        task = client.submit(works, "x")
        browser = visitor(url[0])
        told = browser.until(f"api/stream?task={task.id}", lambda told: rows(told).get(task.id, [None] * 7)[6])
        assert rows(told)[task.id][4] == "running"
        with browser.stream("GET", "api/stream") as response:
            running.send_signal(signal.SIGTERM)  # with a browser connected
            response.read()
        assert running.wait(30) == 128 + signal.SIGTERM
        task.send("go")
        assert task.result(60) == "result x"
    assert running.stderr.read() == ""
    running.stderr.close()
    gone = subprocess.run(
        [*command, "redis://127.0.0.1:1"], check=False, capture_output=True, text=True, timeout=60, env=environment
    )
    assert gone.returncode == 1
    assert gone.stderr.startswith("revolve web: ")
