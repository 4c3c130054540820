"""Hear what you want to hear: a task names its events, the caller listens to some of them."""

import email
from pathlib import Path

from revolve_assistant import Client, emit, report


def measure(folder):
    longest, lines = "", 0
    paths = sorted(Path(folder).glob("*.py"))
    for number, path in enumerate(paths, 1):
        text = path.read_text(encoding="utf-8", errors="replace")
        lines += text.count("\n")
        line = max(text.splitlines(), key=len, default="")
        if len(line) > len(longest):
            longest = line
            emit("record", path.name, len(line))  # any name, any arguments
        report(number / len(paths), path.name)
    return lines


def on_record(name, length):
    print(f"new longest line: {length} characters, in {name}")


with Client() as client:
    task = client.submit(measure, Path(email.__file__).parent)
    task.add_listener("record", on_record)  # gets the event's arguments
    task.add_one_time_listener("progress", lambda progress: print("first sign of life:", progress))
    task.add_listener("succeeded", lambda result: print("the end comes last:", result > 0))
    print(f"{task.result():,} lines in all; last progress: {task.progress}")
