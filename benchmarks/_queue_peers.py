"""Other systems on the same Redis server, each with its quickest documented settings; beside `redis_queues.py`.

Each peer measures by itself what it can: `one`, `bulk` and `drain` give tasks a second, `latency` microseconds. What is
not measured of it is None.
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

FOLDER = Path(__file__).parent
LATENCY = 500


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


def huey_app(url: str) -> tuple[Any, Any]:
    from huey import RedisHuey

    app = RedisHuey("bench", url=url, notify_result=True)

    @app.task(name="noop")
    def noop() -> int:
        return 1  # a None is no result there

    return app, noop


class BullMQ:
    """`bullmq`, its Python port; finished jobs removed as it advises for many."""

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

    latency = None

    def _with_queue(self, go: Callable[[Any], Any]) -> Any:
        from bullmq import Queue

        async def main() -> Any:
            queue = Queue("bench", {"connection": self.url})
            try:
                return await go(queue)
            finally:
                await queue.close()

        return asyncio.run(main())


def work_huey(url: str) -> None:
    app, _ = huey_app(url)
    app.create_consumer(workers=1, worker_type="thread", initial_delay=0.01, check_worker_health=False).run()


def work_bullmq(url: str) -> None:
    from bullmq import Worker

    async def process(_job: Any, _token: str) -> int:
        return 1

    async def main() -> None:
        worker = Worker("bench", process, {"connection": url, "concurrency": 50})
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await worker.close()

    asyncio.run(main())


PEERS = {"huey": Huey, "bullmq": BullMQ}


def work(name: str, url: str) -> None:
    """Be a worker of that system until a signal."""
    {"huey": work_huey, "bullmq": work_bullmq}[name](url)
