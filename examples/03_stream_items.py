"""A generator as a task: every value it yields is here before the next one is made."""

import email
import re
from pathlib import Path

from revolve_assistant import Client


def grep(pattern, folder):
    files = 0
    for path in sorted(Path(folder).rglob("*.py")):
        files += 1
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if re.search(pattern, line):
                yield path.name, number, line.strip()
    return files  # what a generator returns is the result


with Client() as client:
    task = client.submit(grep, r"^class \w+Error\b", Path(email.__file__).parent)
    for name, number, line in task.items():
        print(f"{name}:{number}: {line}")
    print(f"searched {task.result()} files")
