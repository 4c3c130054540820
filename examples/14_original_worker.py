"""The original's worker: a program of its own, which runs until SIGTERM or SIGINT. Here it starts itself for that."""

import os
import subprocess
import sys

from revolve_assistant import Make
from revolve_assistant.testing.servers import Gearmand  # in real life it runs already

make = Make()


def serve(url):
    worker = make.worker(url, concurrency=2)
    worker.on_ready = lambda: print("worker ready", flush=True)
    return worker.run()  # the first signal drains, the second stops


def main():
    with Gearmand() as gearmand:
        url = f"gearman://127.0.0.1:{gearmand.port}/assistant"
        program = subprocess.Popen([sys.executable, __file__, url], stdout=subprocess.PIPE, text=True)
        print(program.stdout.readline().strip())
        with make.client(url) as client:
            tasks = [make.task(callback=lambda task, n=n: (os.getpid(), n * n)) for n in range(4)]
            for task in tasks:
                client.handle(task)
            results = [task.result(timeout=30) for task in tasks]
        print("squares:", [square for _, square in results])
        print("run by somebody else:", all(pid not in (os.getpid(), program.pid) for pid, _ in results))
        program.terminate()
        program.communicate()
        print("the worker ended with", program.returncode)


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1]) if len(sys.argv) > 1 else main())
