"""The same lines on other engines: threads, the calling thread, any concurrent.futures.Executor."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

from revolve_assistant import Client, track


def stretch(word):
    key = word.encode()
    for _ in track(range(5), "stretching"):
        key = hashlib.pbkdf2_hmac("sha256", key, b"salt", 2_000)
    return key.hex()[:12]


def show(name, client):
    with client:
        task = client.submit(stretch, "revolve")
        events = [event.name for event in task.events()]
        print(f"{name:20} {task.result()}  {', '.join(events)}")


show("process", Client(max_workers=1))
show("thread", Client("thread://"))
show("inline", Client("inline://"))
with ThreadPoolExecutor(2) as pool:
    show("ThreadPoolExecutor", Client(pool))  # the pool stays yours: it is not shut down with the client
