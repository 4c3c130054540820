"""`revolve demo` is the first thing a newcomer runs: it must work in a pipe, on a small terminal, and leave nothing."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from revolve_assistant.cli import demo, demo_work

DEMO = [sys.executable, "-m", "revolve_assistant.cli", "demo"]
SMALL = [  # the same with photos of an eighth, where only the story counts
    *(sys.executable, "-c"),
    "import sys; from revolve_assistant.cli import demo_work, main; demo_work.SIZE = 160, 120; sys.exit(main())",
    "demo",
]


def run(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("REVOLVE_")}
    return subprocess.run([*SMALL, *words], env=env | settings, capture_output=True, text=True, check=False)


# --- the work


def test_a_picture_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = demo_work.paint(7)
    demo_work.write_png(tmp_path / "a.png", rows)
    assert demo_work.read_png(tmp_path / "a.png") == rows
    assert len(rows) == 320
    assert {len(row) for row in rows} == {3 * 480}


def test_shrinking_takes_the_mean() -> None:
    rows = [bytes([0, 10, 20, 4, 10, 40]), bytes([8, 10, 20, 4, 10, 40])]
    assert demo_work.shrink(rows, 2) == [bytes([4, 10, 30])]


def test_smoothing_keeps_an_even_picture() -> None:
    rows = [bytes([50] * 30)] * 8
    assert demo_work.smooth(rows) == rows


def test_histogram_counts_every_pixel() -> None:
    assert demo_work.histogram([bytes(3 * 5) + b"\xff" * 3 * 2]) == [5, 0, 0, 0, 0, 0, 0, 2]


def test_one_photo_is_damaged(tmp_path: Path) -> None:
    albums = demo_work.make_albums(tmp_path)
    assert [len(list(album.glob("*.png"))) for album in albums] == [6, 6, 6, 6]
    wrong = []
    for photo in sorted(tmp_path.glob("*/*.png")):
        try:
            demo_work.read_png(photo)
        except ValueError as error:
            wrong.append(str(error))
    assert len(wrong) == 1
    assert "is damaged" in wrong[0]


# --- the demo


def test_in_a_pipe_it_tells_the_whole_story_in_plain_lines(tmp_path: Path) -> None:
    done = run(TMPDIR=str(tmp_path))
    text = done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 succeeded, 1 failed, 1 cancelled, 1 lost" in text
    assert "\x1b" not in text
    assert "\r" not in text
    for told in (
        "submit() returns at once",
        "album-1: from dark to bright",  # output
        "album-1: succeeded: 6 thumbnails",
        "is damaged: wrong checksum",
        "A frame in gold or silver?",
        "a gold frame",
        "task.cancel() asks it to stop",
        "crash: lost: killed by SIGSEGV",
        "Its process is gone",
        "soften: cancelled: by exception",
    ):
        assert told in text, told
    assert max(map(len, text.splitlines())) < 80
    assert list(tmp_path.iterdir()) == []


def test_the_code_it_shows_runs() -> None:
    code = demo.CODE.replace("thumbnails", "len")
    assert len(demo.CODE.splitlines()) == 5
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line[4:] for line in code.splitlines())],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "7\n"


def test_keep_leaves_the_photos(tmp_path: Path) -> None:
    assert run("--keep", str(tmp_path / "photos")).returncode == 0
    assert len(list(tmp_path.glob("photos/album-1/thumb-*.png"))) == 6
    again = run("--keep", str(tmp_path / "photos"))
    assert again.returncode == 2
    assert "File exists" in again.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_half_way_it_cleans_up(tmp_path: Path, number: int, code: int) -> None:
    process = subprocess.Popen(
        SMALL, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "crash: lost" in line:
            break
    process.send_signal(number)
    rest, errors = process.communicate()
    assert (process.returncode, errors) == (code, "")
    assert "soften: cancelled" in rest
    assert "* The ladder" not in rest
    assert list(tmp_path.iterdir()) == []


# --- on a terminal


@pytest.fixture
def tmux(need: Callable[[str], str]) -> Iterator[Callable[..., str]]:
    folder = tempfile.mkdtemp(prefix="tm-")
    command = [need("tmux"), "-S", f"{folder}/s", "-f", "/dev/null"]

    def tmux(*words: str) -> str:
        return subprocess.run(
            [*command, *words], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
        ).stdout

    yield tmux
    tmux("kill-server")
    shutil.rmtree(folder)


def test_at_80x24_it_shows_bars_and_never_breaks_a_line(tmux: Callable[..., str]) -> None:
    tmux("new-session", "-d", "-x", "80", "-y", "24", f"{shlex.join(DEMO)}; echo code=$?; cat")
    deadline = time.monotonic() + 40
    seen = set()
    screen = ""
    while "code=" not in screen:
        assert time.monotonic() < deadline, screen
        screen = tmux("capture-pane", "-p")
        if re.search(r"shrinking|softening", screen):
            seen.add("bars")
        time.sleep(0.02)
    assert "code=0" in screen
    assert seen == {"bars"}
    whole = tmux("capture-pane", "-p", "-S", "-200")
    joined = tmux("capture-pane", "-p", "-J", "-S", "-200")
    assert [line.rstrip() for line in whole.splitlines()] == [line.rstrip() for line in joined.splitlines()]
    assert "4 succeeded, 1 failed, 1 cancelled, 1 lost" in whole
