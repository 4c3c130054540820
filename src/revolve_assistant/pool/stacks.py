"""Live stacks of running tasks, also of tasks of other processes of this user on this machine.

Each child has `faulthandler` write all its threads' stacks behind its board on SIGUSR1: no help of the interpreter is
needed, so a callable that hangs in C code is shown too.
"""

from __future__ import annotations

import glob
import linecache
import mmap
import os
import re
import signal
import time
from typing import TYPE_CHECKING

from . import board as at

if TYPE_CHECKING:
    from ..engine import Parcel
    from .jobs import Job
    from .supervisor import Supervisor

_LINE = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)$')
_OURS = re.compile(
    r'^  File "[^"]*/revolve_assistant/(pool|running)/|^  File "<string>", line 1 in <module>|^Extension modules'
)
_FORKED = re.compile(r'^  File "[^"]*/revolve_assistant/pool/forked\.py", line \d+ in live$', re.M)  # below: the parent
WAIT = 2.0  # seconds


def ask(pid: int, fd: int) -> str:
    """Have the child `pid` write its stacks behind its board `fd`; returns them with source lines.

    Blocks a few milliseconds, at most `WAIT`. Raises `LookupError` when the process is gone or does not answer.
    """
    before = os.fstat(fd).st_size
    try:
        os.kill(pid, signal.SIGUSR1)
    except ProcessLookupError:
        raise LookupError(f"process {pid} is gone") from None
    deadline = time.monotonic() + WAIT
    last, quiet = before, 0
    while time.monotonic() < deadline and quiet < 5:
        time.sleep(0.001)
        size = os.fstat(fd).st_size
        quiet = quiet + 1 if size == last and size > before else 0
        last = size
    if last == before:
        raise LookupError(f"process {pid} did not answer within {WAIT:g} s: it may be stopped or hang in the kernel")
    return _with_source(without_our_frames(os.pread(fd, last - before, before).decode("utf-8", "replace")))


def of_child(supervisor: Supervisor, parcel: Parcel) -> str:
    """The live stacks of the child that runs the task. Raises `LookupError` when none does."""
    with supervisor.lock:
        job: Job | None = parcel._
        if job is None or job.child is None or not supervisor.is_running(job):
            raise LookupError(f"task {parcel.id} is not running")
        child = job.child
        pid, fd = child.pid, os.dup(child.board_fd)
    try:
        return ask(pid, fd)
    finally:
        os.close(fd)


def find_and_dump(task_id: str) -> str:
    """The stacks of the child that runs `task_id`, whichever process of this user on this machine owns it."""
    found = find(task_id)
    if found is None:
        raise LookupError(f"no child process on this machine runs task {task_id!r} now")
    pid, fd = found
    try:
        return ask(pid, fd)
    finally:
        os.close(fd)


def find(task_id: str) -> tuple[int, int] | None:
    """The process that runs the task, and its board's descriptor, which the caller closes."""
    for link in glob.iglob("/proc/[0-9]*/fd/*"):
        try:
            if not os.readlink(link).startswith(f"/memfd:{at.NAME}"):
                continue
            fd = os.open(link, os.O_RDONLY)
        except OSError:
            continue
        try:
            with mmap.mmap(fd, at.OUTBOX, mmap.MAP_SHARED, mmap.PROT_READ) as page:
                words = memoryview(page)[: at.WORDS * 8].cast("Q")
                busy, forked = words[at.RUNNING] != words[at.ENDED], words[at.PID]
                words.release()
                id = page[at.TASK_ID : at.TASK_ID + at.TASK_ID_SIZE].split(b"\0")[0].decode("ascii", "replace")
        except (OSError, ValueError):
            busy, forked, id = False, 0, ""
        pid = int(link.split("/")[2])
        # the supervisor holds the board too: the child is the one that leads its own session
        if busy and id == task_id and (pid == forked if forked else os.getsid(pid) == pid and _is_child(pid)):
            return pid, fd
        os.close(fd)
    return None


def _is_child(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"revolve_assistant.pool.child" in file.read()
    except OSError:
        return False


def without_our_frames(text: str) -> str:
    """Leave out what this library's own code has on the stacks, and threads that are nothing else."""
    kept: list[str] = []
    for block in text.split("\n\n"):
        lines = [line for line in _FORKED.split(block)[0].splitlines() if not _OURS.search(line)]
        if any(line.startswith("  File") for line in lines) or "File" not in block:
            kept.append("\n".join(lines))
    return "\n\n".join(kept)


def _with_source(text: str) -> str:
    lines = []
    for line in text.splitlines():
        lines.append(line)
        match = _LINE.match(line)
        if match:
            source = linecache.getline(match["file"], int(match["line"])).strip()
            if source:
                lines.append(f"    {source}")
    return "\n".join(lines) + "\n"
