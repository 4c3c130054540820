"""The dashboard in a real browser: how late it is, whether it stutters, what it costs the work.

    python benchmarks/pages.py [row …] [--rounds N] [--json | --markdown]

Rows: late, output, scroll, chatty, watched. Debian's chromium without a GPU, driven by Playwright; a Redis and a
worker, or the worker processes of a Client. Nothing else shows tasks of ours: `peer` is a bare list of as many rows
(scroll), or the same work while nobody looks. Needs: pip install playwright uvicorn starlette, chromium, redis-server.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from _measure import Line, in_turn, percentile, table

from revolve_assistant import Client, Worker, current_task, emit, report
from revolve_assistant.testing import servers
from revolve_assistant.views.feed import Feed
from revolve_assistant.views.web.serving import Serving
from revolve_assistant.wire.seal import Purpose
from revolve_assistant.worker.monitor import CHANNEL, VERSION, _encode

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SAMPLES = 40
# What a page counts: how late each text is that holds the time at which it was said, frames, and long tasks.
COUNTS = """
window.late = []; window.frames = []; window.long = [];
new PerformanceObserver((list) => list.getEntries().forEach((each) => window.long.push(each.duration)))
  .observe({ type: "longtask", buffered: false });
window.count = () => {
  let last = performance.now();
  const tick = (now) => {
    window.frames.push(now - last); last = now; if (window.counting) requestAnimationFrame(tick); };
  window.counting = true; requestAnimationFrame((now) => { last = now; requestAnimationFrame(tick); });
};
window.hear = (selector) => new MutationObserver(() => {
  const all = document.querySelectorAll(selector);
  const said = Number(/at (\\d+\\.\\d+)/.exec(all[all.length - 1]?.textContent)?.[1]);
  if (said && said !== window.heard) {
    window.heard = said; window.late.push(Date.now() - said); }
}).observe(document.querySelector("main"), { subtree: true, childList: true, characterData: true });
"""


def says(count: int, as_output: bool) -> None:
    """Says what time it is, in milliseconds, at moments that nobody can foresee."""
    current_task().receive(timeout=60)
    for number in range(count):
        time.sleep(random.uniform(0.2, 0.6))
        now = f"at {time.time() * 1000:.3f}"
        if as_output:
            emit("output", now)
        else:
            report(number / count, now)


def talks(count: int, rate: float) -> float:
    """Emits so many lines at so many a second at most; how many a second there were."""
    began = time.perf_counter()
    for number in range(count):
        emit("output", f"line {number} of a program that has much to say")
        if number % 50 == 0:
            report(number / count)
            ahead = began + number / rate - time.perf_counter() if rate else 0.0
            if ahead > 0:
                time.sleep(ahead)
    return count / (time.perf_counter() - began)


@contextmanager
def place(engine: str) -> Iterator[Client]:
    if engine == "process":
        with Client(max_workers=2) as client:
            yield client
    else:
        with servers.Redis() as server:
            url = "redis://{}:{}/0".format(*server.address)
            with Worker(url, concurrency=2), Client(url) as client:
                yield client


@contextmanager
def page(client: Client) -> Iterator[tuple[Any, str]]:
    from playwright.sync_api import sync_playwright

    serving = Serving(client, port=0).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        shown = browser.new_page(viewport={"width": 1400, "height": 900})
        yield shown, serving.url
        browser.close()
    serving.close()


def _late(engine: str, as_output: bool) -> list[float]:
    with place(engine) as client, page(client) as (shown, url):
        task = client.submit(says, SAMPLES, as_output)
        shown.goto(f"{url}task/{task.id}" if as_output else url)
        shown.locator(".hero .pill[data-state=running]" if as_output else ".space .row").first.wait_for()
        shown.evaluate(COUNTS)
        shown.evaluate(f"hear({'.tail .ln' if as_output else '.space .row:not([hidden]) .words'!r})")
        shown.wait_for_timeout(1000)
        task.send("go")
        until = time.monotonic() + SAMPLES
        while len(found := list(shown.evaluate("window.late"))) < SAMPLES - 1 and time.monotonic() < until:
            shown.wait_for_timeout(200)
        return found


def row_late(rounds: int, as_output: bool = False) -> list[Line]:
    lines = []
    for engine in ("redis", "process"):
        (found,) = in_turn(rounds, lambda engine=engine: _late(engine, as_output))  # type: ignore[misc]
        row, what = ("output", "a line, to the page of the task") if as_output else ("late", "progress, to the list")
        for name, share, goal in (("p50", 0.5, ("<=", 100.0)), ("p95", 0.95, None)):
            values = [percentile(each, share) for each in found]
            lines.append(Line(row, f"emit in a child ({engine}) → DOM, {what}, {name}", "ms", values, goal=goal))
    return lines


def row_output(rounds: int) -> list[Line]:
    return row_late(rounds, True)


SCROLLS = """(where) => { const at = document.querySelector(where); let down = 0;
    const step = () => { at.scrollTop += down++ < 200 ? 160 : 2600; if (window.counting) requestAnimationFrame(step); };
    requestAnimationFrame(step); }"""
BARE = """() => { const at = document.getElementById("bare"); const rows = [];
    for (let i = 0; i < 24; i++) { const row = document.createElement("div"); at.append(row); rows.push(row);
      row.style.cssText = "position:absolute; left:0; right:0; top:0; height:58px"; }
    at.onscroll = () => requestAnimationFrame(() => { const first = Math.floor(at.scrollTop / 58);
      rows.forEach((row, i) => {
        row.style.transform = `translateY(${(first + i) * 58}px)`; row.textContent = `row ${first + i}`; }); }); }"""


def _frames(shown: Any) -> dict[str, float]:
    shown.evaluate("window.counting = false")
    frames, long = shown.evaluate("window.frames"), shown.evaluate("window.long")
    return {"p50": percentile(frames, 0.5), "p99": percentile(frames, 0.99), "long": len(long), "frames": len(frames)}


def _bare() -> dict[str, float]:
    """A list that shows nothing but numbers, scrolled in the same way."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        shown = browser.new_page(viewport={"width": 1400, "height": 900})
        shown.set_content(
            '<main></main><div id="bare" style="height:700px; overflow-y:scroll; position:relative">'
            '<div style="height:580000px"></div></div>'
        )
        shown.evaluate(BARE)
        shown.evaluate(COUNTS)
        shown.evaluate("count()")
        shown.evaluate(SCROLLS, "#bare")
        shown.wait_for_timeout(8000)
        found = _frames(shown)
        browser.close()
        return found


def _scroll() -> dict[str, float]:
    """10,000 tasks whose progress changes all the time, scrolled from end to end for some seconds."""
    with place("redis") as client, page(client) as (shown, url):
        remote = client._engine

        def say(entries: list[Any]) -> None:  # as a worker elsewhere would
            for start in range(0, len(entries), 400):
                data = _encode((VERSION, "far:1", entries[start : start + 400]))
                remote.post(CHANNEL, remote.keys.seal(Purpose.MONITOR, f"{remote.namespace}/{CHANNEL}", data))

        shown.goto(url)
        shown.locator("#link[data-state=live]").wait_for()
        ids = [f"task{number:05}" for number in range(10_000)]
        say([(id, "app.work:crunch", "default", "started", 1, time.time()) for id in ids])
        shown.locator("[aria-rowcount='10001']").wait_for(timeout=30_000)
        shown.evaluate(COUNTS)
        shown.evaluate("count()")
        shown.evaluate(SCROLLS, ".scroll")
        until = time.monotonic() + 8.0
        turn = 0
        while time.monotonic() < until:
            turn += 1
            chosen = random.sample(ids, 2000)  # 8,000 changes a second
            say(
                [
                    (id, "app.work:crunch", "default", "progress", 1, time.time(), turn / 40, None, None, "")
                    for id in chosen
                ]
            )
            shown.wait_for_timeout(250)
        return _frames(shown)


def row_scroll(rounds: int) -> list[Line]:
    ours, bare = in_turn(rounds, _scroll, _bare)
    long = "tasks of the page's thread above 50 ms, in 8 s"
    return [
        *(
            Line(
                "scroll",
                f"frame, {what}; a bare list",
                "ms",
                [each[what] for each in ours],
                [each[what] for each in bare],
            )
            for what in ("p50", "p99")
        ),
        Line("scroll", long, "", [each["long"] for each in ours], goal=("<=", 0)),
        Line("scroll", f"{long}: a bare list", "", [each["long"] for each in bare]),
    ]


def _chatty(engine: str, looked: bool) -> tuple[float, float, float]:
    """Events a second of a task that may do 5,000, and the page's long tasks meanwhile."""
    with place(engine) as client:
        client.submit(talks, 10, 0.0).result(60)  # warm
        if not looked:
            return client.submit(talks, 30_000, 5000.0).result(120), 0.0, 0.0
        with page(client) as (shown, url):
            task = client.submit(talks, 30_000, 5000.0)
            shown.goto(f"{url}task/{task.id}")
            shown.locator(".tail .ln").first.wait_for()
            shown.evaluate(COUNTS)
            shown.evaluate("count()")
            shown.locator(".hero .pill[data-state=succeeded]").wait_for(timeout=60_000)
            found = _frames(shown)
            rate = next(event for event in task.events() if event.name == "succeeded").args[0]
            return rate, found["p99"], found["long"]


def row_chatty(rounds: int) -> list[Line]:
    lines = []
    for engine in ("redis", "process"):
        alone, seen = in_turn(rounds, lambda e=engine: _chatty(e, False), lambda e=engine: _chatty(e, True))  # type: ignore[misc]
        rates = [each[0] for each in seen]
        lines += [
            Line("chatty", f"{engine}: events/s of a task that paces itself at 5,000, its page open; not", "/s",
                 rates, [each[0] for each in alone], (">=", 0.95)),
            Line("chatty", f"{engine}: frame of that page, p99", "ms", [each[1] for each in seen]),
            Line("chatty", f"{engine}: tasks of the page's thread above 50 ms, in 6 s", "", [each[2] for each in seen]),
        ]  # fmt: skip
    return lines


def _watched(looked: bool) -> float:
    """Events a second that two tasks of a worker emit as fast as they can, progress among them."""
    with place("redis") as client:
        for task in [client.submit(talks, 10, 0.0) for _ in range(4)]:
            task.result(60)
        feed = Feed(client).open() if looked else None
        version = 0
        began = time.perf_counter()
        tasks = [client.submit(talks, 60_000, 0.0) for _ in range(2)]
        while not all(task.done() for task in tasks):
            if feed is None:
                time.sleep(0.05)
            elif feed.wait(version, 0.05):
                version = feed.changes(version).version
        for task in tasks:
            task.result(120)
        took = time.perf_counter() - began
        if feed is not None:
            feed.close()
        return 2 * 60_000 * 1.02 / took


def row_watched(rounds: int) -> list[Line]:
    alone, seen = in_turn(rounds, lambda: _watched(False), lambda: _watched(True))
    what = "events/s of a worker's tasks while a feed is read; nobody looks"
    return [Line("watched", what, "/s", seen, alone, (">=", 0.95))]


ROWS: dict[str, Callable[[int], list[Line]]] = {
    "late": row_late,
    "output": row_output,
    "scroll": row_scroll,
    "chatty": row_chatty,
    "watched": row_watched,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    lines: list[Line] = []
    for row in given.rows or ROWS:
        lines += ROWS[row](given.rounds)
        if not given.json:
            print(row, *(f"{statistics.median(line.ours):.4g} {line.unit}" for line in lines if line.row == row),
                  file=sys.stderr)  # fmt: skip
    print(json.dumps([line.as_dict() for line in lines], indent=2) if given.json else table(lines, given.markdown))


if __name__ == "__main__":
    main()
