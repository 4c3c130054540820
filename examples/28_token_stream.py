"""A language model's tokens, 200 a second, to a page that is reloaded in their midst and stops them in the end.

Needs: pip install 'revolve-assistant[web]' httpx. Here one program plays all parts; in earnest a worker has the model.
"""

import json
import threading
import time

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from revolve_assistant import Client, current_task
from revolve_assistant.views.web import Live, token

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "says", "so", "again", ""][:-1]


def complete(prompt):
    """Stands for the model: a generator, whose items are told as events `item`."""
    number = 0
    while not current_task().cancel_requested:
        yield f"{WORDS[number % len(WORDS)]} "
        number += 1
        time.sleep(1 / 200)


async def ask(request):
    task = client.submit(complete, (await request.body()).decode())
    return JSONResponse({"task": task.id, "token": token(client, task.id, act=True)}, 202)


def read(browser, task, last, most):
    """As `EventSource` does: up to `most` tokens from where it was; what it has then, and where it is."""
    found = []
    headers = {"Last-Event-ID": last} if last else {}
    with browser.stream("GET", "/live/events", params=task, headers=headers) as stream:
        for line in stream.iter_lines():
            if line.startswith("id: "):
                last = line[4:]
            elif line.startswith("data: "):
                told = json.loads(line[6:])
                if told["event"] == "item":
                    found += told["args"]
                elif told["event"] in ("succeeded", "cancelled"):
                    return found, last, told["event"]
            if len(found) >= most:
                break
    return found, last, ""


with Client(max_workers=1) as client:
    routes = [Route("/ask", ask, methods=["POST"]), Mount("/live", Live(client, show={"item"}))]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as browser:
        task = browser.post("/ask", content="Say something").json()
        before, place, _ = read(browser, task, "", 100)
        time.sleep(0.1)  # the page is reloaded; the model goes on
        after, place, _ = read(browser, task, place, 100)
        time.sleep(0.1)  # somebody reads, and has had enough
        browser.post("/live/stop", json={"task": task["task"]}, headers={"X-Revolve-Token": task["token"]})
        rest, _, end = read(browser, task, place, 10_000)
    whole = "".join(before + after + rest).split()
    print("none is lost, none comes twice:", whole == [WORDS[at % len(WORDS)] for at in range(len(whole))])
    print(len(whole) > 200, end)
    server.should_exit = True
    thread.join()
