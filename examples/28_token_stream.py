"""A language model's answer, 200 tokens a second, in a browser: over reloads nothing is lost or doubled, and it stops.

Needs: pip install 'revolve-assistant[web]' fastapi uvicorn httpx-sse, and redis-server.
Here one program plays all parts.
"""

import threading
import time

import httpx
import uvicorn
from fastapi import FastAPI
from httpx_sse import connect_sse

from revolve_assistant import Client, Worker
from revolve_assistant.testing.servers import Redis
from revolve_assistant.views.web import Live, token


def answer(question):
    for number in range(100_000):  # a model that does not know when to stop
        yield f"{question}{number} "
        time.sleep(1 / 200)


app = FastAPI()


@app.post("/ask", status_code=202)
async def ask(question: str):
    task = client.submit(answer, question)
    await task.queued()
    return {"task": task.id, "token": token(client, task.id, act=True)}


def read(browser, task, last="", most=float("inf")):
    told = []
    with connect_sse(browser, "GET", "/live/events", params=task, headers={"Last-Event-ID": last}) as source:
        for event in filter(lambda event: event.data, source.iter_sse()):
            told.append(event.json())
            if len(told) >= most:  # a reload, a train in a tunnel …
                break
        return told, event.id


with Redis() as redis, Worker(redis.url, concurrency=1), Client(redis.url) as client:
    app.mount("/live", Live(client, show={"item"}))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    socket = uvicorn.Config(None, port=0, log_level="critical").bind_socket()
    threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True).start()
    with httpx.Client(base_url="http://{}:{}".format(*socket.getsockname()), trust_env=False) as browser:
        task = browser.post("/ask?question=n").json()
        told, last = read(browser, task, most=9)
        more, last = read(browser, task, last, most=9)
        browser.post("/live/stop", json={"task": task["task"]}, headers={"X-Revolve-Token": task["token"]})
        told += more + read(browser, task, last)[0]
    server.should_exit = True
    tokens = "".join(each["args"][0] for each in told if each["event"] == "item").split()
    print("in order, once:", tokens == [f"n{number}" for number in range(len(tokens))], "-", told[-1]["event"])
