"""A task in a browser's stream: complete and in order over whatever breaks, for those alone who may see it."""

from __future__ import annotations

import socket

import httpx
import pytest

from revolve_assistant import Client, Worker, ask, current_task, emit, report
from revolve_assistant.errors import Untrusted, UsageError
from revolve_assistant.views.web import check, events_response, token
from revolve_assistant.views.web.feed import Place, fields, places, plain

from .conftest import Stream

ENDS = {"succeeded", "failed", "cancelled", "lost"}


def talk(count: int, stop_at: int) -> str:
    """Says lines, waits in the middle until it is told to go on."""
    for number in range(count):
        emit("output", f"line {number}")
        report((number + 1) / count)
        if number == stop_at:
            current_task().receive(timeout=60)
    return "all said"


def forever() -> None:
    report(0.25, "on it")
    emit("output", "<b>it runs</b>\x1b[31m")
    current_task().receive(timeout=60)


def tea() -> str:
    return f"{ask('Tea or coffee?', timeout=60)} it is"


def lines(told):
    return [each["text"] for each in told if each["event"] == "output"]


def expected(count):
    return [f"line {number}" for number in range(count)]


def read_until(stream, text):
    told = []
    for each in stream:
        told.append(each)
        if each.get("text") == text:
            return told
    raise AssertionError("the stream ended")


def test_a_stream_goes_on_where_it_broke_off_at_another_process_complete_and_in_order(caller, make_web):
    task = caller.submit(talk, 3000, 1999)
    pass_ = token(caller, task.id)
    web = make_web()
    with Stream(web.url, [task.id], pass_) as stream:
        told = read_until(stream, "line 700")
        web.kill()  # with the browser connected
    at = stream.at
    web = make_web()
    with Stream(web.url, [task.id], pass_, at) as stream:
        told += read_until(stream, "line 1999")
        at = stream.at
    task.send("go")  # while nobody looks
    assert task.result(60) == "all said"
    with Stream(web.url, [task.id], pass_, at) as stream:
        told += list(stream)
    assert lines(told) == expected(3000)
    assert [told[0]["event"], told[-1]["event"], told[-1]["result"]] == ["started", "succeeded", "all said"]
    assert [each["event"] for each in told if each["event"] not in ("output", "progress")] == ["started", "succeeded"]
    assert [each["fraction"] for each in told if each["event"] == "progress"][-1] == 1.0
    with Stream(web.url, [task.id], pass_, stream.at) as over:
        assert over.response.status_code == 204  # a browser asks no more
    with Stream(web.url, [task.id], pass_) as again:  # a reload
        assert lines(again) == expected(3000)


def test_every_place_can_be_returned_to(caller, make_web):
    task = caller.submit(talk, 12, -1)
    task.result(60)
    web, pass_ = make_web(), token(caller, task.id)
    with Stream(web.url, [task.id], pass_) as stream:
        seen = [(stream.at, each) for each in stream]
    for number, (at, _) in enumerate(seen[:-1], 1):
        with Stream(web.url, [task.id], pass_, at) as stream:
            assert lines(stream) == lines([each for _, each in seen[number:]])


def timeless(told):
    return {name: value for name, value in told.items() if name != "time"}  # of `retrying` it is the reader's


def fails_once() -> str:
    attempt = current_task().attempt
    emit("output", f"attempt {attempt}")
    if attempt == 1:
        raise ValueError("not yet")
    return "done"


def test_a_new_attempt_is_told_and_can_be_returned_to(caller, make_web):
    task = caller.options(retries=1, backoff=0.0).submit(fails_once)
    assert task.result(60) == "done"
    web, pass_ = make_web(), token(caller, task.id)
    with Stream(web.url, [task.id], pass_) as stream:
        told = [(stream.at, timeless(each)) for each in stream]
    names = [each["event"] for _, each in told]
    assert names == ["started", "output", "retrying", "started", "output", "succeeded"]
    assert "not yet" not in str(told)  # why is told to those alone whom the application lets see it
    for number, (at, _) in enumerate(told[:-1], 1):
        with Stream(web.url, [task.id], pass_, at) as stream:
            assert [timeless(each) for each in stream] == [each for _, each in told[number:]]


def test_a_browser_that_does_not_read_holds_nobody_up_and_misses_nothing(caller, make_web):
    task = caller.submit(talk, 4000, -1)
    web, pass_ = make_web(), token(caller, task.id)
    with Stream(web.url, [task.id], pass_) as slow:
        told = read_until(slow, "line 0")
        assert task.result(60) == "all said"  # nobody waited for the slow one
        with Stream(web.url, [task.id], pass_) as quick:
            assert lines(quick) == expected(4000)
        told += list(slow)
    assert lines(told) == expected(4000)


def test_one_stream_for_several_tasks(caller, make_web):
    first, second = caller.submit(talk, 5, 2), caller.submit(talk, 4, -1)
    web, pass_ = make_web(), token(caller, first.id, second.id)
    with Stream(web.url, [first.id, second.id], pass_) as stream:
        told = []
        for each in stream:
            told.append(each)
            if {"line 2"} <= {each.get("text") for each in told if each["task"] == first.id} and any(
                each["event"] == "succeeded" for each in told
            ):
                break
        at = stream.at
    first.send("go")
    with Stream(web.url, [first.id, second.id], pass_, at) as stream:
        told += list(stream)
    assert lines([each for each in told if each["task"] == first.id]) == expected(5)
    assert lines([each for each in told if each["task"] == second.id]) == expected(4)


def test_silence_is_kept_alive_and_who_leaves_cancels_nothing(caller, make_web):
    task = caller.submit(talk, 2, 0)
    web = make_web()
    with Stream(web.url, [task.id], token(caller, task.id)) as stream:
        for line in stream._lines:
            if line.startswith(":"):
                break
        headers = stream.response.headers
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
    assert "default-src 'none'" in headers["content-security-policy"]
    task.send("go")
    assert task.result(60) == "all said"


def test_stop_and_answer(caller, make_web):
    web = make_web()
    with httpx.Client(base_url=f"{web.url}/live", timeout=30, trust_env=False) as browser:
        asks = caller.submit(tea)
        pass_ = token(caller, asks.id, act=True)
        with Stream(web.url, [asks.id], pass_) as stream:
            read_until(stream, "Tea or coffee?")
            body = {"task": asks.id, "text": "tea"}
            assert browser.post("/answer", json=body, headers={"X-Revolve-Token": pass_}).status_code == 202
            assert list(stream)[-1]["result"] == "tea it is"
        runs = caller.submit(forever)
        pass_ = token(caller, runs.id, act=True)
        with Stream(web.url, [runs.id], pass_) as stream:
            read_until(stream, "<b>it runs</b>\x1b[31m")
            answer = browser.post("/stop", json={"task": runs.id}, headers={"X-Revolve-Token": pass_})
            assert answer.status_code == 202
            assert list(stream)[-1]["event"] == "cancelled"
        # one that nobody looks at
        runs = caller.submit(forever)
        next(runs.events("started"))
        pass_ = token(caller, runs.id, act=True)
        assert browser.post("/stop", json={"task": runs.id}, headers={"X-Revolve-Token": pass_}).status_code == 202
        assert [event.name for event in runs.events()][-1] == "cancelled"


def test_what_is_not_allowed_is_refused(caller, make_web):
    task, other = caller.submit(talk, 2, 0), caller.submit(talk, 2, 0)
    web = make_web()
    read, act = token(caller, task.id), token(caller, task.id, act=True)
    with httpx.Client(base_url=f"{web.url}/live", timeout=30, trust_env=False) as browser:

        def looks(id, text):
            return browser.get("/events", params={"task": id, "token": text}).status_code

        assert looks(other.id, read) == 403
        assert looks(task.id, read[:-2] + ("AA" if read[-2:] != "AA" else "BB")) == 403
        assert [looks(task.id, text) for text in ("", "€", "=", "x" * 20_000)] == [403] * 4
        assert browser.get("/events", params={"token": read}).status_code == 403

        def stops(text, id=task.id, **more):
            more = more or {"json": {"task": id}}
            return browser.post("/stop", headers={"X-Revolve-Token": text}, **more).status_code

        assert stops(read) == 403  # may look, not act
        assert stops(act, other.id) == 403
        assert stops("") == 403
        assert browser.post("/stop", json={"task": task.id, "token": act}).status_code == 403  # not in the header
        assert stops(act, data={"task": task.id}) == 415  # as a form of another site would
        kind = {"Content-Type": "application/json", "X-Revolve-Token": act}
        for body, code in (
            (b"{", 400),
            (b"[]", 400),
            (b'{"task": 1}', 400),
            (b"[" * 60_000, 400),
            (b" " * 70_000, 413),
        ):
            assert browser.post("/stop", content=body, headers=kind).status_code == code
        assert browser.get("/stop").status_code == 405
    for each in (task, other):
        each.send("go")
        assert each.result(60) == "all said"


def test_a_thousand_viewers_of_a_web_process_share_two_connections(caller, redis):
    import asyncio

    async def view(client, id, seen):
        told = b""
        async for part in events_response(client, id, show={"succeeded"}).body_iterator:
            told += part if isinstance(part, bytes) else part.encode()
            if b"line 1" in told:
                seen.add(asyncio.current_task())
        return told

    async def watch(tasks):
        seen = set()
        async with Client(redis) as web:
            before = connections()
            viewers = [asyncio.create_task(view(web, tasks[n % 10].id, seen)) for n in range(1000)]
            while len(seen) < 1000:
                await asyncio.sleep(0.05)
            taken = connections() - before
            for task in tasks:
                task.send("go")
            return taken, await asyncio.gather(*viewers)

    def connections():
        address = httpx.URL(redis)
        with socket.create_connection((address.host, address.port)) as line:
            line.sendall(b"CLIENT LIST\r\n")
            size, _, rest = line.recv(65536).partition(b"\r\n")
            while len(rest) < int(size[1:]):
                rest += line.recv(65536)
        return rest.count(b"id=")

    with Worker(redis, concurrency=10, pool="thread"):
        tasks = [caller.submit(talk, 4, 1) for _ in range(10)]
        for task in tasks:  # all others are connected
            next(iter(task.events("progress")))
        taken, told = asyncio.run(watch(tasks))
    assert taken <= 2
    assert all(each.count(b"line ") == 4 and each.count(b'"succeeded"') == 1 for each in told)


def test_a_token_keeps_a_task_of_this_process_until_it_expires(monkeypatch):
    import time

    with Client("thread://") as client:
        ids = []
        for _ in range(2):
            task = client.submit(sum, [1, 2])
            ids.append(task.id)
            token(client, task.id, seconds=60)
            assert task.result(30) == 3
        kept, gone = ids
        del task
        token(client, kept, seconds=600)
        assert [client.attach(each).result(30) for each in ids] == [3, 3]
        monkeypatch.setattr("revolve_assistant.views.web.tokens.time", lambda: time.time() + 120.0)
        token(client, kept)
        assert client.attach(kept).result(30) == 3
        with pytest.raises(LookupError):
            client.attach(gone).result(30)


def test_a_token_expires_and_is_nothing_else(caller, monkeypatch):
    text = token(caller, "t", seconds=5.0)
    assert check(caller, text) == ({"t"}, False)
    import time

    late = time.time() + 6.0
    monkeypatch.setattr("revolve_assistant.wire.seal.time.time", lambda: late)
    with pytest.raises(Untrusted, match="expired"):
        check(caller, text)
    with pytest.raises(UsageError):
        token(caller)
    with pytest.raises(UsageError):
        token(caller, "t", seconds=0.0)


def test_an_engine_of_this_process_streams_too():
    import asyncio

    async def read(client, task, at):
        response = events_response(client, task.id, at, show={"succeeded"})
        return [part async for part in response.body_iterator] if response.status_code == 200 else []

    with Client(max_workers=1) as client:
        task = client.submit(talk, 20, -1)
        parts = asyncio.run(read(client, task, None))
        ids = [part.split("\n")[0][4:] for part in parts[1:]]
        assert sum('"output"' in part for part in parts) == 20
        half = asyncio.run(read(client, task, ids[len(ids) // 2]))
        assert half[1:] == parts[2 + len(ids) // 2 :]
        assert asyncio.run(read(client, task, ids[-1])) == []
        assert check(client, token(client, task.id)).tasks == {task.id}
        with Client(max_workers=1) as other, pytest.raises(Untrusted):
            check(other, token(client, task.id))


def test_places_and_values():
    assert places("1.5_2.7e", 2) == [Place(1, 5), Place(2, 7, True)]
    for strange in ("", "1.5", "1.5_x", "1.5_2.7_1.1", "9" * 5000, "\n_1.1"):
        assert places(strange, 2) == [Place(), Place()]
    assert plain({"a": (1, float("nan"), b"x", 1 << 60)}) == {"a": [1, "nan", "b'x'", str(1 << 60)]}
    deep: list[object] = []
    deep.append(deep)
    assert plain(deep)
    from revolve_assistant import Event

    hidden = Event("t", 1, 3, "row", ("secret",), 0.0)
    assert fields(hidden, ()) is None
    assert fields(hidden, {"row"})["args"] == ["secret"]
    assert "result" not in fields(Event("t", 1, 3, "succeeded", ("secret",), 0.0), ())
    assert "secret" not in str(fields(Event("t", 1, 3, "failed", (ValueError("secret"),), 0.0), ()))
