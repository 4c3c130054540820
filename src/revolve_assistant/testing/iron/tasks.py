"""IronWorker's half of the stand-in: tasks, and their run as the platform would have it.

    queued ─▶ preparing ─▶ running ─▶ complete (exit code 0), error (any other), timeout (killed)
       └──────────┴───────────┴─────▶ cancelled (killed)

A code package is a command of this machine in place of an image. It gets the payload, its configuration and a folder to
write into by environment variables, and has nothing else of this process's environment than PATH, LANG and TMPDIR.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import IO, Any

from .clock import Clock
from .queues import Problem

NEVER = "0001-01-01T00:00:00Z"
OVER = ("complete", "error", "cancelled", "timeout", "killed")
_PASSED = ("PATH", "LANG", "TMPDIR")
_CLOSING = 10.0  # seconds


class Code:
    """A code package: what is run for a task."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], config: Any) -> None:
        self.id = os.urandom(12).hex()
        self.name, self.command, self.env, self.config = name, list(command), dict(env), config
        self.rev = 1

    def shown(self, project: str) -> dict[str, Any]:
        return {"id": self.id, "project_id": project, "name": self.name, "rev": self.rev, "latest_change": NEVER}


class Task:
    """One task. Its thread runs it."""

    def __init__(self, code: Code, wanted: Mapping[str, Any], now: float) -> None:
        self.id = os.urandom(12).hex()
        self.code = code
        self.payload: str = wanted.get("payload") or ""
        self.priority = wanted.get("priority") or 0
        self.timeout = wanted.get("timeout") or 3600
        self.delay = wanted.get("delay") or 0
        self.label, self.cluster = wanted.get("label"), wanted.get("cluster")
        self.status = "queued"
        self.created = self.updated = now
        self.began = self.ended = 0.0
        self.percent: int | None = None
        self.msg: str | None = None
        self.out, self.both = bytearray(), bytearray()
        self.process: subprocess.Popen[bytes] | None = None
        self.thread: threading.Thread | None = None

    def shown(self, project: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            "id": self.id, "project_id": project, "code_id": self.code.id, "code_history_id": self.code.id,
            "code_name": self.code.name, "code_rev": str(self.code.rev), "status": self.status,
            "created_at": _date(self.created), "updated_at": _date(self.updated), "start_time": _date(self.began),
            "end_time": _date(self.ended), "timeout": self.timeout, "delay": self.delay, "priority": self.priority,
            "payload": self.payload, "log_size": len(self.both),
        }  # fmt: skip
        if self.ended:
            found["duration"] = round(1000 * (self.ended - self.began))
        more = {"label": self.label, "cluster": self.cluster, "msg": self.msg, "percent": self.percent}
        return found | {name: value for name, value in more.items() if value is not None}


class IronTasks:
    """The tasks and code packages of a project. Thread-safe. `slots` tasks run at once."""

    def __init__(self, clock: Clock, project: str, slots: int) -> None:
        self.changed = threading.Condition()
        self._clock, self._project, self._slots = clock, project, slots
        self._codes: dict[str, Code] = {}
        self._tasks: dict[str, Task] = {}
        self._schedules: dict[str, dict[str, Any]] = {}
        self._folder = tempfile.mkdtemp(prefix="iron-")
        self._running = 0
        self._closing = False

    # --- code packages

    def code(self, name: str, command: Sequence[str], env: Mapping[str, str], config: Any) -> Code:
        with self.changed:
            known = self._codes.get(name)
            code = Code(name, command, env, config)
            if known is not None:
                code.id, code.rev = known.id, known.rev + 1
                if not command:
                    code.command, code.env = known.command, known.env
            self._codes[name] = code
            return code

    def codes(self) -> list[dict[str, Any]]:
        with self.changed:
            return [code.shown(self._project) for code in self._codes.values()]

    def code_of(self, id: str) -> Code:
        with self.changed:
            for code in self._codes.values():
                if code.id == id:
                    return code
        raise Problem(404, "Code package not found")

    def drop_code(self, id: str) -> None:
        code = self.code_of(id)
        with self.changed:
            self._codes.pop(code.name, None)

    # --- tasks

    def queue(self, wanted: Sequence[Mapping[str, Any]]) -> list[str]:
        with self.changed:
            made = [self._make(each) for each in wanted]
            for task in made:
                self._tasks[task.id] = task
                task.thread = threading.Thread(target=self._live, args=(task,), name=f"iron-task-{task.id[:6]}")
                task.thread.start()
            return [task.id for task in made]

    def _make(self, wanted: Mapping[str, Any]) -> Task:
        code = self._codes.get(wanted.get("code_name") or "")
        if code is None:
            raise Problem(404, "Code package not found")
        payload = wanted.get("payload") or ""
        if not isinstance(payload, str) or len(payload.encode()) > 64 << 10:
            raise Problem(400, "Payload must be a string of at most 64 KB")
        if not 0 <= (wanted.get("timeout") or 0) <= 3600:
            raise Problem(400, "Timeout must be at most 3600 seconds")
        if not 0 <= (wanted.get("delay") or 0) <= 604_800:
            raise Problem(400, "Delay must be at most 604800 seconds")
        if (wanted.get("priority") or 0) not in (0, 1, 2):
            raise Problem(400, "Priority must be 0, 1 or 2")
        return Task(code, wanted, self._clock.now())

    def get(self, id: str) -> Task:
        with self.changed:
            task = self._tasks.get(id)
        if task is None:
            raise Problem(404, "Task not found")
        return task

    def listed(self, page: int, per_page: int, code_name: str, statuses: Sequence[str]) -> list[dict[str, Any]]:
        with self.changed:
            every = [task for task in self._tasks.values() if not code_name or task.code.name == code_name]
        every = [task for task in reversed(every) if not statuses or task.status in statuses]
        return [task.shown(self._project) for task in every[page * per_page : (page + 1) * per_page]]

    def progress(self, id: str, percent: Any, msg: Any) -> None:
        task = self.get(id)
        if not isinstance(percent, int) or not 0 <= percent <= 100:
            raise Problem(400, "percent must be from 0 to 100")
        with self.changed:
            task.percent, task.msg, task.updated = percent, msg or None, self._clock.now()

    def cancel(self, id: str) -> None:
        task = self.get(id)
        with self.changed:
            if task.status in OVER:
                raise Problem(400, "Task has ended")
            self._end(task, "cancelled")
        _kill(task.process)

    def log(self, id: str, stdout: bool) -> bytes:
        task = self.get(id)
        if task.status not in OVER:
            raise Problem(404, "Log not found")
        if task.thread is not None:
            task.thread.join(_CLOSING)
        return bytes(task.out if stdout else task.both)

    def wait(self, id: str, timeout: float) -> str:
        """The status once it has ended, or after `timeout` seconds; its processes are gone then."""
        task = self.get(id)
        if task.thread is not None:
            task.thread.join(timeout)
        return task.status

    def close(self) -> None:
        """Kill what runs."""
        with self.changed:
            self._closing = True
            tasks = list(self._tasks.values())
            self.changed.notify_all()
        for task in tasks:
            _kill(task.process)
        for task in tasks:
            if task.thread is not None:
                task.thread.join(_CLOSING)
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- schedules: kept, not run

    def schedule(self, wanted: Sequence[dict[str, Any]]) -> list[str]:
        with self.changed:
            for each in wanted:
                if each.get("code_name") not in self._codes:
                    raise Problem(404, "Code package not found")
                if each.get("run_every") is not None and each["run_every"] < 60:
                    raise Problem(400, "run_every must be at least 60 seconds")
            ids = [os.urandom(12).hex() for _ in wanted]
            for id, each in zip(ids, wanted, strict=True):
                self._schedules[id] = {**each, "id": id, "project_id": self._project, "status": "scheduled"}
            return ids

    def schedules(self) -> list[dict[str, Any]]:
        with self.changed:
            return list(self._schedules.values())

    def schedule_of(self, id: str) -> dict[str, Any]:
        with self.changed:
            if id not in self._schedules:
                raise Problem(404, "Schedule not found")
            return self._schedules[id]

    def cancel_schedule(self, id: str) -> None:
        self.schedule_of(id)["status"] = "cancelled"

    # --- the run, on a thread of its own

    def _live(self, task: Task) -> None:
        due = task.created + task.delay
        with self.changed:
            while not self._closing and task.status == "queued":
                now = self._clock.now()
                if now >= due and self._running < self._slots:
                    self._running += 1
                    task.status, task.updated = "preparing", now
                    break
                self._clock.wait(self.changed, max(due - now, 0.0) or 3600.0)
            else:
                return
        try:
            self._run(task)
        finally:
            with self.changed:
                self._running -= 1
                self.changed.notify_all()

    def _run(self, task: Task) -> None:
        folder = os.path.join(self._folder, task.id)
        os.mkdir(folder, 0o700)
        paths = {"PAYLOAD_FILE": os.path.join(folder, ".payload"), "CONFIG_FILE": os.path.join(folder, ".config")}
        texts = {"PAYLOAD_FILE": task.payload, "CONFIG_FILE": json.dumps(task.code.config or {})}
        for name, path in paths.items():
            with open(path, "w", encoding="utf-8") as file:
                file.write(texts[name])
        environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
        environment |= {"HOME": folder, **task.code.env, **paths, "TASK_ID": task.id, "TASK_DIR": folder}
        with self.changed:
            if self._closing or task.status != "preparing":
                return
            try:
                task.process = subprocess.Popen(
                    task.code.command,
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            except (OSError, IndexError) as error:
                task.msg = f"the command of {task.code.name} cannot be run: {error}"
                self._end(task, "error")
                return
            task.status, task.began = "running", self._clock.now()
            task.updated = task.began
            self.changed.notify_all()
        self._watch(task, task.process)
        shutil.rmtree(folder, ignore_errors=True)

    def _watch(self, task: Task, process: subprocess.Popen[bytes]) -> None:
        readers = [
            threading.Thread(target=_read, args=(process.stdout, (task.out, task.both)), name="iron-out"),
            threading.Thread(target=_read, args=(process.stderr, (task.both,)), name="iron-err"),
        ]
        for reader in readers:
            reader.start()
        began = time.monotonic()
        try:
            code: int | None = process.wait(task.timeout)
        except subprocess.TimeoutExpired:
            code = None
        _kill(process)  # what it left behind too
        process.wait()
        for reader in readers:
            reader.join()
        with self.changed:
            if task.status == "running":
                timed_out = code is None and time.monotonic() - began >= task.timeout
                self._end(task, "timeout" if timed_out else "complete" if code == 0 else "error")

    def _end(self, task: Task, status: str) -> None:
        task.status = status
        task.ended = task.updated = self._clock.now()
        task.began = task.began or task.ended
        self.changed.notify_all()


def _read(stream: IO[bytes] | None, into: Sequence[bytearray]) -> None:
    if stream is not None:
        with stream:
            for line in stream:
                for each in into:
                    each += line


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else NEVER
