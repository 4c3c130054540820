"""IronMQ as queue and messenger: tasks over HTTPS, with no server of your own. Here a stand-in plays the service."""

import os
import subprocess
import sys

from revolve_assistant import Client, Retry, current_task, emit
from revolve_assistant.testing.iron import IronServer

WORKER = [sys.executable, "-m", "revolve_assistant.cli", "worker", "--log-level", "error", "-c", "2"]


def translate(word, language):
    emit("looking up", word)
    if word == "tea" and current_task().attempt == 1:
        raise Retry("the dictionary is busy", after=0.5)
    return {"bread": "pain", "tea": "thé", "milk": "lait"}[word] + f" ({language})"


with IronServer() as iron:
    os.environ.update(iron.environment())  # IRON_TOKEN, IRON_PROJECT_ID …: yours are set, or stand in iron.json
    place = "ironmq:///dictionary"
    os.environ.setdefault("REVOLVE_SECRET", "signs what leaves this machine: `revolve secret new`")

    with Client(place) as client:
        tasks = {word: client.options(retries=2).submit(translate, word, "fr") for word in ("bread", "tea", "milk")}
        worker = subprocess.Popen([*WORKER, place], stderr=subprocess.DEVNULL)  # elsewhere, in earnest
        for word, task in tasks.items():
            print(word, "->", task.result(timeout=30), [event.name for event in task.events("retrying")])
        worker.terminate()
        worker.wait()
    print("by the way of", sum(iron.counts[f"POST {kind}"] for kind in ("messages", "reservations")), "requests")
