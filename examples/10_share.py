"""Send a large object once to each worker process, and only name it afterwards."""

import email
import re
from collections import Counter
from pathlib import Path

from revolve_assistant import Client


def rare_words(path, known):
    words = set(re.findall(r"[a-z]{4,}", path.read_text(encoding="utf-8", errors="replace").lower()))
    return sum(known[word] == 1 for word in words)


paths = sorted(Path(email.__file__).parent.glob("*.py"))
count = Counter(
    word
    for path in paths
    for word in set(re.findall(r"[a-z]{4,}", path.read_text(encoding="utf-8", errors="replace").lower()))
)

with Client(max_workers=2) as client:
    known = client.share(count)  # a handle; the callable gets the Counter itself
    tasks = {path.name: client.submit(rare_words, path, known) for path in paths}
    rarest = max(tasks, key=lambda name: tasks[name].result())
    print(f"{len(count):,} different words in {len(paths)} files")
    print(f"{rarest} has the most words of its own: {tasks[rarest].result()}")
