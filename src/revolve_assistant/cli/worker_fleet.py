"""Several whole workers under one process, for `--processes`, and one that starts again, for `--reload`.

revolve worker --processes 3
  ├─ revolve worker      each with its own supervisor and children, its own connections
  ├─ revolve worker      one that dies is replaced, with a growing pause while it dies at once
  └─ revolve worker      signals are handed on to all; the parent ends when they have
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

QUICK = 5.0  # seconds that a worker must have lived for its death not to count as one at its start
LOOK = 0.5  # seconds between two looks at files and children
GRACE = 15.0  # seconds beyond the workers' own grace after which they are killed


class _Fleet:
    def __init__(self, argv: list[str], count: int, grace: float) -> None:
        self.command = [sys.executable, "-m", "revolve_assistant.cli", "worker", *argv]
        self.count = count
        self.grace = grace
        self.workers: list[tuple[subprocess.Popen[bytes], float]] = []
        self.signals: list[int] = []
        self.pause = 0.0  # seconds before a dead one is replaced
        self.replace_at = 0.0

    def fill(self) -> None:
        while len(self.workers) < self.count and time.monotonic() >= self.replace_at:
            # their own session: a Ctrl-C of the terminal comes through us, once
            worker = subprocess.Popen(self.command, start_new_session=True)
            self.workers.append((worker, time.monotonic()))

    def bury(self) -> None:
        """Notice the dead; a worker that ends at once is started again ever more slowly."""
        for worker, born in list(self.workers):
            code = worker.poll()
            if code is None:
                continue
            self.workers.remove((worker, born))
            if code == 2:  # a wrong call: starting it again changes nothing
                self.signals.append(0)
                raise SystemExit(2)
            quick = time.monotonic() - born < QUICK
            self.pause = min(30.0, max(0.5, self.pause * 2)) if quick else 0.0
            self.replace_at = time.monotonic() + self.pause
            if not self.signals:
                print(f"revolve worker: {worker.pid} ended with {code}; another one follows", file=sys.stderr)

    def tell(self, number: int) -> None:
        for worker, _ in self.workers:
            if worker.poll() is None:
                worker.send_signal(number)

    def end(self) -> int:
        """Wait for the workers to drain; hand further signals on."""
        told = 0
        deadline = time.monotonic() + self.grace + GRACE
        code = 0
        while self.workers:
            while told < len(self.signals):
                if self.signals[told]:
                    self.tell(self.signals[told])
                told += 1
            if time.monotonic() > deadline:
                self.tell(signal.SIGKILL)
            for worker, born in list(self.workers):
                try:
                    found = worker.wait(LOOK / 5)
                except subprocess.TimeoutExpired:
                    continue
                self.workers.remove((worker, born))
                code = code or (found if found >= 0 else 128 - found)
        return code


def run_fleet(argv: list[str], count: int, reload: bool, grace: float) -> int:
    """Run the workers until a signal; the exit code is the first of theirs that is not 0."""
    fleet = _Fleet(argv, count, grace)
    before = {
        number: signal.signal(number, lambda number, _frame: fleet.signals.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    seen = _times() if reload else {}
    try:
        while not fleet.signals:
            fleet.fill()
            time.sleep(LOOK)
            fleet.bury()
            if reload and (now := _times()) != seen:
                changed = sorted(path for path in {*now, *seen} if now.get(path) != seen.get(path))
                print(f"revolve worker: {os.path.relpath(changed[0])} changed: starting again", file=sys.stderr)
                seen = now
                for worker, _ in fleet.workers:
                    worker.terminate()
                for worker, _ in fleet.workers:
                    worker.wait()
                fleet.workers.clear()
        return fleet.end()
    except SystemExit as stop:
        fleet.signals.append(signal.SIGTERM)
        fleet.end()
        return int(stop.code or 0)
    finally:
        fleet.tell(signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, handler)


def _times() -> dict[str, float]:
    """The Python files below the working directory, and when each was changed."""
    return dict(_files("."))


def _files(folder: str) -> Iterator[tuple[str, float]]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in ("node_modules", "venv")]
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(parent, name)
                try:
                    yield path, os.stat(path).st_mtime
                except OSError:
                    pass
