"""The elements in a real browser: the bar moves, a reload loses and doubles nothing, Stop stops."""

from __future__ import annotations

import pytest

from revolve_assistant import current_task, emit, report

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def steps() -> None:
    """Does a step each time that it is told to."""
    number = 0
    while True:
        emit("output", f"step {number} <b>&amp;</b>")
        report(number / 10, "stepping")
        number += 1
        current_task().receive(timeout=60)


@pytest.mark.timeout(120)
def test_a_page_shows_a_task_live_over_a_reload_and_stops_it(caller, make_web, need, tmp_path):
    chromium = need("chromium")
    from playwright.sync_api import expect, sync_playwright

    web = make_web()
    task = caller.submit(steps)
    told: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(f"{web.url}/page/{task.id}")
        bar, output = page.locator("progress"), page.locator("revolve-output pre")
        wait = 30_000
        expect(bar).to_have_js_property("value", 0, timeout=wait)
        task.send("on")
        task.send("on")
        expect(bar).to_have_js_property("value", 0.2, timeout=wait)
        expect(page.get_by_role("status")).to_have_text("20% stepping", timeout=wait)
        page.reload()
        task.send("on")
        expect(bar).to_have_js_property("value", 0.3, timeout=wait)
        whole = "".join(f"step {number} <b>&amp;</b>\n" for number in range(4))
        expect(output).to_have_text(whole, timeout=wait)
        assert output.evaluate("each => each.textContent") == whole
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("status")).to_have_text("cancelled", timeout=wait)
        expect(page.get_by_role("button", name="Stop")).to_have_count(0)
        browser.close()
    assert [event.name for event in task.events()][-1] == "cancelled"
    assert [text for text in told if "favicon" not in text and "404" not in text] == []
