"""Other systems on the same Redis server, each with its quickest documented settings; beside `redis_queues.py`.

Each peer measures by itself what it can: `one`, `bulk`, `drain` give tasks a second, `events` events a second,
`latency` and `paced` microseconds. What it has not, or is not measured of it, is None.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from _measure import children_of

FOLDER = Path(__file__).parent
LATENCY = 500
PACED = 300  # events
PAUSE = 0.005  # seconds between them


def there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@contextmanager
def crew(name: str, url: str, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Worker processes of a peer, at once; gone at the end."""
    environment = {**os.environ, "BENCH_REDIS": url, "PYTHONPATH": str(FOLDER)}
    command = [sys.executable, "-c", "import sys, _queue_peers; _queue_peers.work(*sys.argv[1:])", name, url]
    started = [
        subprocess.Popen(command, env=environment, cwd=FOLDER, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def pids_of(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    return [pid for process in processes for pid in (process.pid, *children_of(process.pid))]


def wait_for(reached: Callable[[], bool], limit: float = 120.0) -> None:
    deadline = time.monotonic() + limit
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError("a peer did not get there")
        time.sleep(0.002)


class Huey:
    """`RedisHuey` with results and notification; pickle, as it is."""

    name = "Huey"

    def __init__(self, url: str) -> None:
        self.url = url
        self.app, self.noop = huey_app(url)
        self.server = self.app.storage.conn

    def clear(self) -> None:
        self.server.flushdb()

    def one(self, count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            self.noop()
        return count / (time.perf_counter() - began)

    bulk = None  # it has none

    def drain(self, count: int) -> float:
        self.one(count)
        key = self.app.storage.queue_key
        with crew("huey", self.url, 2):
            wait_for(lambda: self.server.llen(key) < count)
            began, first = time.perf_counter(), self.server.llen(key)
            wait_for(lambda: self.server.llen(key) == 0)
            return first / (time.perf_counter() - began)

    def latency(self) -> list[float]:
        with crew("huey", self.url, 2):
            self.noop().get(blocking=True, timeout=30)
            found = []
            for _ in range(LATENCY):
                began = time.perf_counter()
                self.noop().get(blocking=True, timeout=30)
                found.append((time.perf_counter() - began) * 1e6)
            return found

    events = paced = None

    @contextmanager
    def idle(self) -> Iterator[list[int]]:
        with crew("huey", self.url, 2) as processes:
            for result in [self.noop() for _ in range(100)]:
                result.get(blocking=True, timeout=30)
            yield pids_of(processes)


def huey_app(url: str) -> tuple[Any, Any]:
    from huey import RedisHuey

    app = RedisHuey("bench", url=url, notify_result=True)

    @app.task(name="noop")
    def noop() -> int:
        return 1  # a None is no result there

    return app, noop


class BullMQ:
    """`bullmq`, its Python port; finished jobs removed as it advises for many.

    Its workers run one task at once, as they do by default. With `concurrency` 50 an idle one asks 50 times, on one
    connection, whenever a task comes: 67 scripts and 13 ms for one instead of 5 and 2, and a drain is no quicker.
    """

    name = "BullMQ"
    options = {"removeOnComplete": True}  # noqa: RUF012 - read only

    def __init__(self, url: str) -> None:
        from redis import Redis

        self.url = url
        self.server = Redis.from_url(url)

    def clear(self) -> None:
        self.server.flushdb()

    def one(self, count: int) -> float:
        async def go(queue: Any) -> float:
            began = time.perf_counter()
            for _ in range(count):
                await queue.add("noop", {}, self.options)
            return count / (time.perf_counter() - began)

        return self._with_queue(go)

    def bulk(self, count: int) -> float:
        async def go(queue: Any) -> float:
            jobs = [{"name": "noop", "data": {}, "opts": self.options} for _ in range(count)]
            began = time.perf_counter()
            for start in range(0, count, 1000):
                await queue.addBulk(jobs[start : start + 1000])
            return count / (time.perf_counter() - began)

        return self._with_queue(go)

    def drain(self, count: int) -> float:
        self.bulk(count)

        def left() -> int:
            return int(self.server.llen("bull:bench:wait"))

        assert left() == count
        with crew("bullmq", self.url, 2):
            wait_for(lambda: left() < count)
            began, first = time.perf_counter(), left()
            wait_for(lambda: left() == 0)
            return first / (time.perf_counter() - began)

    def latency(self) -> list[float]:
        async def go(queue: Any, heard: Heard) -> list[float]:
            found = []
            for number in range(LATENCY + 20):
                began = time.perf_counter()
                job = await queue.add("noop", {}, self.options)
                await heard.end(job.id)
                if number >= 20:
                    found.append((time.perf_counter() - began) * 1e6)
            return found

        with crew("bullmq", self.url, 2):
            return self._with_queue(go, Heard)

    def events(self, count: int) -> float:
        async def go(queue: Any, heard: Heard) -> float:
            job = await queue.add("noop", {}, self.options)
            await heard.end(job.id)
            began = time.perf_counter()
            job = await queue.add("pour", {"count": count}, self.options)
            await heard.end(job.id)
            rate = count / (time.perf_counter() - began)
            assert len(heard.progress) == count, f"{len(heard.progress):,} events of {count:,} came"
            return rate

        with crew("bullmq", self.url, 1):
            return self._with_queue(go, Heard)

    def paced(self) -> list[float]:
        async def go(queue: Any, heard: Heard) -> list[float]:
            job = await queue.add("paced", {"count": PACED, "pause": PAUSE}, self.options)
            await heard.end(job.id)
            return [(at - sent) / 1e3 for at, sent in heard.progress][20:]

        with crew("bullmq", self.url, 1):
            return self._with_queue(go, Heard)

    @contextmanager
    def idle(self) -> Iterator[list[int]]:
        with crew("bullmq", self.url, 2) as processes:
            self.bulk(100)
            wait_for(lambda: not self.server.exists("bull:bench:wait", "bull:bench:active"))
            yield pids_of(processes)

    def _with_queue(self, go: Callable[..., Any], heard: Callable[[str], Heard] | None = None) -> Any:
        from bullmq import Queue

        async def main() -> Any:
            queue = Queue("bench", {"connection": self.url})
            listener = heard(self.url) if heard else None
            try:
                return await (go(queue, listener) if listener else go(queue))
            finally:
                if listener:
                    with suppress(TimeoutError):  # it may wait for ever for its own reader
                        await asyncio.wait_for(listener.events.close(), 2)
                await queue.close()

        return asyncio.run(main())


class Heard:
    """What BullMQ's queue events say, ends and progress; from the beginning of the stream, so that none is missed."""

    def __init__(self, url: str) -> None:
        from bullmq import QueueEvents

        self.progress: list[tuple[int, Any]] = []  # (when it was heard, what was said)
        self._ended: set[str] = set()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self.events = QueueEvents("bench", {"connection": url, "lastEventId": "0-0"})
        self.events.on("completed", self._completed)
        self.events.on("progress", lambda said, _id: self.progress.append((time.monotonic_ns(), said["data"])))

    def _completed(self, said: dict[str, Any], _id: str) -> None:
        job = str(said["jobId"])
        self._ended.add(job)
        if waiting := self._waiting.pop(job, None):
            waiting.set_result(None)

    async def end(self, job: str) -> None:
        if job not in self._ended:
            waiting = self._waiting[job] = asyncio.get_running_loop().create_future()
            await asyncio.wait_for(waiting, 120)


class Celery:
    """Prefork, results and `on_message` over Redis, as it is; gossip, mingle and heartbeats off."""

    name = "Celery"

    def __init__(self, url: str) -> None:
        from redis import Redis

        self.url = url
        self.server = Redis.from_url(url)
        self.app = celery_app(url)

    def clear(self) -> None:
        self.server.flushdb()

    def one(self, count: int) -> float:
        noop = self.app.tasks["noop"]
        noop.delay()
        began = time.perf_counter()
        for _ in range(count):
            noop.delay()
        return count / (time.perf_counter() - began)

    bulk = None

    def drain(self, count: int) -> float:
        self.one(count)
        with crew("celery", self.url, 1):  # one program of two processes
            wait_for(lambda: self._ended() > 0)
            began, first = time.perf_counter(), self._ended()
            wait_for(lambda: self._ended() > count)
            return (count + 1 - first) / (time.perf_counter() - began)

    def _ended(self) -> int:
        return int(self.server.dbsize()) - int(self.server.exists("celery", "unacked", "unacked_index", *BINDINGS))

    def latency(self) -> list[float]:
        noop = self.app.tasks["noop"]
        with crew("celery", self.url, 1):
            noop.delay().get(timeout=60)
            found = []
            for _ in range(LATENCY):
                began = time.perf_counter()
                noop.delay().get(timeout=60, interval=0.001)
                found.append((time.perf_counter() - began) * 1e6)
            return found

    def events(self, count: int) -> float:
        with crew("celery", self.url, 1):
            self.app.tasks["noop"].delay().get(timeout=60)
            began = time.perf_counter()
            said = self._hear("pour", count)
            assert len(said) == count, f"{len(said):,} events of {count:,} came"
            return count / (time.perf_counter() - began)

    def paced(self) -> list[float]:
        with crew("celery", self.url, 1):
            return [(at - sent) / 1e3 for at, sent in self._hear("paced", PACED, PAUSE)][20:]

    @contextmanager
    def idle(self) -> Iterator[list[int]]:
        with crew("celery", self.url, 1) as processes:
            for result in [self.app.tasks["noop"].delay() for _ in range(100)]:
                result.get(timeout=60)
            yield pids_of(processes)

    def _hear(self, name: str, *args: Any) -> list[tuple[int, int]]:
        said: list[tuple[int, int]] = []

        def hear(message: dict[str, Any]) -> None:
            if message["status"] == "PROGRESS":
                said.append((time.monotonic_ns(), message["result"]["at"]))

        self.app.tasks[name].delay(*args).get(timeout=120, on_message=hear)
        return said


BINDINGS = ("_kombu.binding.celery", "_kombu.binding.celery.pidbox", "_kombu.binding.celeryev")


def celery_app(url: str) -> Any:
    from celery import Celery as App

    app = App("bench", broker=url, backend=url)
    app.conf.update(worker_prefetch_multiplier=64, broker_connection_retry_on_startup=True)

    @app.task(name="noop")
    def noop() -> int:
        return 1

    @app.task(name="pour", bind=True)
    def pour(self: Any, count: int) -> None:
        for _ in range(count):
            self.update_state(state="PROGRESS", meta={"at": 0})

    @app.task(name="paced", bind=True)
    def paced(self: Any, count: int, pause: float) -> None:
        time.sleep(0.5)  # for the listener to be there
        for _ in range(count):
            time.sleep(pause)
            self.update_state(state="PROGRESS", meta={"at": time.monotonic_ns()})

    return app


def work_huey(url: str) -> None:
    app, _ = huey_app(url)
    app.create_consumer(workers=1, worker_type="thread", initial_delay=0.01, check_worker_health=False).run()


def work_bullmq(url: str) -> None:
    from bullmq import Worker

    async def process(job: Any, _token: str) -> int:
        if job.name == "pour":
            for number in range(job.data["count"]):
                await job.updateProgress(number)
        if job.name == "paced":
            for _ in range(job.data["count"]):
                await asyncio.sleep(job.data["pause"])
                await job.updateProgress(time.monotonic_ns())
        return 1

    async def main() -> None:
        worker = Worker("bench", process, {"connection": url})
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await worker.close()

    asyncio.run(main())


def work_celery(url: str) -> None:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=ERROR"]
    celery_app(url).worker_main(["worker", "--concurrency=2", *quiet])


PEERS = {"huey": Huey, "bullmq": BullMQ, "celery": Celery}


def work(name: str, url: str) -> None:
    """Be a worker of that system until a signal."""
    {"huey": work_huey, "bullmq": work_bullmq, "celery": work_celery}[name](url)
