"""Fire and forget: hand over, leave. The work goes on, whoever is there to hear of it."""

import tempfile
import time
from pathlib import Path

from revolve_assistant import Make
from revolve_assistant.testing.servers import Gearmand  # in real life it runs already

with Gearmand() as gearmand, tempfile.TemporaryDirectory() as folder:
    make = Make()
    url = f"gearman://127.0.0.1:{gearmand.port}/assistant"
    done = Path(folder) / "done"

    with make.client(url) as client:
        client.handle(make.task(callback=lambda task: done.write_text("it was done")))
    print("the client is gone, and nobody has worked yet:", not done.exists())

    with make.worker(url, concurrency=1):
        deadline = time.monotonic() + 10
        while not done.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    print("then a worker came:", done.read_text())
