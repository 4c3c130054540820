"""A web process with a page, a Redis and a worker, each a real one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from revolve_assistant import Client, Worker
from revolve_assistant.testing import servers

APP = """
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from revolve_assistant import Client
from revolve_assistant.views.web import Live, token

client = Client(URL)
POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self'"

def page(request):
    id = request.path_params["id"]
    at = f'src="/live" task="{id}" token="{token(client, id, act=True)}" act'
    return HTMLResponse(
        f'<!doctype html><html lang="en"><title>page</title><script type="module" src="/live/live.js"></script>'
        f"<revolve-progress {at}></revolve-progress><revolve-output {at}></revolve-output>",
        headers={"Content-Security-Policy": POLICY},
    )

live = Live(client, show={"item", "succeeded"}, keep_alive=0.2)
app = Starlette(routes=[Route("/page/{id}", page), Mount("/live", live)])
"""


class Web:
    """A uvicorn of its own process."""

    def __init__(self, folder: Path, url: str) -> None:
        (folder / "web_page.py").write_text(APP.replace("URL", repr(url)), encoding="utf-8")
        words = [sys.executable, "-m", "uvicorn", "web_page:app", "--port", "0", "--timeout-graceful-shutdown", "1"]
        self.process = subprocess.Popen(
            words, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            found = re.search(r"running on (http://127\.0\.0\.1:\d+)", line)
            if found:
                self.url = found[1]
                break
        else:
            raise AssertionError("".join(said))

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=30)


class Stream:
    """Server-sent events as a browser reads them: `at` is the id of the last one."""

    def __init__(self, url: str, tasks: list[str], token: str, at: str = "") -> None:
        self.at = at
        self.comments = 0
        headers = {"Last-Event-ID": at} if at else {}
        self._client = httpx.Client(timeout=30, trust_env=False)
        params: list[tuple[str, Any]] = [*(("task", id) for id in tasks), ("token", token)]
        request = self._client.build_request("GET", f"{url}/live/events", params=params, headers=headers)
        self.response = self._client.send(request, stream=True)
        self._lines = self.response.iter_lines()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        at = self.at
        for line in self._lines:
            if line.startswith("id: "):
                at = line[4:]
            elif line.startswith("data: "):
                self.at = at
                yield json.loads(line[6:])
            elif line.startswith(":"):
                self.comments += 1

    def close(self) -> None:
        self.response.close()
        self._client.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def redis(need) -> Iterator[str]:
    need("redis-server")
    with servers.Redis() as server:
        yield "redis://{}:{}/0".format(*server.address)


@pytest.fixture
def caller(redis: str) -> Iterator[Client]:
    with Worker(redis, concurrency=2), Client(redis) as client:
        yield client


@pytest.fixture
def make_web(redis: str, tmp_path: Path) -> Iterator[Any]:
    started: list[Web] = []

    def make() -> Web:
        started.append(Web(tmp_path, redis))
        return started[-1]

    yield make
    for web in started:
        web.end()
