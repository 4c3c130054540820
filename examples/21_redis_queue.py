"""A Redis queue: two workers, one function that may run once at a time on all of them, a failed task tried again."""

import subprocess
import sys
import tempfile
from pathlib import Path

from revolve_assistant import Client
from revolve_assistant.providers import registry
from revolve_assistant.testing.servers import Redis  # in real life it runs already


def deliver(order, shelf):
    if not Path(shelf, order).exists():
        raise LookupError(f"{order} is out of stock")
    return f"{order} delivered"


with Redis() as redis, tempfile.TemporaryDirectory() as shelf:
    command = [sys.executable, "-m", "revolve_assistant.cli", "worker", redis.url, "--log-level", "error"]
    workers = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    queue = registry.engine(redis.url)
    queue.open()
    with Client(redis.url) as client:
        queue.set_rule("__main__:deliver", concurrency=1)  # for all workers, from now on
        Path(shelf, "tea").touch()
        urgent = client.options(priority=9).submit(deliver, "tea", shelf)
        later = client.options(delay=0.1, unique="coffee").submit(deliver, "coffee", shelf)
        same = client.options(unique="coffee").submit(deliver, "coffee", shelf)
        print(urgent.result())
        print(repr(later.exception()), "twice:", repr(later.exception()) == repr(same.exception()))
        failed = queue.buried()[0]
        print("kept:", failed.reason)
        queue.purge("default", buried=True)
    queue.close()
    for worker in workers:
        worker.terminate()
        worker.wait()
