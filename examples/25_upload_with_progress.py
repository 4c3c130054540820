"""A web application takes an upload and streams its progress: 202 once the queue has it; a reload loses nothing.

Needs: pip install 'revolve-assistant[web]' fastapi uvicorn httpx-sse, and redis-server.
Here one program plays all parts.
"""

import threading

import httpx
import uvicorn
from fastapi import FastAPI, Request
from httpx_sse import connect_sse

from revolve_assistant import Client, Worker, emit, track
from revolve_assistant.testing.servers import Redis
from revolve_assistant.views.web import Live, token


def count(text):
    for number, line in enumerate(track(text.splitlines(), "counting"), 1):
        emit("output", f"{number}: {len(line.split())} words")
    return len(text.split())


app = FastAPI()


@app.post("/upload", status_code=202)
async def upload(request: Request):
    task = client.submit(count, (await request.body()).decode())
    await task.queued()
    return {"task": task.id, "token": token(client, task.id)}


def read(browser, task, last="", most=1000):
    told = []
    with connect_sse(browser, "GET", "/live/events", params=task, headers={"Last-Event-ID": last}) as source:
        for event in filter(lambda event: event.data, source.iter_sse()):
            told.append(event.json())
            if len(told) == most:
                break
        return told, event.id


with Redis() as redis, Worker(redis.url, concurrency=1), Client(redis.url) as client:
    app.mount("/live", Live(client, show={"succeeded"}))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    socket = uvicorn.Config(None, port=0, log_level="critical").bind_socket()
    web = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    web.start()
    with httpx.Client(base_url="http://{}:{}".format(*socket.getsockname()), trust_env=False) as browser:
        answer = browser.post("/upload", content="to be\nor not\nto be\nthat is the question")
        first, last = read(browser, answer.json(), most=3)  # the connection breaks
        rest, _ = read(browser, answer.json(), last)  # the browser comes again
    server.should_exit = True
    web.join()
    print(answer.status_code, [each["text"] for each in first + rest if each["event"] == "output"])
    print(rest[-1]["event"], rest[-1]["result"])
