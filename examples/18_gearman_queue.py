"""The everyday form on a queue: the same lines as with worker processes, run by whoever serves the queue."""

import subprocess
import sys

from revolve_assistant import Client, track
from revolve_assistant.testing.servers import Gearmand  # in real life it runs already


def count_words(text):
    found = {}
    for word in track(text.split(), "counting"):
        found[word] = found.get(word, 0) + 1
    return found


with Gearmand() as gearmand:
    url = f"gearman://127.0.0.1:{gearmand.port}/words"
    command = [sys.executable, "-m", "revolve_assistant.cli", "worker", url, "--log-level", "error"]
    worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # elsewhere: revolve worker gearman://…
    with Client(url) as client:
        task = client.submit(count_words, "to be or not to be")
        task.queued()  # from here on it is safe with the queue
        for event in task.events():
            print(event.name, *event.args)
        print("be:", task.result()["be"])
    worker.terminate()
    worker.wait()
