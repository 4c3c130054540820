"""A queue in a file: no server. A worker is killed in the middle of a task, and another one takes over at once."""

import os
import signal
import subprocess
import sys
import tempfile

from revolve_assistant import Client, current_task, emit

WORKER = [sys.executable, "-m", "revolve_assistant.cli", "worker", "--log-level", "error", "-c", "1"]


def bake(loaf):
    attempt = current_task().attempt
    emit("oven", os.getppid())
    while attempt == 1:  # the first worker dies before this loaf is done
        current_task().receive(timeout=1)
    return f"{loaf}, at attempt {attempt}"


with tempfile.TemporaryDirectory() as folder:
    place = f"sqlite:///{folder}/jobs.db"
    with Client(place) as client:
        task = client.options(retries=1).submit(bake, "rye bread")
        task.queued()  # it is in the file now
        first = subprocess.Popen([*WORKER, place], stderr=subprocess.DEVNULL)
        next(task.events("oven"))
        first.send_signal(signal.SIGKILL)
        first.wait()
        second = subprocess.Popen([*WORKER, place], stderr=subprocess.DEVNULL)  # it notices within a second
        print(task.result(timeout=30))
        print([event.name for event in client.attach(task.id).events()])  # the whole history, from the file
        second.terminate()
        second.wait()
