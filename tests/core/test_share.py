"""`client.share`: sent once a child, one copy in memory, read-only, gone with its handle."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

import pytest

from revolve_assistant import Client, current_task

numpy = pytest.importorskip("numpy")


def total(array: Any) -> tuple[float, bool, int]:
    return float(array.sum()), bool(array.flags.writeable), os.getpid()


def look(array: Any) -> tuple[int, dict[str, int]]:
    """Touch all of it, and once all have done so say what this process has of it for itself, in bytes.

    Pages that one process alone has mapped count as private, so each waits for the others before and after.
    """
    assert array.sum() == len(array)
    current_task().emit("looked")
    current_task().receive(30)
    with open("/proc/self/smaps_rollup") as file:
        facts = {line.split(":")[0]: int(line.split()[1]) << 10 for line in file if line.endswith("kB\n")}
    current_task().emit("measured")
    current_task().receive(30)
    return os.getpid(), facts


def test_arrays_arrive_read_only_and_equal() -> None:
    with Client(max_workers=2) as client:
        shared = client.share(numpy.arange(1_000_000))
        for found, writeable, _ in client.map(total, [shared] * 6):
            assert found == 499_999_500_000
            assert not writeable


def test_a_handle_that_is_dropped_at_once_still_serves_its_task() -> None:
    with Client(max_workers=1) as client:
        first = client.submit(lambda: current_task().receive(30))
        behind = [client.submit(total, client.share(numpy.ones(100_000))) for _ in range(3)]
        first.send("go")
        assert [task.result()[0] for task in behind] == [100_000.0] * 3


def test_one_copy_for_all_children() -> None:
    size = 100 << 20
    with Client(max_workers=4) as client:
        shared = client.share(numpy.ones(size, dtype=numpy.uint8))
        tasks = [client.submit(look, shared) for _ in range(4)]
        for step in ("looked", "measured"):
            for task in tasks:
                next(task.events(step))
            for task in tasks:
                task.send("go")
        seen = dict(task.result() for task in tasks)
        assert len(seen) == 4
        for facts in seen.values():
            assert facts["Shared_Clean"] + facts["Shared_Dirty"] >= size
            assert facts["Private_Clean"] + facts["Private_Dirty"] < size // 2


def test_shares_inside_shares_and_containers() -> None:
    with Client(max_workers=1) as client:
        inner = client.share(numpy.arange(100_000))
        outer = client.share({"inner": inner, "text": "x" * 100})
        assert client.submit(lambda d: (int(d["inner"][-1]), len(d["text"])), outer).result() == (99_999, 100)
        assert client.submit(lambda items: int(items[1]["a"][5]), [1, {"a": inner}]).result() == 5


@pytest.mark.parametrize("url", ["thread://", "inline://"])
def test_engines_of_this_process_pass_the_object_itself(url: str) -> None:
    array = numpy.arange(10)
    with Client(url) as client:
        shared = client.share(array)
        assert client.submit(lambda given: given is array, shared).result()


def test_memory_goes_with_the_handle() -> None:
    with Client(max_workers=1) as client:
        client.submit(abs, 1).result()
        gone = threading.Event()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            shared = client.share(numpy.ones(100_000))
            assert client.submit(total, shared).result()[0] == 100_000.0
        weakref.finalize(shared, gone.set)
        del shared
        assert gone.wait(10)
        done = threading.Event()
        client._engine.pump.soon(done.set)  # after what the pump was asked to forget
        assert done.wait(10)
        assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_large_arrays_there_and_back() -> None:
    array = numpy.arange((64 << 20) // 8)
    with Client(max_workers=1) as client:
        doubled = client.submit(lambda given: given * 2, array).result()
        assert (doubled == array * 2).all()
        doubled[0] = 7  # a result is the caller's own
