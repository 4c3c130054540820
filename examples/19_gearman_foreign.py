"""Functions of other programs over Gearman: call what the C tool serves, and serve a function that it calls."""

import contextlib
import subprocess

from revolve_assistant import Client, Worker
from revolve_assistant.testing.servers import Gearmand  # a real gearmand on a free port; yours runs already


@contextlib.contextmanager
def running(*words):
    process = subprocess.Popen(words)
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    with Gearmand() as server:
        tool = ("gearman", "-h", server.host, "-p", str(server.port))
        url = f"gearman://{server.host}:{server.port}"

        # somebody else's worker: `sort`, served by the C tool
        with running(*tool, "-w", "-f", "sort", "--", "sort"), Client(url) as client:
            task = client.submit("sort", b"pear\napple\nfig\n")
            print("theirs, called by us:", task.result(10).split())

        # our worker, somebody else's client; `json:dumps` is any function that can be imported
        with Worker(url, concurrency=1, expose={"dumps": "json:dumps"}):
            done = subprocess.run(
                [*tool, "-f", "dumps", '[{"a": [1, 2]}]'], capture_output=True, check=True, timeout=10
            )
            print("ours, called by them:", done.stdout.decode())
