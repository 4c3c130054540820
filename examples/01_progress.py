"""Hash a folder of real files in a worker process, and watch how far it is."""

import email
import hashlib
from pathlib import Path

from revolve_assistant import Client, track


def fingerprint(folder):
    digest = hashlib.sha256()
    for path in track(sorted(Path(folder).rglob("*.py")), "hashing"):  # sends `progress`, at most 20 a second
        digest.update(path.read_bytes())
    return digest.hexdigest()


with Client() as client:  # worker processes of this machine
    task = client.submit(fingerprint, Path(email.__file__).parent)  # returns at once
    for event in task.events():  # live; the last one says how it ended
        print(event.name, *event.args)
    print("sha256:", task.result()[:16], "…")
