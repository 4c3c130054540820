"""Old code that prints and logs, heard as events; several tasks held as one."""

import logging
import tokenize
from pathlib import Path

from revolve_assistant import Client


def count_tokens(path):  # knows nothing of tasks
    print(f"reading {path.name}")
    with tokenize.open(path) as file:
        kinds = [token.type for token in tokenize.generate_tokens(file.readline)]
    logging.info("%d tokens", len(kinds))
    return len(kinds)


folder = Path(logging.__file__).parent

with Client() as client:
    capturing = client.options(capture=True)
    tasks = [capturing.submit(count_tokens, path) for path in sorted(folder.glob("*.py"))]
    for task in tasks:
        task.add_listener("output", lambda text: print("printed:", text, end=""))
        task.add_listener("log", lambda level, logger, text: print("logged:", level, text))
    group = client.group(tasks)  # itself a task: events, cancel(), await …
    counts = group.result()
    print(f"{len(counts)} files, {sum(counts):,} tokens; the group: {group.progress}")
