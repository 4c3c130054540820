"""Several whole workers under one process, for `--processes`, and one that starts again, for `--reload`.

revolve worker --processes 3
  ├─ revolve worker      each with its own supervisor and children, its own connections
  ├─ revolve worker      one that dies is replaced, with a growing pause while it dies at once
  └─ revolve worker      signals are handed on to all; the parent ends when they have, and they drain when it dies

Each worker has one end of a pipe whose other end the parent holds: however that ends, the worker reads it. What they
say of their health goes through files in a temporary folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ..pool.threads import OurThread
from ..worker.health import EVERY
from ..worker.turn import Turn
from .flags import say

QUICK = 5.0  # seconds that a worker must have lived for its death not to count as one at its start
LOOK = 0.5  # seconds between two looks at files and children
GRACE = 15.0  # seconds beyond the workers' own grace after which they are killed
PATIENCE = 2.0  # seconds that tasks have to end when a file changed
LONGEST = 30.0  # seconds between two attempts to start a worker that dies at once
OURS = {"--processes": 1, "--reload": 0, "--health-port": 1, "--health-host": 1, "--health-file": 1, "--metrics": 1}
"""Flags that are the parent's, and how many words they take."""


class _Member:
    def __init__(self, argv: Sequence[str], health: str, place: int) -> None:
        self.health = health
        self.place = place  # counted from 0; its successor takes it
        self.born = time.monotonic()
        theirs, self._life = os.pipe()
        call = (theirs, os.getpid(), os.path.dirname(health), [*argv])
        code = f"import sys; from revolve_assistant.cli.worker_fleet import member; sys.exit(member(*{call!r}))"
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        try:
            # its own session: a Ctrl-C of the terminal comes through us, once
            self.process = subprocess.Popen(
                [sys.executable, *flags, "-c", code, "revolve worker"],
                start_new_session=True,
                pass_fds=(theirs,),
                env=_environment(),
            )
        except BaseException:
            os.close(self._life)
            raise
        finally:
            os.close(theirs)

    def found(self) -> dict[str, Any] | None:
        """What it last said of its health, with its age in seconds; None: nothing yet."""
        try:
            age = time.time() - os.stat(self.health).st_mtime
            with open(self.health, encoding="utf-8") as file:
                found = json.loads(file.read().partition("\n")[2])
        except (OSError, ValueError):
            return None
        return {**found, "age": round(age, 1)}

    def bury(self) -> None:
        os.close(self._life)
        with contextlib.suppress(OSError):
            os.unlink(self.health)


def member(life: int, parent: int, folder: str, argv: list[str]) -> int:
    """What a worker of several runs. It drains when its parent is gone."""
    from . import main

    def mind() -> None:
        os.read(life, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    OurThread(mind, "revolve-parent").start()
    try:
        return main(["worker", *argv])
    finally:
        if os.getppid() != parent:  # nobody else will
            with contextlib.suppress(OSError):  # another worker's file is still there
                os.rmdir(folder)


class Fleet:
    """`argv` are the arguments of each of `count` workers. Their `metrics` are on ports in a row; 0: free ones."""

    def __init__(
        self, argv: list[str], count: int, grace: float, reload: bool, metrics: tuple[str, int] | None = None
    ) -> None:
        self.argv = without_fleet(argv)
        self.count = count
        self.grace = grace
        self.reload = reload
        self.metrics = metrics
        self.folder = tempfile.mkdtemp(prefix="revolve-fleet-")
        self.members: list[_Member] = []
        self.signals: list[int] = []
        self.turn = Turn()
        self.proved = False  # one of them has been ready: the call is not wrong
        self.code: int | None = None  # what to end with, without a signal
        self._started = 0
        self._pause = 0.0  # seconds before a dead one is replaced
        self._replace_at = 0.0

    def heed(self, number: int, _frame: Any) -> None:
        """A signal."""
        self.signals.append(number)
        self.turn.set()

    def health(self) -> dict[str, Any]:
        """Of all: live unless one of them hangs, ready as soon as one is."""
        found = [each.found() for each in list(self.members)]
        said = [each for each in found if each is not None]
        return {
            "workers": said,
            "state": "draining" if self.signals else "running",
            "live": all(each["age"] < 3 * EVERY and each["live"] for each in said),
            "ready": not self.signals and any(each["age"] < 3 * EVERY and each["ready"] for each in said),
        }

    def serve(self) -> int:
        """Until a signal: the first code of theirs that is not 0."""
        seen = _times() if self.reload else {}
        while not self.signals and self.code is None:
            self._fill()
            self.turn.wait(LOOK)
            self._bury()
            if self.reload and (now := _times()) != seen:
                changed = sorted(path for path in {*now, *seen} if now.get(path) != seen.get(path))
                say(f"revolve worker: {os.path.relpath(changed[0])} changed: starting again")
                seen = now
                self._replace()
        return self.end()

    def _fill(self) -> None:
        while len(self.members) < self.count and time.monotonic() >= self._replace_at:
            self._started += 1
            path = os.path.join(self.folder, str(self._started))
            taken = {each.place for each in self.members}
            place = next(number for number in range(self.count) if number not in taken)
            self.members.append(_Member([*self.argv, "--health-file", path, *self._metrics(place)], path, place))

    def _metrics(self, place: int) -> list[str]:
        if self.metrics is None:
            return []
        host, port = self.metrics
        return ["--metrics", f"{host}:{port + place if port else 0}"]

    def _bury(self) -> None:
        """Notice the dead; a worker that ends at once is started again ever more slowly."""
        for each in list(self.members):
            code = each.process.poll()
            self.proved = self.proved or bool((each.found() or {}).get("ready"))
            if code is None:
                continue
            self.members.remove(each)
            each.bury()
            if self.reload:
                self._replace_at = float("inf")
                say(f"revolve worker: it ended with {code}; a change of a file starts it again")
            elif code in (1, 2) and not self.proved:  # starting it again changes nothing
                self.code = code
            else:
                quick = time.monotonic() - each.born < QUICK
                self._pause = min(LONGEST, max(0.5, self._pause * 2)) if quick else 0.0
                self._replace_at = time.monotonic() + self._pause
                say(f"revolve worker: {each.process.pid} ended with {code}; another one follows")

    def _replace(self) -> None:
        """End all, quickly: what runs goes back to the queue, and the next one runs it."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            self.tell(number)
            deadline = time.monotonic() + (PATIENCE if number is signal.SIGTERM else GRACE)
            while any(each.process.poll() is None for each in self.members) and time.monotonic() < deadline:
                if self.signals:
                    return
                self.turn.wait(0.05)
        for each in self.members:
            each.process.wait()
            each.bury()
        self.members.clear()
        self._replace_at = 0.0

    def tell(self, number: int) -> None:
        """Signal all."""
        for each in self.members:
            if each.process.poll() is None:
                each.process.send_signal(number)

    def end(self) -> int:
        """Wait for the workers to drain; hand further signals on."""
        told = 0
        if self.code is not None:
            self.tell(signal.SIGTERM)
        deadline = time.monotonic() + self.grace + GRACE
        code = self.code or 0
        while self.members:
            while told < len(self.signals):
                self.tell(self.signals[told])
                told += 1
            if time.monotonic() > deadline:
                self.tell(signal.SIGKILL)
            for each in list(self.members):
                found = each.process.poll()
                if found is not None:
                    self.members.remove(each)
                    each.bury()
                    code = code or (found if found >= 0 else 128 - found)
            if self.members:
                self.turn.wait(0.05)
        return code

    def close(self) -> None:
        """Whatever is left is killed."""
        self.tell(signal.SIGKILL)
        for each in self.members:
            each.process.wait()
            each.bury()
        self.members.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def without_fleet(argv: Sequence[str]) -> list[str]:
    """The arguments for one worker of several."""
    kept: list[str] = []
    skip = 0
    for word in argv:
        name = word.partition("=")[0]
        if skip:
            skip -= 1
        elif name in OURS:
            skip = OURS[name] if "=" not in word else 0
        else:
            kept.append(word)
    return kept


def _environment() -> dict[str, str]:
    """The same without what says that there are several: each would start as many again."""
    ours = {f"REVOLVE_WORKER_{flag[2:].upper().replace('-', '_')}" for flag in OURS}
    return {name: value for name, value in os.environ.items() if name not in ours}


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
