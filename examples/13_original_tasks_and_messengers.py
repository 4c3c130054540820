"""The original's first example: a task on Gearman that writes to memcached, read by a client that is driven by hand."""

import time

from revolve_assistant import Make
from revolve_assistant.testing.servers import Gearmand, Memcached  # in real life they run already

with Gearmand() as gearmand, Memcached() as memcached:
    make = Make()
    gearman = {"namespace": "assistant", "servers": [("127.0.0.1", gearmand.port)]}
    messenger = make.messenger(
        {
            "provider": "memcached",
            "memcached": {"namespace": "assistant", "servers": [("127.0.0.1", memcached.port)]},
        }
    )

    def work(task):
        print("see this in the worker output", flush=True)
        for number in range(3):
            task.write_to(messenger, "output", f"see this in the client output: {number}")
            time.sleep(0.05)

    task = make.task({"provider": "gearman", "callback": work})  # a closure; a lambda would do too
    task.add_listener("output", lambda message: print("heard:", message))

    with make.worker({"provider": "gearman", "gearman": gearman}, concurrency=1):  # elsewhere: worker.run()
        client = make.client({"provider": "gearman", "gearman": gearman})
        client.handle(task)
        while not client.has_completed(task):
            client.read(messenger)  # calls the listeners for what has arrived; never blocks
            time.sleep(0.02)
        print("completed:", task.state)
        client.shutdown()
