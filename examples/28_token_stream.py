"""A language model's tokens, 200 a second, to a page that is reloaded in their midst and stops them in the end.

Needs: pip install 'revolve-assistant[web]' httpx. In earnest the model is on a worker."""

import itertools
import json
import threading
import time

import httpx
import uvicorn

from revolve_assistant import Client
from revolve_assistant.views.web import Live, token

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "says", "so", "again"]


def complete(prompt):
    """Stands for the model: a generator, whose items are told as events `item`."""
    for word in itertools.cycle(WORDS):
        yield f"{word} "
        time.sleep(1 / 200)


def read(browser, task, place, most):
    """As `EventSource` does: up to `most` events from a place on; their tokens, the next place, the last event."""
    found = ""
    with browser.stream("GET", "/events", params=task, headers={"Last-Event-ID": place}) as stream:
        for line in stream.iter_lines():
            place = line[4:] if line.startswith("id: ") else place
            if line.startswith("data: "):
                told, most = json.loads(line[6:]), most - 1
                found += "".join(told["args"]) if told["event"] == "item" else ""
                if not most or told["event"] == "cancelled":
                    break
    return found, place, told["event"]


with Client(max_workers=1) as client:
    server = uvicorn.Server(uvicorn.Config(Live(client, show={"item"}), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    task = client.submit(complete, "Say something")
    given = {"task": task.id, "token": token(client, task.id, act=True)}  # what your page is given
    while not server.started:
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    with httpx.Client(base_url=f"http://{host}:{port}", trust_env=False) as browser:
        before, place, _ = read(browser, given, "", 100)
        time.sleep(0.1)  # the page is reloaded; the model goes on
        after, place, _ = read(browser, given, place, 100)
        browser.post("/stop", json=given, headers={"X-Revolve-Token": given["token"]})
        rest, _, end = read(browser, given, place, 0)
    whole = (before + after + rest).split()
    print("none is lost, none comes twice:", whole == [WORDS[at % len(WORDS)] for at in range(len(whole))])
    print(len(whole) > 150, end)
    server.should_exit = True
    thread.join()
