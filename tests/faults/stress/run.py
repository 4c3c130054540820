"""Tasks while everything dies: workers by SIGKILL, the server by SIGKILL, again and again; then the books are checked.

    python tests/faults/stress/run.py redis|sqlite [--tasks 100000] [--kills 500] [--restarts 50] [--workers 4]

Redis runs with `appendfsync always`, SQLite as it is by default (it has no server: its restarts are closed clients).
What must hold, and makes it exit with 1 otherwise:

* every task ends, once, as succeeded, with its own result: nothing lost, no double end;
* of one attempt its listener hears each event once, in order, and what is missing is a gap;
* every task ran at least once (the ledger that tasks append to), and nothing is left in the queue, once the leases
  are over of workers that died as the server did;
* no process of a killed worker is left.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from revolve_assistant import Client, Event, Task
from revolve_assistant.engine import Count
from revolve_assistant.providers import registry
from revolve_assistant.testing.servers import Redis

HERE = Path(__file__).parent
ENDS = {"succeeded", "failed", "cancelled", "lost"}
IN_FLIGHT = 4000
LEASES = 45.0  # seconds: longer than a lease
SECRET = "a secret of the stress run only"


class Books:
    """What was heard of each task. Listeners run on one thread."""

    def __init__(self) -> None:
        self.heard: dict[str, list[tuple[int, str, tuple[Any, ...]]]] = collections.defaultdict(list)
        self.ends: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self.gaps = 0
        self.attempts = 0
        self.room = threading.Semaphore(IN_FLIGHT)

    def hear(self, event: Event) -> None:
        said = self.heard[event.task_id]
        said.append((event.attempt, event.name, event.args))
        if event.name not in ENDS:
            return
        self.ends[event.task_id] += 1
        self.room.release()
        del self.heard[event.task_id]
        attempts: dict[int, list[str]] = collections.defaultdict(list)
        for attempt, name, args in said:
            attempts[attempt].append(name)
            self.gaps += args[0] if name == "gap" else 0
        self.attempts += len(attempts)
        last = attempts[max(attempts)]
        if last != ["started", "half", "whole", "succeeded"] and "gap" not in last:
            self.problem(f"task {event.task_id}: its last attempt said {last}")
        for names in attempts.values():
            order = [name for name in names if name in ("started", "half", "whole")]
            if order != ["started", "half", "whole"][: len(order)] and "gap" not in names:
                self.problem(f"task {event.task_id}: an attempt said {names}")

    def problem(self, text: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(text)


class Crew:
    """Worker processes, each replaced at once when it is killed."""

    def __init__(self, url: str, count: int, environment: dict[str, str]) -> None:
        self._command = [sys.executable, "-m", "revolve_assistant.cli", "worker", url, "-c", "1"]
        self._environment = environment
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the crew
        self.processes = [self._start() for _ in range(count)]
        self.killed = 0

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command, env=self._environment, cwd=HERE, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    def kill_one(self) -> None:
        at = random.randrange(len(self.processes))
        self.processes[at].kill()
        self.processes[at].wait()
        self.killed += 1
        self.processes[at] = self._start()

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")


def left(token: str) -> list[int]:
    """Processes that carry the token in their environment, but for this one."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit() and int(each.name) != os.getpid():
            try:
                environment = (each / "environ").read_bytes()
                state = (each / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if token.encode() in environment and state != "Z":
                found.append(int(each.name))
    return found


def holding(url: str, patience: float) -> list[Count]:
    """What the queue still holds after so many seconds at the most."""
    queue = registry.engine(url)
    queue.open()
    try:
        deadline = time.monotonic() + patience
        while True:
            found = [each for each in queue.counts() if each.pending or each.leased or each.delayed or each.buried]  # type: ignore[attr-defined]
            if not found or time.monotonic() >= deadline:
                return found
            time.sleep(0.2)
    finally:
        queue.close()


def killing(crew: Crew, kills: int, pause: float, over: threading.Event) -> None:
    while crew.killed < kills and not over.wait(random.uniform(0.3, 1.7) * pause):
        crew.kill_one()


def restarting(server: Redis, restarts: int, pause: float, done: list[int], over: threading.Event) -> None:
    while done[0] < restarts and not over.wait(random.uniform(0.5, 1.5) * pause):
        server.kill()
        over.wait(random.uniform(0.0, 1.0))
        server.start()
        done[0] += 1


def run(kind: str, tasks: int, kills: int, restarts: int, workers: int, pause: float, limit: float) -> dict[str, Any]:
    """The whole of it; what was counted. `problems` is empty if all held."""
    token = f"STRESS_TOKEN={os.urandom(8).hex()}"
    folder = tempfile.mkdtemp(prefix="stress-")
    ledger = os.path.join(folder, "ledger")
    environment = {
        **os.environ,
        token.partition("=")[0]: token.partition("=")[2],
        "STRESS_LEDGER": ledger,
        "REVOLVE_SECRET": SECRET,
        "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
    }
    began = time.monotonic()
    books, over, done = Books(), threading.Event(), [0]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if kind == "redis":
            server = stack.enter_context(Redis("--appendonly", "yes", "--appendfsync", "always"))
            url = server.url
        else:
            url = f"sqlite:///{folder}/jobs.db"
        crew = Crew(url, workers, environment)
        stack.callback(crew.stop)
        sys.path.insert(0, str(HERE))
        stack.callback(sys.path.remove, str(HERE))
        from ledger import double

        threads = [threading.Thread(target=killing, args=(crew, kills, pause, over))]
        if kind == "redis":
            every = pause * kills / max(1, restarts)
            threads.append(threading.Thread(target=restarting, args=(server, restarts, every, done, over)))
        client = stack.enter_context(Client(url, secret=SECRET, patience=limit))
        client.add_listener("*", books.hear)
        for thread in threads:
            thread.start()
        stack.callback(lambda: [thread.join() for thread in threads])
        stack.callback(over.set)
        submitted: list[Task[int]] = []
        # Spread over the time that the killing takes, so that something is always running.
        spread = max(0.0, pause * kills * 0.9)
        for number in range(tasks):
            while not books.room.acquire(timeout=1.0):
                if time.monotonic() - began > limit:
                    break
            ahead = spread * number / tasks - (time.monotonic() - began)
            if ahead > 0.02:
                time.sleep(ahead)
            submitted.append(client.submit(double, number))
        wrong = 0
        for number, task in enumerate(submitted):
            try:
                value = task.result(max(0.1, limit - (time.monotonic() - began)))
            except Exception as error:
                books.problem(f"task {number} ({task.id}) {task.state}: {type(error).__name__}: {error}")
                wrong += 1
            else:
                if value != number * 2:
                    books.problem(f"task {number}: {value}")
                    wrong += 1
        for thread in threads:
            thread.join(max(0.1, limit - (time.monotonic() - began)))
        took = time.monotonic() - began
        over.set()
        for thread in threads:
            thread.join()
        left_over = holding(url, LEASES)
        crew.stop()
        doubled = [id for id, count in books.ends.items() if count > 1]
        for id in doubled[:5]:
            books.problem(f"task {id} ended {books.ends[id]} times")
        ran = collections.Counter(int(line) for line in Path(ledger).read_text().split())
        never = tasks - len(ran)
        if never:
            books.problem(f"{never} tasks never ran")
        if left_over:
            books.problem(f"left in the queue: {left_over}")
        orphans = left(token)
        deadline = time.monotonic() + 15
        while orphans and time.monotonic() < deadline:
            time.sleep(0.1)
            orphans = left(token)
        for pid in orphans:
            books.problem(f"process {pid} of a worker is left")
            os.kill(pid, signal.SIGKILL)
        log = crew.log() if books.problems else ""
    return {
        "queue": kind,
        "tasks": tasks,
        "ended": len(books.ends),
        "double ends": len(doubled),
        "wrong": wrong,
        "worker kills": crew.killed,
        "server restarts": done[0],
        "runs": sum(ran.values()),
        "attempts heard": books.attempts,
        "events told as gap": books.gaps,
        "seconds": round(took, 1),
        "problems": books.problems,
        "log": log[-6000:],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("queue", choices=("redis", "sqlite"))
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.7, help="seconds between two kills, on average")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which it counts as failed")
    given = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    found = run(given.queue, given.tasks, given.kills, given.restarts, given.workers, given.pause, given.limit)
    log = found.pop("log")
    print(json.dumps(found, indent=2))
    if found["problems"]:
        print(log, file=sys.stderr)
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
