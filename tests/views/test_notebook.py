"""The bar in a notebook: a real kernel runs the cells, and what it tells the front end is looked at."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from subprocess import DEVNULL, PIPE, run
from typing import Any

import pytest

from revolve_assistant.views.notebook import in_notebook

LONG = 40.0  # seconds that nothing here takes

APP = '''
import threading, time
from pathlib import Path
from revolve_assistant import report

def steps(folder, n):
    """A step for each file that appears."""
    for at in range(n):
        report(at / n, f"<b>step {at}</b> \\x1b[31m")
        while not Path(folder, f"go{at}").exists():
            time.sleep(0.005)
    print("<i>done</i> \\x1b[2J")
    return n

def flood(seconds):
    """Reports as fast as it can."""
    until = time.monotonic() + seconds
    at = 0
    while time.monotonic() < until:
        at += 1
        report((until - time.monotonic()) / seconds, f"report {at}")

def wait(folder):
    while not Path(folder, "go many").exists():
        time.sleep(0.005)

def fail(folder):
    while not Path(folder, "go1").exists():
        time.sleep(0.005)
    raise ValueError("<script>alert(1)</script>\\nmore")
'''


class Cell:
    """What the kernel said while it ran one: the displays by id, and of each what it showed, with the times."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.shown: list[tuple[str, str, datetime]] = []  # display id, HTML, when
        self.text = {"stdout": "", "stderr": ""}

    @property
    def last(self) -> str:
        return self.shown[-1][1]

    def hear(self, message: dict[str, Any]) -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "stream":
            self.text[content["name"]] += content["text"]
        if kind in ("display_data", "update_display_data"):
            id = content["transient"]["display_id"]
            if kind == "display_data":
                self.made.append(id)
            assert content["data"]["text/plain"]
            self.shown.append((id, content["data"]["text/html"], message["header"]["date"]))


class Kernel:
    """A kernel of its own process, and the front end that reads it."""

    def __init__(self, folder: Path) -> None:
        from jupyter_client.manager import KernelManager

        environment = {name: value for name, value in os.environ.items() if not name.startswith("REVOLVE_")}
        self._manager = KernelManager(kernel_name="python3")
        self._manager.start_kernel(cwd=str(folder), env=environment, stdout=DEVNULL, stderr=DEVNULL)
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(LONG)

    def run(self, code: str, hear: Callable[[Cell], object] = bool) -> Cell:
        """Run a cell; `hear` is called after each of its messages."""
        cell = Cell()

        def take(message: dict[str, Any]) -> None:
            cell.hear(message)
            hear(cell)

        done = self._client.execute_interactive(code, timeout=LONG, allow_stdin=False, output_hook=take)
        assert done["content"]["status"] == "ok", done["content"]
        return cell

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()
        self._manager.context.destroy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "notebook_app.py").write_text(APP)
    return folder


@pytest.fixture(scope="module")
def kernel(folder: Path) -> Iterator[Kernel]:
    kernel = Kernel(folder)
    kernel.run(
        "import notebook_app as app\nfrom revolve_assistant import Client, track\nclient = Client(max_workers=2)"
    )
    yield kernel
    kernel.run("client.shutdown()")
    kernel.close()


def test_one_display_is_renewed_in_place(kernel: Kernel, folder: Path) -> None:
    def go(cell: Cell) -> None:  # the next step, once the one before is seen
        for at in range(4):
            if cell.shown and f"step {at}&lt;" in cell.last:
                (folder / f"go{at}").touch()

    cell = kernel.run(f"client.options(capture=True).submit(app.steps, {str(folder)!r}, 4).show();", go)
    assert len(cell.made) == 1
    assert {id for id, _, _ in cell.shown} == set(cell.made)
    values = [int(found[1]) for _, html, _ in cell.shown if (found := re.search(r'aria-valuenow="(\d+)"', html))]
    assert values == sorted(values)
    assert {0, 25, 50, 75, 100} <= set(values)
    assert ">steps</span>" in cell.last
    assert re.search(r">succeeded after \d+\.\d s</span>", cell.last)


def test_what_a_task_says_is_text(kernel: Kernel, folder: Path) -> None:
    folder = folder / "two"
    folder.mkdir()

    def go(cell: Cell) -> None:
        for at in range(2 if cell.made else 0):  # once it shows them
            (folder / f"go{at}").touch()

    steps = f"client.options(capture=True).submit(app.steps, {str(folder)!r}, 2)"
    cell = kernel.run(f"{steps}; client.submit(app.fail, {str(folder)!r}); client.show()", go)
    assert len(cell.made) == 1, "one display for all tasks"
    everything = "".join(html for _, html, _ in cell.shown)
    assert set(re.findall(r"<(\w+)", everything)) == {"div", "span"}
    assert ">failed: ValueError: &lt;script&gt;alert(1)&lt;/script&gt;</span>" in cell.last
    assert cell.last.count('role="progressbar"') == 2
    assert "<i>done</i> \\x1b[2J\n" in cell.text["stdout"]
    assert "\x1b" not in everything + cell.text["stdout"]


def test_it_does_not_flood(kernel: Kernel) -> None:
    cell = kernel.run("client.submit(app.flood, 2.5).show();")
    times = [when for _, _, when in cell.shown]
    assert len(times) > 1  # how often it was drawn is the machine's affair
    for first, last in zip(times, times[10:], strict=False):
        assert (last - first).total_seconds() >= 1.0, "more than ten in a second"


def test_loops_and_maps_have_the_same_bar(kernel: Kernel) -> None:
    cell = kernel.run(
        "for _ in track(range(3), 'a & b'): pass\nassert list(client.map(len, ['a', 'bc'], show=True)) == [1, 2]"
    )
    assert len(cell.made) == 2
    first, second = (next(html for id, html, _ in reversed(cell.shown) if id == made) for made in cell.made)
    assert ">a &amp; b</span>" in first
    assert ">100%</span>" in first
    assert "done: 3/3 in " in first
    assert ">len</span>" in second
    assert "done: 2/2 in " in second


def test_many_tasks_stay_a_few_lines(kernel: Kernel, folder: Path) -> None:
    def go(cell: Cell) -> None:
        if cell.made:
            (folder / "go many").touch()

    cell = kernel.run(f"for _ in range(200): client.submit(app.wait, {str(folder)!r})\nclient.show()", go)
    assert cell.last.count('role="progressbar"') <= 31
    assert " succeeded</div>" in cell.last


def test_where_there_is_no_notebook_there_is_none() -> None:
    assert not in_notebook()
    code = "from revolve_assistant.views.notebook import in_notebook; print('notebook:', in_notebook())"
    done = run([sys.executable, "-m", "IPython", "--no-banner", "-c", code], stdin=DEVNULL, stdout=PIPE, check=True)
    assert b"notebook: False" in done.stdout
