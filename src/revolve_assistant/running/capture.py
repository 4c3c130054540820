"""Turns what a callable prints, logs, warns and draws into events, around one task in a child (`capture=True`).

    print, sys.stdout.write ──▶ _Text ──────┐            output(text)
    print(file=sys.stderr)  ──▶ _Text ──────┤            error_output(text)
    logging ──▶ _Records (on the root) ─────┼──▶ emit    log(level, logger, text)
    warnings.showwarning ───────────────────┤            log("WARNING", "py.warnings", text)
    tqdm.display ──▶ _Bar ──────────────────┘            progress(Progress)

Texts are lossless: all `output` texts joined are what was written, newlines included. What subprocesses and C
libraries write to file descriptors 1 and 2 is not captured: it goes where the child's own goes.

The hooks of the process (`showwarning`, `StreamHandler.emit`, `basicConfig`, tqdm) come with the first capture and go
with the last; each finds the capture that is meant. Captures of several threads may end in any order: a dead one lets
everything through, so what the callable left behind goes on writing to the real stream. So does a fork of the child.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib.abc
import io
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import PathFinder
from typing import Any

from ..event import Progress

EVENT_BYTES = 256 * 1024  # the most text in one event, encoded
SAFE = EVENT_BYTES // 6  # characters that fit in any case: an escaped surrogate takes six bytes
PARTIAL = 4096  # characters of an unfinished line that are kept for its rest
FLUSH_EVERY = 0.05  # seconds between unfinished lines sent because the callable said flush()


class _Capture:
    """One capture: whom it is for, where it sends, and whether it still lives."""

    def __init__(
        self, emit: Callable[..., object], thread_ident: int | None, mine: Callable[[], bool] | None, tee: bool
    ) -> None:
        self._emit = emit
        self.thread_ident = thread_ident
        self._mine = mine
        self.tee = tee
        self.alive = True
        self.bars: dict[int, weakref.ref[Any]] = {}  # tqdm bars not closed, by id, outermost first
        self.records = _Records(self)
        self._inside = threading.local()

    def wants(self) -> bool:
        """Whether what this thread says now is to become an event. False within `emit`: it must not hear itself."""
        if not self.alive or getattr(self._inside, "now", False):
            return False
        if self._mine is not None:
            return self._mine()
        return self.thread_ident is None or self.thread_ident == threading.get_ident()

    def emit(self, *args: Any) -> None:
        self.unheard(self._emit, *args)

    def unheard(self, call: Callable[..., object], *args: Any) -> None:
        """Make a call that may print or log, none of which is to become an event."""
        self._inside.now = True
        try:
            call(*args)
        finally:
            self._inside.now = False


class _Stream(io.IOBase):
    """What the text stream and its bytes have in common."""

    def __init__(self, capture: _Capture, real: Any, name: str) -> None:
        self.capture, self._real, self.name = capture, real, name

    @property
    def real(self) -> Any:
        """What stands behind, with ended captures passed over; may be None, as `sys.stdout` may."""
        real = self._real
        while isinstance(real, _Stream) and not real.capture.alive:
            real = real._real
        return real

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self.real is None:
            raise io.UnsupportedOperation("fileno")
        return int(self.real.fileno())

    def close(self) -> None:
        """Never closes: the next task needs it."""


class _Text(_Stream, io.TextIOBase):
    """Stands in for `sys.stdout`: gathers writes to whole lines and sends them as one event.

    An unfinished line is sent once it is longer than 4 KiB, at the end, and on `flush()` when the last one is 50 ms
    ago (so `print(token, end="", flush=True)` is live). Blocks as `emit` does.
    """

    encoding, errors, mode, line_buffering = "utf-8", "backslashreplace", "w", True

    def __init__(self, capture: _Capture, event: str, real: Any, name: str) -> None:
        super().__init__(capture, real, name)
        self._event = event
        self._parts: list[str] = []
        self._size = 0  # characters in _parts
        self._flushed = 0.0
        self._lock = threading.RLock()
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.buffer = _Bytes(capture, self, name)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if not self.capture.wants():
            if self.real is not None:
                self.real.write(text)
            return len(text)
        if self.capture.tee and self.real is not None:
            self.capture.unheard(self.real.write, text)
        end = text.rfind("\n") + 1
        with self._lock:
            if end == len(text) > 0:
                self._send(text)
            elif end:
                self._send(text[:end])
            if end < len(text):
                self._parts.append(text[end:])
                self._size += len(text) - end
                if self._size > PARTIAL:
                    self._send("")
        return len(text)

    def _send(self, text: str) -> None:
        """Send the unfinished line that was kept, and `text`, in as few events as fit."""
        if self._parts:
            text = "".join(self._parts) + text
            self._parts, self._size = [], 0
        start = 0
        while start < len(text):
            piece = text[start : start + EVENT_BYTES]  # the same object, where it fits
            piece = piece if piece.isascii() else piece[:SAFE]
            if start + len(piece) < len(text):
                piece = piece[: piece.rfind("\n") + 1] or piece
            start += len(piece)
            self.capture.emit(self._event, sound(piece))

    def flush(self) -> None:
        wants = self.capture.wants()
        if (self.capture.tee or not wants) and self.real is not None:
            self.real.flush()
        if wants and self._parts and (now := time.monotonic()) - self._flushed >= FLUSH_EVERY:
            self._flushed = now
            with self._lock:
                self._send("")

    def finish(self) -> None:
        """The task ended: send what is left."""
        with self._lock:
            if (tail := self.decoder.decode(b"", True)) or self._parts:
                self._send(tail)

    def reconfigure(self, **settings: object) -> None:
        """Accepted and without effect, as there is nothing to encode."""


class _Bytes(_Stream, io.BufferedIOBase):
    """`sys.stdout.buffer`: decodes UTF-8, what is wrong becomes U+FFFD."""

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), EVENT_BYTES):
            self._real.write(self._real.decoder.decode(view[start : start + EVENT_BYTES]))
        return len(view)

    def flush(self) -> None:
        self._real.flush()


def sound(text: str) -> str:
    """`text` without lone surrogates (file names that are no UTF-8 have them): they cannot be encoded."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class _Records(logging.Handler):
    """The root logger's handler. Takes no lock: `emit` may block, and may log from another thread."""

    _formatter = logging.Formatter("%(message)s")  # with traceback and stack

    def __init__(self, capture: _Capture) -> None:
        self.capture = capture
        super().__init__()

    def createLock(self) -> None:  # noqa: N802 - logging's name
        self.lock = None

    def handle(self, record: logging.LogRecord) -> Any:
        """As `Handler.handle`, without a lock: from 3.13 on that one takes it unasked."""
        kept = self.filter(record)
        if kept:
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return kept

    def emit(self, record: logging.LogRecord) -> None:
        # One event a record, whether it comes by the root or by a StreamHandler on our stderr, or by both.
        if not self.capture.wants() or record.__dict__.get("_revolve") is self.capture:
            return
        record.__dict__["_revolve"] = self.capture
        try:
            text = self._formatter.format(record)
        except Exception:
            self.handleError(record)
        else:
            _log(self.capture, record.levelname, record.name, text)
        if self.capture.tee and logging.lastResort is not None and self._alone(record):
            logging.lastResort.handle(record)

    @staticmethod
    def _alone(record: logging.LogRecord) -> bool:
        """Whether nobody else handles the record, so that without us it would go to stderr."""
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            if any(not isinstance(handler, _Records) for handler in logger.handlers):
                return False
            logger = logger.parent if logger.propagate else None
        assert logging.lastResort is not None
        return record.levelno >= logging.lastResort.level


def _log(capture: _Capture, level: str, logger: str, text: str) -> None:
    if len(text) > SAFE:
        text = f"{text[:SAFE]} … ({len(text) - SAFE} more characters)"
    capture.emit("log", level, logger, sound(text))


class _BarFile(_Stream, io.TextIOBase):
    """The `file` of a captured bar: swallows the drawing. Claims a terminal, for bars that draw only there."""

    def write(self, text: str) -> int:
        return len(text)

    def isatty(self) -> bool:
        return True


def _bar_progress(bar: Any, bars: Sequence[weakref.ref[Any]]) -> Progress:
    """The outermost bar says how far the task is; a bar within speaks by the message."""
    outer = next(live for live in (*(other() for other in bars), bar) if live is not None)
    total = float(outer.total) if outer.total else None
    fraction = max(0.0, min(1.0, outer.n / total)) if total else None
    words = [str(text).removesuffix(": ") for text in (outer.desc, outer.postfix) if text]
    if bar is not outer:
        words.append(" ".join(filter(None, [(bar.desc or "").removesuffix(": "), f"{bar.n}/{bar.total or '?'}"])))
    return Progress(fraction, float(outer.n), total, sound(" · ".join(words)) or None)


def _patch_tqdm() -> None:
    kind = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    if kind is None or not _active or any(patched is kind for patched, _, _ in _undo):
        return
    first, display, close = kind.__init__, kind.display, kind.close

    def captured(bar: Any) -> _Capture | None:
        file = getattr(getattr(bar, "fp", None), "_wrapped", None)
        return file.capture if isinstance(file, _BarFile) and file.capture.alive else None

    def begin(self: Any, *args: Any, **settings: Any) -> None:
        file = args[4] if len(args) > 4 else settings.get("file")
        capture = file.capture if isinstance(file, _Text) else _current() if file is None else None
        if capture is not None and capture.wants():
            file = _BarFile(capture, None, "<tqdm>")
            if len(args) > 4:
                args = (*args[:4], file, *args[5:])
            else:
                settings["file"] = file
        first(self, *args, **settings)

    def show(self: Any, msg: str | None = None, pos: int | None = None) -> Any:
        capture = captured(self)
        if capture is None:
            return display(self, msg, pos)
        capture.bars[id(self)] = weakref.ref(self)
        if msg != "" or self.disable:  # "" erases a bar; at the end of one that is not to stay, still say how far
            capture.emit("progress", _bar_progress(self, list(capture.bars.values())))
        return True

    def end(self: Any) -> None:
        close(self)
        if (capture := captured(self)) is not None:
            capture.bars.pop(id(self), None)

    _replace(kind, __init__=begin, display=show, close=end)


class _TqdmFinder(importlib.abc.MetaPathFinder):
    """Patches tqdm when it gets imported while a capture lives."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        spec = PathFinder.find_spec(name, path, target) if name == "tqdm.std" else None
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_patch(module: Any) -> None:
                run(module)
                _patch_tqdm()

            spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]  # a loader is one module's own
        return spec


# ---------------------------------------------------------------- the hooks of the process

_hooks = threading.RLock()
_active: list[_Capture] = []
_undo: list[tuple[Any, str, Any]] = []
_opened: list[int] = []  # the level of an unconfigured root logger, while it is opened to INFO
_finder = _TqdmFinder()


def _current() -> _Capture | None:
    """The newest capture that wants what this thread says."""
    return next((capture for capture in reversed(_active) if capture.wants()), None)


def _replace(owner: Any, **new: Any) -> None:
    for name, value in new.items():
        _undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)


def _hook_in() -> None:
    configure, stream_emit, show = logging.basicConfig, logging.StreamHandler.emit, warnings.showwarning

    def configure_anew(**settings: Any) -> None:
        """The callable's basicConfig must find the root as if we were not there, else it does nothing."""
        ours = [handler for handler in root.handlers if isinstance(handler, _Records)]
        root.handlers[:] = [handler for handler in root.handlers if handler not in ours]
        configure(**settings)
        root.handlers.extend(ours)

    def emit(self: Any, record: logging.LogRecord) -> None:
        capture = self.stream.capture if isinstance(self.stream, _Text) else None
        if capture is None or not capture.wants():
            stream_emit(self, record)
            return
        capture.records.emit(record)
        if capture.tee:
            capture.unheard(stream_emit, self, record)

    def showwarning(message: Any, category: Any, *where: Any, file: Any = None, line: Any = None) -> None:
        filename, lineno, file, line = (*where, file, line)[:4] if len(where) < 4 else where
        capture = _current() if file is None else None
        if capture is None:
            show(message, category, filename, lineno, file, line)
        else:
            if capture.tee:
                capture.unheard(show, message, category, filename, lineno, file, line)
            text = warnings.formatwarning(message, category, filename, lineno, line)
            _log(capture, "WARNING", "py.warnings", text.rstrip("\n"))

    root = logging.getLogger()
    if not root.handlers and root.level > logging.INFO:
        _opened.append(root.level)
        root.setLevel(logging.INFO)
    _replace(logging, basicConfig=configure_anew)
    _replace(logging.StreamHandler, emit=emit)
    _replace(warnings, showwarning=showwarning)
    sys.meta_path.insert(0, _finder)
    _patch_tqdm()


def _hook_out() -> None:
    while _undo:
        setattr(*_undo.pop())
    if _opened and logging.getLogger().level == logging.INFO:  # the callable set none
        logging.getLogger().setLevel(_opened[0])
    _opened.clear()
    with contextlib.suppress(ValueError):
        sys.meta_path.remove(_finder)


def _after_fork() -> None:
    """A fork of the child is not the task: it must not write into the task's pipe."""
    _hooks._at_fork_reinit()  # type: ignore[attr-defined] # another thread may have held it
    for capture in _active:
        capture.alive = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def capturing(
    emit: Callable[..., object],
    *,
    thread_ident: int | None = None,
    mine: Callable[[], bool] | None = None,
    tee: bool = False,
) -> Iterator[None]:
    """While inside, what the callable prints, logs, warns and draws with tqdm goes to `emit(name, *args)`.

    All threads count, or only the one with `thread_ident`, or where `mine()` says so. With `tee`, all but bars goes its
    usual way as well. A root logger without handlers whose level is above INFO is opened to INFO meanwhile; a
    configured one keeps its level, and a level that the callable sets stays. `emit` may block, and then so does who
    prints; what it raises, `print` raises. What `emit` itself prints or logs goes the usual way. Leaving sends
    unfinished lines and restores everything, whatever the callable put in its place.
    """
    capture, root = _Capture(emit, thread_ident, mine, tee), logging.getLogger()
    out = _Text(capture, "output", sys.stdout, "<stdout>")
    err = _Text(capture, "error_output", sys.stderr, "<stderr>")
    with _hooks:
        _active.append(capture)
        if len(_active) == 1:
            _hook_in()
        root.addHandler(capture.records)
        sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        try:
            out.finish()
            err.finish()
        finally:
            with _hooks:
                capture.alive = False
                for name, stream in (("stdout", out), ("stderr", err)):
                    if (thread_ident is None and mine is None) or getattr(sys, name) is stream:
                        setattr(sys, name, stream.real)
                root.removeHandler(capture.records)
                _active.remove(capture)
                if not _active:
                    _hook_out()
