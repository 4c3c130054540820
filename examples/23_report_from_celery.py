"""Nobody has to migrate: a Celery task, run by a Celery worker, is watched, and answered, by its Celery id."""

import os
import subprocess
import sys

from celery import Celery

from revolve_assistant import Client, ask, reporting, track
from revolve_assistant.testing.servers import Redis  # in real life it runs already

app = Celery("shop", broker=os.environ.get("SHOP"))


@app.task(bind=True, name="shop.convert")
def convert(self, pages):
    with reporting(self.request.id, messenger=os.environ["SHOP"]) as running:  # the one line that is new
        for _ in track(range(pages), "converting"):
            pass
        running.result = ask("which format?")


def main():
    with Redis() as redis:
        app.conf.broker_url = os.environ["SHOP"] = redis.url
        command = [sys.executable, "-m", "celery", "-A", "23_report_from_celery", "worker", "-c", "1", "-l", "error"]
        worker = subprocess.Popen(
            command,
            cwd=os.path.dirname(os.path.abspath(__file__)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with Client(redis.url) as client:  # any process that knows the id
            task = client.attach(convert.delay(40).id, within=10)
            for event in task.events():
                print(event.name, *event.args)
                if event.name == "question":
                    task.send("answer", "pdf")
            print("it is a", task.result())
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    main()
