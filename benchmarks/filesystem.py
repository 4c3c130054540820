"""The filesystem Messenger against a plain loop that appends to a file and tails it, in turn in one run.

The plain loop writes a length and the message with one `os.write`; its reader reads what has been added, and sleeps in
inotify when there is nothing. It has no checks, no channels, no cap, and one writer. In both a child process writes.
"""

from __future__ import annotations

import argparse
import os
import platform
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from _measure import Line, in_turn, percentile, quietness, table

from revolve_assistant.providers.filesystem import Messenger
from revolve_assistant.providers.filesystem.watch import Inotify

SIZE = 100  # bytes of a message
PAUSE = 0.002  # seconds between paced messages
LENGTH = struct.Struct("<I")

Send = Callable[[list[bytes]], object]


# ---- the child: argv is "ours" or "peer", the place, how many, how many at a time, seconds between


def child(kind: str, place: str, count: int, batch: int, pause: float) -> None:
    if kind == "ours":
        messenger = Messenger(place)
        messenger.open()

        def send(frames: list[bytes]) -> None:
            messenger.write([("a", frame) for frame in frames])
    else:
        fd = os.open(place, os.O_WRONLY | os.O_APPEND)

        def send(frames: list[bytes]) -> None:
            os.write(fd, b"".join([LENGTH.pack(len(frame)) + frame for frame in frames]))

    frames = [b"x" * SIZE] * batch
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    for _ in range(count // batch):
        if pause:
            time.sleep(pause)
            frames = [b"%d" % time.perf_counter_ns()]
        send(frames)
    print(time.perf_counter() - start, flush=True)


@contextmanager
def writer(kind: str, place: Path, count: int, batch: int, pause: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, "--child", kind, str(place), str(count), str(batch), str(pause)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.stdin.write("go\n")
        process.stdin.flush()
        yield process


# ---- the readers: lists of messages as they come


def ours(messenger: Messenger) -> Iterator[list[bytes]]:
    cursors = {"a": b""}
    while True:
        batch = messenger.read(cursors, limit=1000, wait=5.0)
        if batch.messages:
            cursors["a"] = batch.messages[-1].cursor
        yield [message.frame for message in batch.messages]


def peer(path: Path) -> Iterator[list[bytes]]:
    inotify = Inotify.open()
    assert inotify is not None
    inotify.add(str(path.parent))
    poll = select.poll()
    poll.register(inotify.fd, select.POLLIN)
    rest = b""
    with open(path, "rb", buffering=0) as file, closing(inotify):
        while True:
            data = file.read(1 << 16)
            if not data:
                poll.poll(5000)
                os.read(inotify.fd, 1 << 16)
                continue
            data, at, found = rest + data, 0, []
            while at + LENGTH.size <= len(data):
                (length,) = LENGTH.unpack_from(data, at)
                end = at + LENGTH.size + length
                if end > len(data):
                    break
                found.append(data[at + LENGTH.size : end])
                at = end
            rest = data[at:]
            yield found


@contextmanager
def reader(kind: str, folder: Path) -> Iterator[tuple[Path, Iterator[list[bytes]]]]:
    if kind == "ours":
        with closing(Messenger(folder / "ours")) as messenger:
            messenger.open()
            messenger.keep(["a"], seconds=600, cap=4 << 30)
            yield folder / "ours", ours(messenger)
    else:
        (folder / "peer").touch()
        source = peer(folder / "peer")
        yield folder / "peer", source
        source.close()  # type: ignore[attr-defined]


def live(kind: str, count: int, batch: int) -> tuple[float, float]:
    """Messages a second from a child's write to our hands, and those that the child wrote a second."""
    count -= count % batch
    with (
        tempfile.TemporaryDirectory() as name,
        reader(kind, Path(name)) as (place, source),
        writer(kind, place, count, batch, 0.0) as process,
    ):
        start = time.perf_counter()
        got = 0
        while got < count:
            got += len(next(source))
        took = time.perf_counter() - start
        assert process.stdout is not None
        return count / took, count / float(process.stdout.readline())


def paced(kind: str, count: int) -> tuple[float, float]:
    """p50 and p99 in µs of messages that come one by one."""
    found: list[float] = []
    with (
        tempfile.TemporaryDirectory() as name,
        reader(kind, Path(name)) as (place, source),
        writer(kind, place, count, 1, PAUSE),
    ):
        while len(found) < count:
            frames = next(source)
            now = time.perf_counter_ns()
            found += [(now - int(frame)) / 1000 for frame in frames]
    return percentile(found, 0.5), percentile(found, 0.99)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=200_000, help="messages in a measurement (default 200000)")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.child:
        kind, place, count, batch, pause = options.child
        child(kind, place, int(count), int(batch), float(pause))
        return 0
    lines: list[Line] = []
    with quietness() as quiet:
        for batch in (1, 64):
            mine, other = in_turn(
                options.rounds,
                lambda batch=batch: live("ours", options.count, batch),
                lambda batch=batch: live("peer", options.count, batch),
            )
            what = "one by one" if batch == 1 else f"{batch} at a time"
            goal = (">=", 50_000.0) if batch == 1 else None
            written = ([each[1] for each in mine], [each[1] for each in other])
            lines.append(
                Line("filesystem", f"written and read, {what}", "/s", *([e[0] for e in m] for m in (mine, other)))
            )
            lines.append(Line("filesystem", f"written, {what}", "/s", *written))
            if goal:
                lines.append(Line("filesystem", f"written and read, {what}", "/s", lines[-2].ours, goal=goal))
        mine, other = in_turn(options.rounds, lambda: paced("ours", 500), lambda: paced("peer", 500))
        for at, name in enumerate(("p50", "p99")):
            values = ([each[at] for each in mine], [each[at] for each in other])
            lines.append(Line("filesystem", f"one every {PAUSE * 1000:g} ms, {name}", "µs", *values))
            if name == "p50":
                lines.append(Line("filesystem", "the same", "µs", values[0], goal=("<=", 2000.0)))
    print(time.strftime("%Y-%m-%d %H:%M"), platform.python_version(), f"messages of {SIZE} bytes", sep=", ")
    print(table(lines, options.markdown))
    print(f"{options.rounds} rounds; CPUs that others kept busy meanwhile: {quiet['others']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
