"""Two things at one moment, many times over. (The callables are Python's own: children have nothing to import.)"""

from __future__ import annotations

import concurrent.futures as cf
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from revolve_assistant import Client, TaskCancelled

LONG = 30.0  # seconds that nothing here takes


@pytest.fixture(params=["process://", "thread://"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(request.param, max_workers=1) as client:
        yield client


def test_several_threads_wait_for_tasks_and_futures_together(client: Client) -> None:
    def wait(waited: list[Any], chance: random.Random) -> None:
        chance.shuffle(waited)
        left: Any = waited
        while left:
            when = chance.choice([cf.FIRST_COMPLETED, cf.FIRST_EXCEPTION, cf.ALL_COMPLETED])
            _, left = cf.wait(left, timeout=chance.choice([LONG, 0.001]), return_when=when)

    with cf.ThreadPoolExecutor(2) as others:
        for number in range(60):
            ends: list[Any] = [each.submit(time.sleep, n % 3 / 2000) for n in range(8) for each in (client, others)]
            waiting = [
                threading.Thread(target=wait, args=(list(ends), random.Random(10 * number + which)))
                for which in range(3)
            ]
            for thread in waiting:
                thread.start()
            for each in ends[::5] if number % 3 == 0 else ():
                each.cancel()
            assert set(cf.as_completed(ends, LONG)) == set(ends)
            for thread in waiting:
                thread.join(LONG)
                assert not thread.is_alive()


def test_a_task_that_is_cancelled_just_as_it_starts_ends_once(client: Client) -> None:
    ended = {"succeeded": 0, "cancelled": 0}
    for number in range(150):
        heard: list[str] = []
        told = threading.Event()
        task = client.submit(abs, -number)
        task.add_done_callback(lambda task, heard=heard, told=told: (heard.append(task.state), told.set()))
        other = threading.Thread(target=task.cancel)
        other.start()
        try:
            assert task.result(LONG) == number
        except TaskCancelled:
            assert task.cancelled()
        other.join(LONG)
        assert told.wait(LONG)
        assert heard == [task.state]
        ended[task.state] += 1
        assert client.submit(abs, -1).result(LONG) == 1  # its place is free
    assert sum(ended.values()) == 150
