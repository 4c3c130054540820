"""A web application takes an upload and streams its progress: 202 once the queue has it; a reload loses nothing.

Needs: pip install 'revolve-assistant[web]' uvicorn httpx, and redis-server. Here one program plays all parts.
"""

import json
import threading

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from revolve_assistant import Client, Worker, emit, track
from revolve_assistant.testing.servers import Redis
from revolve_assistant.views.web import Live, token


def count(text):
    for number, line in enumerate(track(text.splitlines(), "counting"), 1):
        emit("output", f"{number}: {len(line.split())} words")
    return len(text.split())


async def upload(request):
    task = client.submit(count, (await request.body()).decode())
    await task.queued()
    return JSONResponse({"task": task.id, "token": token(client, task.id)}, 202)


def read(browser, task, last="", most=1000):
    with browser.stream("GET", "/live/events", params=task, headers={"Last-Event-ID": last} if last else {}) as stream:
        told = []
        for line in stream.iter_lines():
            last = line[4:] if line.startswith("id: ") else last
            if line.startswith("data: "):
                told.append(json.loads(line[6:]))
                if len(told) == most:
                    break
        return told, last


with Redis() as redis:
    url = "redis://{}:{}/0".format(*redis.address)
    with Worker(url, concurrency=1), Client(url) as client:
        routes = [Route("/upload", upload, methods=["POST"]), Mount("/live", Live(client, show={"succeeded"}))]
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="warning"))
        socket = uvicorn.Config(None, port=0, log_level="critical").bind_socket()
        web = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        web.start()
        with httpx.Client(base_url="http://{}:{}".format(*socket.getsockname()), trust_env=False) as browser:
            answer = browser.post("/upload", content="to be\nor not\nto be\nthat is the question")
            first, last = read(browser, answer.json(), most=3)  # the connection breaks
            rest, _ = read(browser, answer.json(), last)  # the browser comes again
        server.should_exit = True
        web.join()
        print(answer.status_code, [each["text"] for each in first + rest if each["event"] == "output"])
        print(rest[-1]["event"], rest[-1]["result"])
