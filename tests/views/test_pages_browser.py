"""The dashboard in a real browser, of a Redis and of the tasks of a process: live, by keyboard, on a phone, for all."""

from __future__ import annotations

import re

import pytest

from revolve_assistant import Client, Worker, ask, current_task, emit, report
from revolve_assistant.views.web.serving import Serving

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT = 30_000
RULES = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']"


def steps() -> str:
    """Does a step each time that it is told to, until it is told to end."""
    number = 0
    while True:
        emit("output", f"step {number} <b>&amp;</b>\x1b[1m")
        report(number / 10, f"at step {number}")
        number += 1
        if current_task().receive(timeout=60).name == "end":
            return "hidden result"


def fails(word: str) -> None:
    emit("output", f"attempt {current_task().attempt}")
    raise ValueError(f"hidden {word}")


def asks() -> str:
    return ask("Tea or coffee?", timeout=60)


def talks(count: int) -> None:
    for number in range(count):
        emit("output", f"line {number}")
    report(1.0, "all said")


@pytest.fixture
def browser(need):
    chromium = need("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens pages, and minds that none complains."""
    opened, said = [], []

    def open_page(url, **more):
        context = browser.new_context(**more)
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert said == []


@pytest.fixture
def redis_site(redis):
    with Worker(redis, concurrency=3), Client(redis) as client:
        serving = Serving(client, port=0, show="errors").start()
        yield client, serving.url
        serving.close()


@pytest.fixture(params=["redis", "process"])
def site(request):
    if request.param == "redis":
        yield request.getfixturevalue("redis_site")
    else:
        with Client(max_workers=3, web=0) as client:
            yield client, client.web


def expect(what):
    from playwright.sync_api import expect

    return expect(what)


def row(page, name):
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=name)).first


@pytest.mark.timeout(180)
def test_two_browsers_see_a_task_live_over_a_reload_and_one_stops_it(site, visit):
    client, url = site
    one, other = visit(url), visit(url)
    task = client.submit(steps)
    for page in (one, other):
        expect(row(page, "steps").get_by_text("Running")).to_be_visible(timeout=WAIT)
    task.send("on")
    task.send("on")
    for page in (one, other):
        bar = row(page, "steps").get_by_role("progressbar")
        expect(bar).to_have_attribute("aria-valuenow", "20", timeout=WAIT)
        expect(row(page, "steps").get_by_text("at step 2")).to_be_visible()
    one.get_by_role("link", name="steps").click()
    expect(one).to_have_url(re.compile(f"task/{task.id}$"))
    output = one.get_by_role("log", name="Output")
    expect(output.locator(".ln")).to_have_count(3, timeout=WAIT)
    one.reload()  # and what is said meanwhile
    task.send("on")
    expect(output.locator(".ln")).to_have_count(4, timeout=WAIT)
    whole = [f"step {number} <b>&amp;</b>\\x1b[1m" for number in range(4)]
    assert output.locator(".ln").all_text_contents() == whole
    expect(one.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "30", timeout=WAIT)
    one.get_by_role("button", name="Stop").click()
    one.get_by_role("dialog").get_by_role("button", name="Stop it").click()
    expect(one.locator(".hero .pill")).to_have_text("Cancelled", timeout=WAIT)
    expect(one.get_by_role("button", name="Stop")).to_be_hidden()
    expect(row(other, "steps").get_by_text("Cancelled")).to_be_visible(timeout=WAIT)
    assert task.state == "cancelled"
    one.go_back()
    expect(row(one, "steps").get_by_text("Cancelled")).to_be_visible(timeout=WAIT)


@pytest.mark.timeout(180)
def test_by_keyboard_alone_and_on_a_phone(site, visit):
    client, url = site
    page = visit(url, viewport={"width": 360, "height": 740}, has_touch=True)
    first, asking = client.submit(steps), client.submit(asks)
    for name in ("steps", "asks"):
        expect(row(page, name).get_by_text("Running")).to_be_visible(timeout=WAIT)
    page.keyboard.press("/")
    page.keyboard.type("asks")
    expect(page.get_by_role("link", name="steps")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(row(page, "steps")).to_be_visible()
    page.keyboard.press("Escape")  # out of the search, to the list
    page.keyboard.press("Home")
    page.keyboard.press("j")
    name = page.evaluate("document.activeElement.querySelector('b').textContent")
    assert name in ("steps", "asks")
    if name == "steps":
        page.keyboard.press("k")
        if page.evaluate("document.activeElement.querySelector('b').textContent") == "steps":
            page.keyboard.press("j")
    expect(page.locator("a:focus b")).to_have_text("asks")
    page.keyboard.press("Enter")
    field = page.get_by_role("textbox", name="Tea or coffee?")
    expect(field).to_be_visible(timeout=WAIT)
    page.keyboard.press("a")
    expect(field).to_be_focused()
    page.keyboard.type("coffee")
    page.keyboard.press("Enter")
    expect(page.locator(".hero .pill")).to_have_text("Succeeded", timeout=WAIT)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.get_by_role("grid", name="Tasks")).to_be_visible()
    page.keyboard.press("g")
    page.keyboard.press("w")
    expect(page.get_by_role("heading", name="Workers")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    for path in ("", f"task/{first.id}", "workers", "queues"):
        page.goto(url + path)
        expect(page.locator("#link")).to_have_text("Live", timeout=WAIT)
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, path
    page.goto(f"{url}task/{first.id}")
    expect(page.get_by_role("button", name="Stop")).to_be_visible(timeout=WAIT)
    page.keyboard.press("s")
    page.keyboard.press("Enter")
    expect(page.locator(".hero .pill")).to_have_text("Cancelled", timeout=WAIT)
    assert asking.result(30) == "coffee"


@pytest.mark.timeout(180)
def test_what_failed_shows_its_attempts_and_can_be_tried_again(redis_site, visit):
    client, url = redis_site
    task = client.options(retries=1, backoff=0.0).submit(fails, "word")
    task.exception(60)
    page = visit(f"{url}?state=failed")
    row(page, "fails").get_by_role("button", name="Try again fails").click(timeout=WAIT)
    page.get_by_role("dialog").get_by_role("button", name="Leave it").click()
    page.get_by_role("link", name="fails").click()
    expect(page.get_by_label("traceback")).to_contain_text("in fails", timeout=WAIT)
    expect(page.locator(".tail .ln")).to_have_text(["attempt 2"])  # a new attempt replaces
    page.get_by_role("button", name="Output of attempt 1").click()
    expect(page.locator(".tail .ln")).to_have_text(["attempt 1"])
    expect(page.get_by_text("--show arguments")).to_be_visible()
    page.get_by_role("button", name="Run again").click()
    page.get_by_role("dialog").get_by_role("button", name="Run it again").click()
    expect(page).not_to_have_url(re.compile(task.id), timeout=WAIT)
    expect(page.locator(".hero .pill")).to_have_text("Failed", timeout=WAIT)


@pytest.mark.timeout(180)
def test_ten_thousand_live_tasks_and_one_that_never_stops_talking(redis_site, visit):
    client, url = redis_site
    from revolve_assistant.wire.seal import Purpose
    from revolve_assistant.worker.monitor import CHANNEL, VERSION, _encode

    page = visit(url)
    expect(page.locator("#link")).to_have_text("Live", timeout=WAIT)
    remote = client._engine

    def say(entries):  # as a worker elsewhere would
        for start in range(0, len(entries), 1000):
            data = _encode((VERSION, "far:1", entries[start : start + 1000]))
            remote.post(CHANNEL, remote.keys.seal(Purpose.MONITOR, f"{remote.namespace}/{CHANNEL}", data))

    ids = [f"task{number:05}" for number in range(9000)]
    say([(id, "app.work:crunch", "default", "started", 1, 1000.0 + number) for number, id in enumerate(ids)])
    grid = page.get_by_role("grid", name="Tasks")
    expect(grid).to_have_attribute("aria-rowcount", "9001", timeout=WAIT)
    assert page.locator(".space .row").count() < 60  # what cannot be seen does not exist
    say([(id, "app.work:crunch", "default", "progress", 1, 2000.0, 0.25, None, None, "deep") for id in ids])
    first = page.locator(".space .row").first.get_by_role("progressbar")
    expect(first).to_have_attribute("aria-valuenow", "25", timeout=WAIT)
    page.locator(".scroll").evaluate("each => { each.scrollTop = each.scrollHeight / 2; }")
    middle = page.locator(".space .row:not([hidden])").filter(has_text="task04500")
    expect(middle.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "25", timeout=WAIT)
    say([(ids[4500], "app.work:crunch", "default", "progress", 1, 2001.0, 0.75, None, None, "deeper")])
    expect(middle.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "75", timeout=WAIT)
    page.get_by_role("searchbox").fill("task08999")
    expect(grid).to_have_attribute("aria-rowcount", "2")

    task = client.submit(talks, 20_000)
    page.goto(f"{url}task/{task.id}")
    expect(page.locator(".hero .pill")).to_have_text("Succeeded", timeout=60_000)
    expect(page.locator(".tail .ln").last).to_have_text("line 19999", timeout=WAIT)
    assert page.locator(".tail .ln").count() <= 7500
    at_end = "each => each.scrollHeight - each.scrollTop - each.clientHeight < 24"
    assert page.locator(".tail").evaluate(at_end)  # it follows
    page.locator(".tail").evaluate("each => { each.scrollTop = 0; }")
    page.get_by_role("button", name="Follow").click()  # and does so again once it is asked to
    assert page.locator(".tail").evaluate(at_end)


@pytest.mark.timeout(300)
def test_nobody_is_shut_out(redis_site, visit):
    """No violation of WCAG 2.2 AA or of best practice that axe-core can find, in the light and in the dark."""
    from pathlib import Path

    import axe_playwright_python

    script = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    client, url = redis_site
    asking = client.submit(asks)
    failed = client.options(retries=1, backoff=0.0).submit(fails, "word")
    failed.exception(60)
    secret = Serving(client, port=0, token="a-token-of-24-characters").start()
    everywhere = [("", ".space .row"), (f"task/{asking.id}", ".question input"), (f"task/{failed.id}", ".outcome pre")]
    in_light = [
        ("workers", ".worker"),
        ("queues", ".queue"),
        ("task/nobody", ".note"),
    ]
    found = {}
    for scheme in ("light", "dark"):
        page = visit(url, color_scheme=scheme, reduced_motion="reduce")
        for path, there in (*everywhere, *(in_light if scheme == "light" else ())):
            page.goto(url + path)
            page.locator(there).first.wait_for(state="visible")
            page.evaluate(script)
            found[scheme, path] = axe(page)
        if scheme == "dark":
            continue
        page.keyboard.press("?")
        found[scheme, "keys"] = axe(page)
        login = page.context.new_page()
        login.goto(secret.url)
        login.evaluate(script)
        found[scheme, "login"] = axe(login)
    secret.close()
    asking.cancel()
    assert {where: each for where, each in found.items() if each} == {}


def axe(page):
    """What axe-core finds: rule, element, what is wrong."""
    told = page.evaluate(f"axe.run({{runOnly: {RULES}}})")
    return [
        (each["id"], node["html"][:160], node["failureSummary"])
        for each in told["violations"]
        for node in each["nodes"]
    ]
