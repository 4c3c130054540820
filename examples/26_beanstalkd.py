"""Beanstalkd: tasks that say what they do, and the jobs of a program that was there before, served by one worker."""

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from revolve_assistant import Client, track
from revolve_assistant.testing.servers import Beanstalkd  # in real life it runs already

APP = """
def thumbnail(path, width):
    with open("made.txt", "a") as file:
        file.write(f"{path} at {width}\\n")
"""


def tidy(names):
    return [name.strip().lower() for name in track(names, "tidying")]


def put(server, tube, body):
    """What the other program does, in whatever language: one line, and the job's bytes."""
    with socket.create_connection(server.address) as connection, connection.makefile("rb") as answers:
        connection.sendall(b"use %b\r\nput 1024 0 60 %d\r\n%b\r\n" % (tube, len(body), body))
        answers.readline()
        return answers.readline().decode().strip()


with Beanstalkd() as server, tempfile.TemporaryDirectory() as folder:
    Path(folder, "app.py").write_text(APP)
    url = f"{server.url}/photos"
    command = [sys.executable, "-m", "revolve_assistant.cli", "worker", url, "-c", "1"]
    print("a job of somebody else:", put(server, b"thumbs", b'{"path": "a.jpg", "width": 80}'))
    worker = subprocess.Popen([*command, "--expose", "thumbs=app:thumbnail"], cwd=folder, stderr=subprocess.DEVNULL)
    with Client(url) as client:
        task = client.submit(tidy, [" A.jpg", "B.JPG "])
        for event in task.events():
            print(event.name, *event.args)
    while not Path(folder, "made.txt").exists():
        time.sleep(0.05)
    worker.terminate()
    worker.wait()
    print("made:", Path(folder, "made.txt").read_text().strip())
