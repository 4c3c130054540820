"""What Iron.io's own clients think of our stand-in: `iron-mq`, `iron-worker` and `iron-core` from PyPI, as they are.

They are an opinion that is not ours on paths, headers and shapes. `iron_mq.IronMQ.queues()` calls `urllib.urlencode`,
which Python 3 does not have: that request is made through the official core.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator

import iron_core
import iron_mq
import iron_worker
import pytest
from requests.exceptions import ConnectionError as Cut
from requests.exceptions import HTTPError

from revolve_assistant.testing.checks import eventually
from revolve_assistant.testing.iron import IronServer, VirtualClock


@pytest.fixture
def iron() -> Iterator[IronServer]:
    with IronServer(clock=VirtualClock()) as server:
        yield server


@pytest.fixture
def mq(iron: IronServer) -> iron_mq.IronMQ:
    return iron_mq.IronMQ(**iron.settings())


@pytest.fixture
def worker(iron: IronServer) -> iron_worker.IronWorker:
    return iron_worker.IronWorker(**iron.settings())


def status(call, *args, **kwargs) -> int:
    """The status that the official client raises for."""
    with pytest.raises(HTTPError) as caught:
        call(*args, **kwargs)
    assert set(caught.value.response.json()) == {"msg"}
    return caught.value.response.status_code


# ---------------------------------------------------------------- IronMQ


def test_a_message_from_post_to_delete(iron, mq):
    queue = mq.queue("jobs")
    posted = queue.post("one", {"body": "two", "delay": 0}, "three")
    assert posted["msg"] == "Messages put on queue."
    assert len(posted["ids"]) == 3
    assert all(isinstance(id, str) for id in posted["ids"])
    assert (queue.size(), queue.total_messages()) == (3, 3)

    held = queue.reserve(max=3, timeout=60)["messages"]
    assert [each["body"] for each in held] == ["one", "two", "three"]
    assert [each["id"] for each in held] == posted["ids"]
    assert [each["reserved_count"] for each in held] == [1, 1, 1]
    assert len({each["reservation_id"] for each in held}) == 3
    assert queue.reserve(max=3)["messages"] == []

    first, second, third = held
    assert queue.delete(first["id"], first["reservation_id"]) == {"msg": "Deleted"}
    assert queue.delete_multiple(messages={"messages": [second, third]}) == {"msg": "Deleted"}
    assert (queue.size(), queue.total_messages()) == (0, 3)


def test_a_reservation_ends_and_fences(iron, mq):
    queue = mq.queue("jobs")
    queue.post("one")
    old = queue.reserve(timeout=60)["messages"][0]
    iron.clock.advance(61)
    new = queue.reserve(timeout=60)["messages"][0]
    assert new["id"] == old["id"]
    assert new["reserved_count"] == 2
    assert new["reservation_id"] != old["reservation_id"]
    assert status(queue.delete, old["id"], old["reservation_id"]) == 403
    assert status(queue.touch, old["id"], old["reservation_id"]) == 403
    assert status(queue.release, old["id"], old["reservation_id"]) == 403
    assert status(queue.delete, new["id"]) == 403  # reserved, and no reservation said
    assert queue.delete(new["id"], new["reservation_id"]) == {"msg": "Deleted"}
    assert status(queue.delete, new["id"], new["reservation_id"]) == 404


def test_touch_gives_a_new_reservation_and_more_time(iron, mq):
    queue = mq.queue("jobs")
    queue.post("one")
    held = queue.reserve(timeout=60)["messages"][0]
    iron.clock.advance(50)
    touched = queue.touch(held["id"], held["reservation_id"], 60)
    assert touched["msg"] == "Touched"
    iron.clock.advance(50)
    assert queue.reserve()["messages"] == []
    assert status(queue.touch, held["id"], held["reservation_id"]) == 403
    assert queue.touch(held["id"], touched["reservation_id"])["reservation_id"] != touched["reservation_id"]


def test_release_delay_peek_and_one_message(iron, mq):
    queue = mq.queue("jobs")
    (id,) = queue.post({"body": "later", "delay": 5})["ids"]
    assert queue.peek()["messages"] == []
    iron.clock.advance(5)
    assert [each["body"] for each in queue.peek(max=10)["messages"]] == ["later"]
    held = queue.reserve()["messages"][0]  # a peek reserves nothing
    assert queue.peek()["messages"] == []
    assert queue.get_message_by_id(id)["body"] == "later"
    assert queue.release(held["id"], held["reservation_id"], 30) == {"msg": "Released"}
    assert queue.reserve()["messages"] == []
    iron.clock.advance(30)
    assert queue.reserve()["messages"][0]["id"] == id
    assert queue.post("free")["ids"]
    (free,) = [each for each in queue.peek(max=9)["messages"] if each["body"] == "free"]
    assert queue.delete(free["id"]) == {"msg": "Deleted"}  # unreserved: no reservation needed
    assert queue.reserve(max=1, delete=True)["messages"] == []


def test_delete_on_reserve_and_clear(iron, mq):
    queue = mq.queue("jobs")
    queue.post("a", "b", "c")
    assert [each["body"] for each in queue.reserve(max=2, delete=True)["messages"]] == ["a", "b"]
    assert queue.size() == 1
    assert queue.clear() == {"msg": "Cleared"}
    queue.post("d")
    assert queue.delete_multiple(ids=[]) == {"msg": "Cleared"}  # the trap: nothing to delete is everything
    assert queue.size() == 0


def test_queues_are_made_changed_listed_and_removed(iron, mq):
    made = mq.create_queue("b.jobs", {"message_timeout": 120, "message_expiration": 3600})
    assert (made["name"], made["message_timeout"], made["type"]) == ("b.jobs", 120, "pull")
    assert mq.update_queue("b.jobs", {"message_timeout": 30})["message_timeout"] == 30
    assert status(mq.update_queue, "b.jobs", {"type": "unicast"}) == 400
    assert status(mq.update_queue, "nowhere", {}) == 404
    for name in ("a.1", "a.2", "a.3"):
        mq.queue(name).post("x")

    def names(query: str) -> list[str]:
        return [each["name"] for each in mq.client.get(f"queues?{query}")["body"]["queues"]]

    assert names("prefix=a.") == ["a.1", "a.2", "a.3"]
    assert names("per_page=2") == ["a.1", "a.2"]
    assert names("per_page=2&previous=a.2") == ["a.3", "b.jobs"]
    assert mq.queue("a.1").delete_queue() == {"msg": "Deleted"}
    assert status(mq.queue("a.1").info) == 404
    assert status(mq.queue("a.1").reserve) == 404


def test_what_expires_and_dead_letters(iron, mq):
    mq.create_queue("jobs", {"message_expiration": 60, "dead_letter": {"queue_name": "dead", "max_reservations": 2}})
    queue = mq.queue("jobs")
    queue.post("old")
    iron.clock.advance(61)
    assert queue.reserve()["messages"] == []
    mq.update_queue("jobs", {"message_expiration": 3600})
    queue.post("poison")
    for _ in range(2):
        assert queue.reserve(timeout=10)["messages"]
        iron.clock.advance(11)
    assert queue.reserve()["messages"] == []
    assert [each["body"] for each in mq.queue("dead").peek()["messages"]] == ["poison"]


def test_subscribers_of_a_push_queue(iron, mq):
    one, two = {"name": "one", "url": "http://127.0.0.1/1"}, {"name": "two", "url": "http://127.0.0.1/2"}
    mq.create_queue("push", {"type": "multicast", "push": {"subscribers": [one]}})
    queue = mq.queue("push")
    assert queue.add_subscribers(two) == {"msg": "Updated"}
    assert [each["name"] for each in queue.info()["push"]["subscribers"]] == ["one", "two"]
    queue.remove_subscribers("one")
    assert [each["name"] for each in queue.info()["push"]["subscribers"]] == ["two"]
    queue.replace_subscribers(one)
    assert [each["name"] for each in queue.info()["push"]["subscribers"]] == ["one"]


def test_a_long_poll_ends_with_a_message(mq):
    with IronServer() as iron:
        queue = iron_mq.IronMQ(**iron.settings()).queue("jobs")
        iron_mq.IronMQ(**iron.settings()).create_queue("jobs", {})
        got: list[str] = []
        waiting = threading.Thread(
            target=lambda: got.extend(each["body"] for each in queue.reserve(wait=30)["messages"])
        )
        waiting.start()
        iron_mq.IronMQ(**iron.settings()).queue("jobs").post("now")
        waiting.join(20)
        assert got == ["now"]


def test_limits_and_refusals(iron, mq, worker):
    queue = mq.queue("jobs")
    assert status(queue.post, *["x"] * 101) == 400
    assert status(queue.post, "x" * (64 << 10)) == 403
    queue.post("x")
    assert status(queue.reserve, max=101) == 400
    assert status(queue.reserve, wait=31) == 400
    assert status(queue.post, {"body": "x", "delay": 604_801}) == 400
    wrong = iron_mq.IronMQ(**{**iron.settings(), "token": "wrong"})
    assert status(wrong.queue("jobs").size) == 401
    other = iron_mq.IronMQ(**{**iron.settings(), "project_id": "another"})
    assert status(other.queue("jobs").size) == 401
    core = worker.client
    assert status(core.post, "tasks", body='{"tasks": []}', headers={"Content-Type": "text/plain"}) == 406
    assert status(core.post, "tasks", body="{}", headers={"Content-Type": "application/json"}) == 406
    assert status(core.put, "tasks", body="{}", headers={"Content-Type": "application/json"}) == 405


def test_faults_as_the_official_clients_meet_them(iron, mq):
    queue = mq.queue("jobs")
    iron.fail(503, times=1)
    assert queue.post("again")["ids"]  # they try again by themselves
    assert [each.status for each in iron.seen] == [503, 201]
    iron.fail("cut", match="reservations")
    with pytest.raises(Cut):
        queue.reserve()
    iron.fail("cut after", match="messages")
    with pytest.raises(Cut):
        queue.post("twice")
    assert queue.size() == 2  # it was posted all the same
    iron.fail("garbage")
    assert isinstance(mq.client.get("queues")["body"], str)
    iron.restart()
    assert queue.size() == 2
    iron.restart(wipe=True)
    assert status(queue.size) == 404


# ---------------------------------------------------------------- IronWorker

HELLO = """
import sys
from iron_worker import IronWorker
print("payload", IronWorker.payload(), "config", IronWorker.config(), "id", IronWorker.task_id())
open(IronWorker.task_dir() + "/written", "w").close()
print("to stderr", file=sys.stderr)
"""


def test_a_task_from_queue_to_log(iron, worker):
    iron.code("hello", [sys.executable, "-c", HELLO], config={"colour": "red"})
    task = worker.queue(code_name="hello", payload={"n": 3}, label="a label", priority=1, timeout=60)
    done = worker.wait_for_task(task)
    assert (done.status, done.code_name, done.payload, done.label) == ("complete", "hello", {"n": 3}, "a label")
    assert worker.stdout(task) == f"payload {{'n': 3}} config {{'colour': 'red'}} id {task.id}\n"
    assert worker.log(task).count("to stderr") == 1
    assert [each.id for each in worker.tasks(complete=True, code_name="hello")] == [task.id]
    assert worker.tasks(error=True) == []
    assert [each.id for each in worker.tasks_by_code_name("hello")] == [task.id]


def test_progress_cancel_retry_and_ends(iron, worker):
    iron.code("sleeps", [sys.executable, "-c", "import time; time.sleep(60)"])
    iron.code("fails", [sys.executable, "-c", "raise SystemExit(3)"])
    task = worker.queue(code_name="sleeps", payload="plain text")
    eventually(lambda: worker.task(task).status == "running", "it runs")
    assert worker.setProgress(task, 50, "half-way") == {"msg": "Progress set"}
    assert (worker.task(task).percent, worker.task(task).payload) == (50, "plain text")
    assert worker.client.get(f"tasks/{task.id}")["body"]["msg"] == "half-way"
    assert status(worker.log, task) == 404  # it has not ended
    assert worker.cancel(task)
    assert worker.task(task).status == "cancelled"
    again = worker.retry(task, delay=1)["tasks"][0]["id"]
    assert again != task.id
    assert worker.task(again).status == "queued"
    worker.cancel(again)

    failed = worker.queue(code_name="fails", payload="")
    assert worker.wait_for_task(failed).status == "error"
    late = worker.queue(code_name="sleeps", payload="", timeout=1)
    assert iron.tasks.wait(late.id, 20) == "timeout"
    assert status(worker.task, "000000000000000000000000") == 404
    assert status(worker.queue, code_name="nothing", payload="") == 404


def test_delay_several_and_schedules(iron, worker):
    iron.code("hello", [sys.executable, "-c", "print(1)"])
    tasks = worker.queue(tasks=[iron_worker.Task(code_name="hello", delay=60) for _ in range(2)])
    assert [worker.task(each).status for each in tasks] == ["queued", "queued"]
    iron.clock.advance(60)
    assert [iron.tasks.wait(each.id, 20) for each in tasks] == ["complete", "complete"]
    planned = worker.queue(code_name="hello", scheduled=True, run_every=60, run_times=2)
    assert [each.id for each in worker.tasks(scheduled=True)] == [planned.id]
    assert worker.task(planned.id, scheduled=True).run_every == 60
    assert worker.cancel(planned.id, scheduled=True)
    too_often = {"schedules": [{"code_name": "hello", "run_every": 59}]}
    asked = {"Content-Type": "application/json"}
    assert status(worker.client.post, "schedules", body=json.dumps(too_often), headers=asked) == 400


def test_code_packages(iron, worker, tmp_path):
    (tmp_path / "run.py").write_text("print(1)")
    package = iron_worker.CodePackage({"name": "uploaded"})
    package.merge(str(tmp_path / "run.py"))
    package.zip(destination=str(tmp_path / "uploaded.zip"))
    made = worker.postCode(package)
    assert made.name == "uploaded"
    assert [each.name for each in worker.codes()] == ["uploaded"]
    assert worker.code(made.id).revision == 1
    worker.postCode(package)
    assert [each.revision for each in worker.revisions(made.id)] == [1, 2]
    worker.deleteCode(made.id)
    assert worker.codes() == []


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # theirs, of a file that is no JSON
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_both_find_the_same_settings(iron, tmp_path, monkeypatch):
    """Ours and the official core's reading of files and variables, each source over the one before."""
    from revolve_assistant.protocols.iron import read

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("IRON_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()

    def same(product: str) -> tuple[str, str]:
        theirs = iron_core.IronClient(name="x", version="1", product=product)
        ours = read(product)
        assert ours.base == theirs.base_url
        assert ours.token.reveal() == theirs.token
        return ours.base, theirs.token

    def write(path, **fields) -> None:
        path.write_text(json.dumps(fields))

    write(tmp_path / "home" / ".iron.json", project_id="p1", token="t1")
    assert same("iron_mq") == ("https://mq-aws-us-east-1-1.iron.io/3/projects/p1/", "t1")
    assert same("iron_worker") == ("https://worker-aws-us-east-1.iron.io/2/projects/p1/", "t1")
    monkeypatch.setenv("IRON_TOKEN", "t2")
    monkeypatch.setenv("IRON_HOST", "h2")
    assert same("iron_mq") == ("https://h2/3/projects/p1/", "t2")
    monkeypatch.setenv("IRON_MQ_TOKEN", "t3")
    monkeypatch.setenv("IRON_MQ_PORT", "8080")
    assert same("iron_mq") == ("https://h2:8080/3/projects/p1/", "t3")
    assert same("iron_worker")[1] == "t2"
    write(tmp_path / "iron.json", token="t4", protocol="http", iron_mq={"token": "t5", "host": "h5"})
    assert same("iron_mq") == ("http://h5:8080/3/projects/p1/", "t5")
    assert same("iron_worker")[1] == "t4"
    monkeypatch.setenv("IRON_CLOUD", "https://cloud.example:8443/deep/")
    assert same("iron_mq") == ("https://cloud.example:8443/deep/3/projects/p1/", "t5")
    (tmp_path / "iron.json").unlink()
    (tmp_path / "home" / ".iron.json").write_text("{broken")  # theirs says nothing, ours a word in the log
    monkeypatch.setenv("IRON_PROJECT_ID", "p6")
    assert same("iron_mq")[0].endswith("/p6/")
