"""The command of `revolve report`, from its start to its end: pipes, signals, cancel."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import Any

from ..errors import CancelSignal
from ..event import Progress
from ..pool.threads import OurThread
from ..running.report import Reporting
from .run_output import write_all

CHUNK = 64 << 10  # bytes of one read
PIECE = 32 << 10  # characters of one event
PARTIAL = 0.05  # seconds after which a line that was begun is sent without its end
LAST_LINES = 10  # of stderr, that a failure carries
AFTER = 0.2  # seconds that output is waited for once the command has ended, if somebody else holds its pipes

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)

_PERCENT = r"(?P<percent>\d{1,3}(?:\.\d+)?)\s?%"
_COUNT = r"[\[(]?\s*(?P<done>\d+)\s*(?:/|of)\s*(?P<total>\d+)\b[\])]?"
_BEGINS = re.compile(rf"\s*(?:{_PERCENT}(?:\s|$|[\[|:(])|{_COUNT}(?:\s|$|:))")
_DRAWN = re.compile(rf"(?<![\d.]){_PERCENT}")


def progress_in(text: str, drawn: bool) -> Progress | None:
    """How far a line says that it is: it begins so (`25% …`, `[2/8] …`), or is drawn over and has a `25%` in it."""
    found = _BEGINS.match(text) or (_DRAWN.search(text) if drawn else None)
    if found is None:
        return None
    groups = found.groupdict()
    if groups["percent"] is not None:
        fraction = float(groups["percent"]) / 100
        message = (text[: found.start("percent")] + " " + text[found.end() :]).strip(" \t|:[]()-")
        return Progress(fraction, None, None, message[:200] or None) if fraction <= 1 else None
    done, total = int(groups["done"]), int(groups["total"])
    if not 0 < total < 1 << 53 or done > total:
        return None
    return Progress(done / total, done, total, text[found.end() :].strip(" \t|:-")[:200] or None)


class Stopped(CancelSignal):
    """A cancel stopped the command, and by this signal."""

    def __init__(self, rung: str) -> None:
        super().__init__(f"stopped by {rung}")
        self.rung = rung


class Reported:
    """One run of a command. `stopped_by` is the signal that a cancel sent to it last."""

    def __init__(
        self, running: Reporting, words: list[str], environment: dict[str, str], grace: float, progress: bool
    ) -> None:
        self._running = running
        self._words = words
        self._environment = environment
        self._grace = grace
        self._progress = progress
        # On a terminal it stays in our group, so that it may read from there; else it has one of its own.
        self._own_group = not any(map(os.isatty, (0, 1, 2)))
        self._process: subprocess.Popen[bytes] | None = None
        self._kill_at = 0.0
        self._cancelled = False
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self.stopped_by = ""

    def run(self) -> int:
        """Run to its end; the exit code, negative for a signal. Raises `OSError` where it cannot be run."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        try:
            with self._signals(wake_write):
                self._process = subprocess.Popen(
                    self._words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=self._environment,
                    restore_signals=True, process_group=0 if self._own_group else None,
                )  # fmt: skip
                with self._process as process:
                    OurThread(self._hear_cancel, "revolve-cancel", (wake_write,)).start()
                    self._pump(process, wake_read)
                    return process.wait()
        finally:
            self._process = None
            os.close(wake_read)
            os.close(wake_write)

    def error(self, code: int) -> subprocess.CalledProcessError:
        """What a failure is told as. The arguments stay here: they may hold what is nobody's business."""
        error = subprocess.CalledProcessError(code, os.path.basename(self._words[0]))
        if self._last:
            error.add_note("".join(self._last).rstrip("\n"))
        return error

    # --- what it says

    def _pump(self, process: subprocess.Popen[bytes], wake: int) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        with selectors.DefaultSelector() as selector:
            streams = [
                _Stream(self, process.stdout.fileno(), 1, "output"),
                _Stream(self, process.stderr.fileno(), 2, "error_output"),
            ]
            for stream in streams:
                selector.register(stream.source, selectors.EVENT_READ, stream)
            selector.register(wake, selectors.EVENT_READ, None)
            until = 0.0  # when to stop reading, once it has ended
            while True:
                ended = process.poll() is not None
                now = monotonic()
                if ended and (not any(stream.open for stream in streams) or 0 < until <= now):
                    break
                if ended and not until:
                    until = now + AFTER
                self._stop(now)
                due = [stream.due for stream in streams if stream.due]
                if ended:
                    due.append(until)
                elif self._kill_at:
                    due.append(self._kill_at)
                for key, _ in selector.select(max(0.0, min(due) - now) if due else None):
                    if key.data is None:
                        with contextlib.suppress(BlockingIOError):
                            os.read(wake, 4096)
                    elif not key.data.read():
                        selector.unregister(key.fileobj)
                now = monotonic()
                for stream in streams:
                    if stream.due and stream.due <= now:
                        stream.flush()
            for stream in streams:
                stream.finish()

    def say(self, event: str, text: str) -> None:
        """Whole lines, or the beginning of one, of a stream."""
        for start in range(0, len(text), PIECE):
            self._running.emit(event, text[start : start + PIECE])
        if event == "error_output":
            self._last.extend(text.splitlines(keepends=True))

    def look(self, line: str, drawn: bool) -> None:
        """Whether a line says how far it is."""
        if self._progress and ("%" in line or "/" in line or " of " in line):
            progress = progress_in(line, drawn)
            if progress is not None:
                self._running.progress(progress)

    # --- what it is told

    def _hear_cancel(self, wake: int) -> None:
        try:
            while True:
                self._running.receive()  # a command takes no messages
        except CancelSignal:
            self._cancelled = True
            with contextlib.suppress(OSError):  # it has ended meanwhile
                os.write(wake, b"c")

    def _stop(self, now: float) -> None:
        if self._cancelled and not self.stopped_by:
            self.stopped_by = "SIGTERM"
            self._kill_at = now + self._grace
            self._send(signal.SIGTERM)
        elif self._kill_at and now >= self._kill_at:
            self._kill_at = 0.0
            self.stopped_by = "SIGKILL"
            self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                (os.killpg if self._own_group else os.kill)(process.pid, number)

    @contextlib.contextmanager
    def _signals(self, wake: int) -> Iterator[None]:
        """Pass signals on. What was ignored from outside (nohup) stays so, for the command too."""

        def pass_on(number: int, _frame: Any) -> None:
            if self._own_group or number not in FROM_TERMINAL:  # else the terminal has told it already
                self._send(number)

        before: dict[int, Any] = {}
        for each in PASSED_ON:
            if signal.getsignal(each) is not signal.SIG_IGN:
                before[each] = signal.signal(each, pass_on)
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        woken = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)


class _Stream:
    """One pipe of the command: passes bytes on as they are, tells them as text, in whole lines where they are soon."""

    def __init__(self, to: Reported, source: int, target: int, event: str) -> None:
        self.source = source
        self.open = True
        self.due = 0.0  # when to send a line that was begun, monotonic seconds; 0: there is none
        self._to = to
        self._target = target
        self._event = event
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""  # begun, and not sent

    def read(self) -> bool:
        """Take what is there; False: it is closed."""
        data = os.read(self.source, CHUNK)
        if not data:
            self.open = False
            return False
        with contextlib.suppress(OSError):  # nobody reads ours any more: the command is none the worse
            write_all(self._target, data)
        self._take(self._decoder.decode(data))
        return True

    def _take(self, text: str) -> None:
        text = self._line + text
        end = text.rfind("\n") + 1
        whole, self._line = text[:end], text[end:]
        if whole:
            self._whole(whole)
        if "\r" in self._line:  # drawn over again and again: only how far it is counts
            pieces = [piece for piece in self._line.split("\r") if piece.strip()]
            if pieces:
                self._to.look(pieces[-1], True)
                self._line = self._line[self._line.rfind("\r") :]
        if self._line and not self.due:
            self.due = monotonic() + PARTIAL
        elif not self._line:
            self.due = 0.0

    def _whole(self, text: str) -> None:
        lines = text.split("\n")
        for number, line in enumerate(lines):
            drawn = "\r" in line[:-1]
            if drawn:  # only what it came to in the end is worth keeping
                lines[number] = line = next((each for each in reversed(line.split("\r")) if each.strip()), "")
            self._to.look(line, drawn)
        self._to.say(self._event, "\n".join(lines))

    def flush(self) -> None:
        """Send what was begun, unless it is drawn over."""
        self.due = 0.0
        if self._line and "\r" not in self._line:
            self._to.say(self._event, self._line)
            self._line = ""

    def finish(self) -> None:
        """There will be no more."""
        rest = self._line + self._decoder.decode(b"", True)
        self._line = ""
        self.due = 0.0
        if rest:
            self._whole(rest)
