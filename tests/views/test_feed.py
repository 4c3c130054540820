"""What every view reads: all tasks of a queue or of an engine, as they are now, and what has changed since."""

from __future__ import annotations

import threading

import pytest

from revolve_assistant import Client, Worker, ask, current_task, report
from revolve_assistant.event import ENDS
from revolve_assistant.testing.servers import Gearmand, Memcached
from revolve_assistant.views.feed import Feed


def steps() -> str:
    """Reports what it is told, until it is told to end."""
    current_task().emit("output", "hidden words")
    while True:
        message = current_task().receive(timeout=60)
        if message.name == "end":
            return "hidden result"
        report(message.args[0], f"at {message.args[0]}")


def fails() -> None:
    raise ValueError("hidden words")


def asks() -> str:
    return ask("Tea?", timeout=60)


class View:
    """What a view knows, kept up to date by changes alone."""

    def __init__(self, feed: Feed) -> None:
        self.feed, self.version, self.tasks = feed, 0, {}

    def until(self, wanted):
        """Apply changes until `wanted(tasks by id)` holds."""
        while True:
            found = self.feed.changes(self.version)
            if found.whole:
                self.tasks.clear()
            self.version = found.version
            self.tasks.update({each.id: each for each in found.tasks})
            for id in found.gone:
                self.tasks.pop(id, None)
            if wanted(self.tasks):
                return
            assert self.feed.wait(self.version, 30), (self.tasks, self.feed.look())

    def state(self, id, *states):
        self.until(lambda tasks: id in tasks and tasks[id].state in states)
        return self.tasks[id]

    def progress(self, id, fraction):
        self.until(lambda tasks: id in tasks and tasks[id].progress and tasks[id].progress.fraction == fraction)


@pytest.fixture(params=["memory", "gearman", "process", "thread"])
def feed(request, need):
    if request.param == "gearman":  # which cannot be looked into: workers tell, by a messenger that many read
        need("gearmand")
        need("memcached")
        with Gearmand() as tasks, Memcached() as words:
            place = f"gearman://127.0.0.1:{tasks.port}/feed"
            carrier = f"memcached://127.0.0.1:{words.port}/feed"
            worker, client = Worker(place, messenger=carrier, concurrency=4), Client(place, messenger=carrier)
            with worker, client, Feed(client) as feed:
                yield feed
    elif request.param == "memory":
        place = f"memory://{request.node.originalname}"  # what one queue was told of lately, the next feed is told too
        with Worker(place, concurrency=4), Client(place) as client, Feed(client) as feed:
            yield feed
    else:
        with Client(f"{request.param}://", max_workers=4) as client, Feed(client) as feed:
            yield feed


def test_all_tasks_are_seen_live_and_can_be_stopped_and_answered(feed):
    client, view = feed.client, View(feed)
    task = client.submit(steps)
    view.state(task.id, "running")
    for fraction in (0.25, 0.5):
        task.send("to", fraction)
        view.progress(task.id, fraction)
    assert view.tasks[task.id].progress.message == "at 0.5"
    assert view.tasks[task.id].name.endswith(":steps")
    assert view.tasks[task.id].queue == "default"
    late = View(feed)  # who comes later sees the same
    late.progress(task.id, 0.5)
    task.send("end")
    assert view.state(task.id, *ENDS).state == "succeeded"

    stopped = client.submit(steps)
    view.state(stopped.id, "running")
    assert feed.stop(stopped.id)
    assert view.state(stopped.id, *ENDS).state == "cancelled"
    asking = client.submit(asks)
    view.state(asking.id, "running")
    assert feed.answer(asking.id, "yes")
    assert asking.result(60) == "yes"
    assert view.state(asking.id, *ENDS).state == "succeeded"
    assert not feed.stop(asking.id)
    seen = feed.look()
    assert (seen.ends["succeeded"], seen.ends["cancelled"], seen.trouble) == (2, 1, "")
    assert sum(good for good, _ in seen.rates) == 2
    assert sum(bad for _, bad in seen.rates) == 1
    assert "hidden" not in str(view.tasks)
    late.until(lambda tasks: tasks == view.tasks)


def test_a_new_attempt_begins_anew(feed):
    task = feed.client.options(retries=1, backoff=0.0).submit(fails)
    with pytest.raises(ValueError, match="hidden"):
        task.result(60)
    seen = View(feed).state(task.id, *ENDS)
    assert (seen.state, seen.attempt) == ("failed", 2)


def test_what_failed_can_be_tried_again_where_the_queue_keeps_it():
    with Worker("memory://again"), Client("memory://again") as client, Feed(client) as feed:
        task = client.submit(fails)
        view = View(feed)
        view.until(lambda tasks: task.id in tasks and tasks[task.id].buried)
        assert "hidden words" in view.tasks[task.id].reason
        fresh = View(Feed(client).open())  # a feed that begins after that
        fresh.until(lambda tasks: task.id in tasks and tasks[task.id].buried)
        fresh.feed.close()
        again = feed.retry(task.id)
        view.until(lambda tasks: again in tasks and tasks[again].state == "failed" and not tasks[task.id].buried)
        [worker] = feed.look().workers
        assert worker.state == "running"
        with pytest.raises(LookupError):
            feed.retry("nobody")
        task.exception(60)


def test_who_waits_for_another_attempt_and_is_cancelled_is_seen_to_end():
    with Worker("memory://waits"), Client("memory://waits") as client, Feed(client) as feed:
        task = client.options(retries=1, backoff=3600.0).submit(fails)
        view = View(feed)
        view.state(task.id, "retrying")
        assert feed.stop(task.id)
        view.state(task.id, "cancelled")
        assert feed.look().ends["cancelled"] == 1


def test_progress_is_told_while_somebody_looks_and_never_otherwise():
    from revolve_assistant.providers import registry

    looking = registry.messenger("memory://quiet")
    looking.open()
    looking.keep(["monitor"], seconds=60, cap=1 << 20)

    def told():
        return [message.frame for message in looking.read({"monitor": b""}, limit=1000, wait=10.0).messages]

    with Worker("memory://quiet"), Client("memory://quiet") as client:
        task = client.submit(steps)
        events = task.events("progress")
        for fraction in (0.1, 0.2, 0.3):
            task.send("to", fraction)
            next(events)
        assert len(told()) == 1  # that it started
        with Feed(client) as feed:
            View(feed).progress(task.id, 0.3)  # what was reported before is told to who has just come
            assert feed.look().open == 1
        task.send("end")
        task.result(60)
    looking.close()


def test_views_of_one_feed_read_while_it_changes(feed):
    """Whatever the moment of a look, in the end all views hold the same."""
    views = [View(feed) for _ in range(3)]
    tasks = [feed.client.submit(int, "1") for _ in range(200)]

    def look(view):
        view.until(lambda seen: sum(each.state == "succeeded" for each in seen.values()) == 200)

    threads = [threading.Thread(target=look, args=(view,)) for view in views]
    for thread in threads:
        thread.start()
    for task in tasks:
        assert task.result(60) == 1
    for thread in threads:
        thread.join(60)
    version = feed.changes(0)
    assert [view.tasks for view in views] == [{each.id: each for each in version.tasks}] * 3
