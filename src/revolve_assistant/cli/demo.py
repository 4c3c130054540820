"""`revolve demo`: what a newcomer sees first. Real work, real failures, no server, under 15 seconds."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import TaskCancelled, TaskLost
from ..event import Event, Progress
from ..views.escape import printable
from . import demo_work as work
from .flags import Command

if TYPE_CHECKING:
    from ..caller.client import Client
    from ..caller.task import Task

WORKERS = 4
ENOUGH = 60.0  # seconds after which something is wrong

CODE = """\
    from revolve_assistant import Client
    with Client() as client:                           # worker processes
        task = client.submit(thumbnails, "album-1")    # returns at once
        task.add_listener("progress", print)           # heard while it runs
        print(task.result())"""

EXPECTED = Counter(succeeded=4, failed=1, cancelled=1, lost=1)


def main(argv: list[str]) -> int:
    """Tell the story; 0 when every task ended as told."""
    parser = Command("demo", "Process photos in worker processes, and hear from them live. Needs no server.")
    parser.flag("--keep", metavar="DIR", help="make the photos in DIR, a new folder, and leave them there")
    args = parser.read(argv)
    with ExitStack() as stack:
        try:
            if args.keep is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="revolve-demo-")))
            else:
                folder = Path(args.keep)
                folder.mkdir(parents=True)
        except OSError as error:
            print(f"revolve demo: {error.filename}: {error.strerror}", file=sys.stderr)
            return 2
        return _tell(folder, "a temporary folder" if args.keep is None else args.keep)


def _tell(folder: Path, where: str) -> int:
    from ..caller.client import Client
    from ..views.bars import open_bars

    began = time.monotonic()
    albums = work.make_albums(folder)
    with open_bars(file=sys.stdout) as bars, Client("process://", max_workers=WORKERS) as client:
        story = Story(client, bars)
        story.say(f"{len(albums)} albums of 6 photos were made in {where}.")
        story.say(f"7 tasks go to {WORKERS} worker processes; submit() returns at once.")
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
        story.begin(albums)
        story.wait()
    ends = story.ends
    print(f"\n{_summary(ends)}, in {time.monotonic() - began:.1f} s. The code that did it:\n\n{CODE}\n")
    print("Now your own:  revolve run yourmodule:function FILE …    (revolve run --help)")
    if ends != EXPECTED:
        print(f"revolve demo: expected {_summary(EXPECTED)}: please report this", file=sys.stderr)
        return 1
    return 0


def _interrupt(number: int, _frame: object) -> NoReturn:
    """The same as Ctrl-C: the tasks are cancelled, the folder is removed."""
    raise KeyboardInterrupt(number)


def _summary(ends: Counter[str]) -> str:
    return ", ".join(f"{ends[state]} {state}" for state in ("succeeded", "failed", "cancelled", "lost"))


class Story:
    """Starts the tasks, explains what they do at the moment when it happens."""

    def __init__(self, client: Client, bars: Any) -> None:
        self._client = client
        self._bars = bars
        self._tasks: dict[str, Task[str]] = {}
        self._running: set[str] = set()
        self._told = True
        self.ends: Counter[str] = Counter()
        """How the tasks ended so far."""

    def say(self, text: str) -> None:
        """One line of explanation."""
        if self._told:
            self._bars.line(f"* {text}")

    def begin(self, albums: list[Path]) -> None:
        """Submit everything; what follows is told by listeners."""
        first = albums[0] / "photo-1.png"
        self._start("album-1", work.thumbnails, albums[0])
        self._start("soften", work.soften, first)
        self._start("crash", work.crash, first)
        self._start("frame", work.frame, first)
        for album in albums[1:]:
            self._start(album.name, work.thumbnails, album)

    def wait(self) -> None:
        """Block until all tasks have ended."""
        deadline = time.monotonic() + ENOUGH
        for task in self._tasks.values():
            try:
                task.exception(timeout=max(0.0, deadline - time.monotonic()))
            except Exception:  # cancelled, as told; or not in time, and then `ends` shows it
                task.cancel()
            except KeyboardInterrupt:  # leaving the client cancels everything: that is another story
                self._told = False
                raise

    def _start(self, name: str, function: Any, path: Path) -> None:
        task = self._client.options(capture=True).submit(function, path)
        self._tasks[name] = task
        task.add_listener("*", lambda event: self._hear(name, event))
        task.add_done_callback(lambda _: self._end(name, task))

    def _hear(self, name: str, event: Event) -> None:
        match event.name, event.args:
            case "started", _:
                self._running.add(name)
                self._bars.add(name, name)
                self._count()
                if name == "album-1":
                    self.say("Each bar is fed by track() in its process, heard here as events.")
            case "progress", (Progress() as progress,):
                self._bars.update(name, progress)
            case "output", (str(text),):
                self._bars.line(text.rstrip("\n"))
            case "question", (_, text):
                self.say(f'A task asks: "{text}"; task.send("answer", "gold")')
                self._tasks[name].send("answer", "gold")

    def _end(self, name: str, task: Task[str]) -> None:
        state, note = task.state, _note(task)
        self.ends[state] += 1
        self._running.discard(name)
        self._bars.done(name, state, note)
        self._count()
        if name == "album-1":
            self.say("soften would take minutes: task.cancel() asks it to stop, then insists.")
            self._tasks["soften"].cancel()
        elif name == "crash":
            self.say("Its process is gone, and with it that one task. The others go on, and a")
            self.say("new process has taken its place.")
        elif name == "soften":
            self.say("The ladder is flag, exception, SIGTERM, SIGKILL. It did not see the flag.")
        elif state == "failed":
            self.say("A photo is damaged: the exception came back here, the rest goes on.")

    def _count(self) -> None:
        failed = self.ends["failed"] + self.ends["lost"]
        self._bars.overall(sum(self.ends.values()), sum(EXPECTED.values()), len(self._running), failed)


def _note(task: Task[str]) -> str:
    """What there is to say of an end, in a few words."""
    try:
        error = task.exception()
    except TaskCancelled as cancelled:
        return f"by {cancelled.rung}"
    if isinstance(error, TaskLost) and error.signal is not None:
        return f"killed by {signal.Signals(error.signal).name}"
    return printable(str(error if error is not None else task.result()).splitlines()[0])
