"""Large things travel once: shared objects, and arrays as arguments and results."""

from __future__ import annotations

import contextlib
import errno
import gc
import multiprocessing
import os
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client, NotCarriable, ProtocolError, TaskLost, Unreachable, current_task

from .share_tasks import (
    Model,
    back,
    change,
    deep,
    die_at_three,
    hear_one,
    hold,
    keep,
    kept,
    look,
    look_async,
    nested,
    remember,
    rss,
    touch,
    where,
)

numpy = pytest.importorskip("numpy")
linux = pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="reads /proc")


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(max_workers=2) as client:
        yield client
        for task in list(client._tasks.values()):  # of a test that failed
            task.cancel()


@pytest.fixture(params=["process://", "thread://", "inline://"])
def every(request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(request.param) as client:
        yield client


def buffers(pid: int | str = "self") -> int:
    """Shared memory of ours that a process has open or mapped."""
    found = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found += "revolve-buffers" in os.readlink(f"/proc/{pid}/fd/{name}")
    return found + Path(f"/proc/{pid}/maps").read_text().count("revolve-buffers")


# --- what arrives


def test_a_share_arrives_as_the_object_arrays_read_only(client: Client) -> None:
    large = numpy.arange(100_000.0).reshape(100, 1000)
    for array in (large, large.T, large[::2], numpy.arange(5), numpy.zeros(0), numpy.array(["a", "b"])):
        total = array.sum() if array.dtype.kind != "U" else None
        if total is None:
            assert client.submit(lambda a: a.tolist(), client.share(array)).result() == ["a", "b"]
            continue
        seen = client.submit(look, client.share(array)).result()
        assert seen[:4] == (total, array.dtype.str, array.shape, False)
    assert large.flags.writeable  # ours stays ours


def test_wherever_it_stands_and_on_every_engine(every: Client) -> None:
    share = every.share({"k": [1, (2, b"x")]})
    plain = {"k": [1, (2, b"x")]}
    args, kwargs = every.submit(where, share, [share, 1], (share,), {"d": share}, key=share).result()
    assert args == (plain, [plain, 1], (plain,), {"d": plain})
    assert kwargs == {"key": plain}
    model = Model(numpy.arange(1000.0))
    assert every.submit(where, every.share(model)).result() == ((model,), {})
    assert list(every.map(where, [every.share(1)], [2])) == [((1, 2), {})]
    assert every.submit(abs, every.share(-5)).result() == 5


def test_deep_in_containers_and_in_every_item_of_a_map(client: Client) -> None:
    share = client.share(numpy.arange(100_000))
    assert client.submit(deep, [1, {"a": [share]}]).result() == 99_999
    assert [seen[0] for seen in client.map(look, [share] * 6)] == [share.value.sum()] * 6


@pytest.mark.parametrize("url", ["thread://", "inline://"])
def test_engines_of_this_process_pass_the_object_itself(url: str) -> None:
    array = numpy.arange(10)
    with Client(url) as client:
        assert client.submit(lambda given: given is array, client.share(array)).result()


def test_a_share_within_a_share(every: Client) -> None:
    inner = every.share(numpy.arange(1000.0))
    assert every.submit(nested, every.share({"a": inner, "b": inner})).result() == (2 * 499_500.0, True)
    assert every.submit(nested, every.share(inner)).result() == (499_500.0, True)


def test_a_child_gets_it_once(client: Client) -> None:
    share = client.share(numpy.arange(100_000.0))
    seen = [client.submit(remember, share).result() for _ in range(50)]
    assert {objects for _, objects in seen} == {1}


def test_the_first_task_of_a_child_waits_for_what_it_shares() -> None:
    for _ in range(6):
        with Client(max_workers=2, initializer=sys.setswitchinterval, initargs=(1e-6,)) as client:
            shares = [client.share(numpy.full(50_000, float(number))) for number in range(25)]
            tasks = [client.submit(numpy.sum, share) for share in shares]
            assert [task.result() for task in tasks] == [50_000.0 * number for number in range(25)]


def test_coroutines_and_generators_take_shares(client: Client) -> None:
    tasks = [client.submit(look_async, client.share(numpy.arange(3.0) * number)) for number in range(20)]
    assert [task.result() for task in tasks] == [float(number) for number in range(20)]


# --- where it is held


def dying(share: Any) -> Any:
    def inner() -> float:
        if current_task().attempt < 3:
            os._exit(3)
        return float(share.sum())

    return inner


def test_a_function_that_captured_a_share_runs_again_after_its_child_died(client: Client) -> None:
    fn = dying(client.share(numpy.ones(50_000)))
    assert client.options(retries=3, backoff=0.0).submit(fn).result() == 50_000.0
    assert client.options(retries=3, backoff=0.0).submit(fn).result() == 50_000.0


def test_a_function_that_captured_a_share_is_used_again_and_again(client: Client) -> None:
    share = client.share(numpy.ones(50_000))

    def fn(more: float = 0.0) -> float:
        return float(share.sum()) + more

    assert [client.submit(fn, more).result() for more in (1.0, 2.0)] == [50_001.0, 50_002.0]
    assert [task.result() for task in [client.submit(fn) for _ in range(20)]] == [50_000.0] * 20


def scaled(share: Any, scale: Any) -> Any:
    return lambda number: float(share.sum()) * scale + number


def test_a_map_over_a_function_that_captured_shares() -> None:
    with Client(max_workers=2) as client:
        share = client.share(numpy.ones(1000))
        fn = scaled(share, client.share(2))
        assert list(client.map(fn, range(50))) == [2000.0 + n for n in range(50)]
        assert list(client.map(partial(numpy.dot, share), [numpy.ones(1000)] * 4)) == [1000.0] * 4
        results = client.map(scaled(share, client.share(3)), [client.share(n) for n in range(9)])
        del fn, share
        gc.collect()
        assert list(results) == [3000.0 + n for n in range(9)]


def test_the_rest_of_a_map_finds_its_share_after_a_death() -> None:
    with Client(max_workers=1) as client:
        share = client.share(numpy.ones(1000))
        results = list(client.map(lambda n: die_at_three(share, n), range(9), chunksize=9, errors="return"))
    assert isinstance(results.pop(3), TaskLost)
    assert results == [1000.0 + number for number in range(9) if number != 3]


@pytest.mark.parametrize("url", ["process://", "thread://", "inline://"])
def test_an_initializer_takes_shares(url: str) -> None:
    with Client("inline://") as other:
        inner = other.share(numpy.ones(1000))
        share = other.share(inner)
    with Client(url, max_workers=1, initializer=keep, initargs=(inner, share)) as client:
        assert client.submit(kept).result() == 2000.0
    if url == "process://":
        with Client(max_workers=1, initializer=lambda: keep(inner), max_tasks_per_child=1) as client:
            assert [client.submit(kept).result() for _ in range(2)] == [1000.0, 1000.0]


def test_what_a_share_held_when_it_was_packed_stays_with_it() -> None:
    with Client(max_workers=1, max_tasks_per_child=1) as client:
        box = [client.share(numpy.ones(1000))]
        share = client.share(box)
        assert client.submit(lambda box: float(box[0].sum()), share).result() == 1000.0
        box.clear()
        gc.collect()
        assert client.submit(lambda box: float(box[0].sum()), share).result() == 1000.0


def test_what_makes_its_share_while_it_is_pickled(client: Client) -> None:
    assert client.submit(len, Lazy(client)).result() == 7


class Lazy:
    def __init__(self, client: Client) -> None:
        self.client = client

    def __reduce__(self) -> Any:
        return (list, (self.client.share(list(range(7))),))


@pytest.mark.parametrize("url", ["process://", "thread://"])
def test_a_message_carries_a_share_by_value(url: str) -> None:
    with Client(url) as client:
        task = client.submit(hear_one)
        task.send("x", client.share([1, 2]))
        assert task.result() == ([1, 2],)


class Broken:
    def __reduce__(self) -> Any:
        return (int, ("no number",))


@pytest.mark.parametrize("url", ["process://", "thread://"])
def test_a_message_that_cannot_be_rebuilt_does_not_make_the_task_deaf(url: str) -> None:
    with Client(url) as client:
        task = client.submit(hear_one)
        task.send("x", Broken())
        task.send("y", 5)
        assert task.result() == (5,)


def test_a_share_in_a_stranger_s_process() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as executor, Client(executor) as client:
        share = client.share(list(range(5)))
        assert client.submit(sum, share).result() == 10
        assert client.submit(partial(max, share, default=[[{"deep": share}]])).result() == 4
        assert client.submit(str, [[{"deep": share}]]).result() == "[[{'deep': [0, 1, 2, 3, 4]}]]"


# --- how much memory


def smaps(pid: int) -> tuple[int, int, int]:
    """(mapped, proportional, private) bytes of our shared memory in a process."""
    size = pss = private = 0
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head, _, rest = line.partition(" ")
        if "-" in head and not head.endswith(":"):
            ours = "revolve-buffers" in rest
        elif ours:
            number = int(rest.split()[0]) * 1024 if rest.strip().endswith("kB") else 0
            size += number if head == "Size:" else 0
            pss += number if head == "Pss:" else 0
            private += number if head in ("Private_Clean:", "Private_Dirty:") else 0
    return size, pss, private


@linux
def test_four_children_share_one_copy_of_100_mib() -> None:
    array = numpy.ones(100 << 17)  # of 8 bytes
    with Client(max_workers=4) as client:
        share = client.share(array)
        tasks = [client.submit(touch, share) for _ in range(4)]
        for task in tasks:
            next(task.events("touched"))
        pids = [child.pid for child in client._engine.children]
        seen = [smaps(pid) for pid in pids]
        for task in tasks:
            task.send("go")
        assert {task.result()[1] for task in tasks} == {1.0}
    assert len(seen) == 4
    for size, pss, private in seen:
        assert 100 << 20 <= size < 101 << 20
        assert pss <= 26 << 20  # a quarter of the one copy
        assert private < 1 << 20


@linux
def test_what_nobody_holds_any_more_is_freed_here_and_in_the_children() -> None:
    with Client(max_workers=1) as client:
        client.submit(numpy.sum, client.share(numpy.ones(50_000))).result()
        (child,) = client._engine.children
        for _ in range(40):
            share = client.share(numpy.ones(50_000))
            assert client.submit(numpy.sum, share).result() == 50_000.0
            del share
        gc.collect()
        client.submit(numpy.sum, numpy.ones(100_000)).result()  # what is to be forgotten is told by now
        client.submit(abs, 1).result()
        assert buffers() <= 3
        assert buffers(child.pid) <= 3


@linux
def test_functions_do_not_keep_what_they_captured_for_ever() -> None:
    with Client(max_workers=1) as client:

        def run(array: Any) -> None:
            assert client.submit(lambda: float(array[0])).result() == 1.0

        run(numpy.ones(1 << 20))  # 8 MiB
        run(client.share(numpy.ones(1 << 20)))
        before = client.submit(rss).result()
        for _ in range(20):
            run(numpy.ones(1 << 20))
            run(client.share(numpy.ones(1 << 20)))
        gc.collect()
        assert client.submit(rss).result() < before + (64 << 20)


def answer(number: int) -> Any:
    async def inner() -> int:
        return number

    return inner


def test_a_function_that_was_dropped_and_sent_again_lets_go_of_its_share(monkeypatch: Any) -> None:
    from revolve_assistant.pool import feeder

    monkeypatch.setattr(feeder, "MAX_FUNCTIONS", 1)
    with Client(max_workers=1) as client:
        fn = scaled(client.share(numpy.ones(50_000)), 1)
        for _ in range(3):
            assert client.submit(fn, 0).result() == 50_000.0
            assert client.submit(scaled(numpy.ones(1), 1), 0).result() == 1.0
        assert client.submit(fn, 0).result() == 50_000.0
        (child,) = client._engine.children
        assert child.holders
        del fn
        gc.collect()
        assert client.submit(abs, -1).result() == 1
        assert client.submit(numpy.sum, numpy.ones(100_000)).result() == 100_000.0
        assert not child.holders
        assert client._engine.children == [child]


def test_a_closed_client_is_not_kept_by_what_it_shared() -> None:
    with Client("inline://") as other:
        share = other.share(numpy.ones(50_000))
    client = Client(max_workers=1, initializer=keep, initargs=(share,))
    assert client.submit(numpy.sum, share).result() == 50_000.0
    client.shutdown()
    engine = weakref.ref(client._engine)
    del client
    gc.collect()
    assert engine() is None


def test_a_function_that_was_dropped_in_the_child_is_sent_again(client: Client, monkeypatch: Any) -> None:
    from revolve_assistant.pool import feeder

    monkeypatch.setattr(feeder, "MAX_FUNCTIONS", 2)
    functions = [lambda number=number: number for number in range(7)]
    coroutines = [answer(number) for number in range(7)]

    for _ in range(5):
        assert [client.submit(fn).result() for fn in functions] == list(range(7))
        assert [task.result() for task in [client.submit(fn) for fn in functions]] == list(range(7))
        assert [task.result() for task in [client.submit(fn) for fn in coroutines]] == list(range(7))
    assert all(len(child.functions) <= 2 for child in client._engine.children)


def test_a_share_lives_as_long_as_a_task_that_needs_it() -> None:
    with Client(max_workers=1) as client:
        gate = client.submit(hold)
        next(gate.events("holds"))
        task = client.submit(look, client.share(numpy.ones(50_000)))  # the handle is dropped at once
        results = client.map(look, [client.share(numpy.ones(1000)), client.share(numpy.ones(10))])
        gc.collect()
        gate.send("go")
        assert task.result()[0] == 50_000.0
        assert [result[0] for result in results] == [1000.0, 10.0]


def test_a_share_that_is_gone_is_a_clear_error(client: Client) -> None:
    from revolve_assistant.wire.share import resolve

    share = client.share(5)
    key = share.key
    assert client.submit(abs, share).result() == 5
    del share
    with pytest.raises(ProtocolError, match=f"shared object {key} never reached this process"):
        resolve(key)
    with pytest.raises(ProtocolError, match="never reached"):
        client.submit(resolve, "nobody").result()


def test_what_cannot_be_shared_says_so_and_the_client_goes_on(client: Client) -> None:
    share = client.share(open)  # by reference: fine
    assert client.submit(where, share).result() == ((open,), {})
    task = None
    with contextlib.suppress(NotCarriable):  # at submit, or from the task
        task = client.submit(where, client.share(number for number in ()))
    if task is not None:
        with pytest.raises(NotCarriable, match="generator"):
            task.result(20)
    assert client.submit(abs, -1).result() == 1
    gates = [client.submit(hold) for _ in range(2)]
    for gate in gates:
        next(gate.events("holds"))
    with pytest.raises(NotCarriable, match="generator"):  # also while all children are busy
        client.submit(where, client.share(number for number in ()))
    with pytest.raises(NotCarriable, match="generator"):
        client.submit(where, client.share([client.share(number for number in ())]))
    for gate in gates:
        gate.send("go")
    results = list(client.map(where, [1, client.share(number for number in ()), 3], errors="return"))
    assert isinstance(results[1], NotCarriable)
    assert [results[0], results[2]] == [((1,), {}), ((3,), {})]


def test_what_cannot_be_handed_over_for_want_of_descriptors_fails(client: Client, monkeypatch: Any) -> None:
    from revolve_assistant.pool import feeder

    def none_left(buffers: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    assert client.submit(abs, -1).result() == 1
    monkeypatch.setattr(feeder, "write_buffers", none_left)
    tasks = [client.submit(where, client.share(numpy.ones(50_000))) for _ in range(9)]
    for task in tasks:
        with pytest.raises(Unreachable, match="Too many open files"):
            task.result()
    assert [client.submit(abs, -n).result() for n in range(9)] == list(range(9))
    monkeypatch.undo()
    assert client.submit(numpy.sum, client.share(numpy.ones(50_000))).result() == 50_000.0


@linux
def test_children_that_come_later_get_it_too() -> None:
    with Client(max_workers=1, max_tasks_per_child=1) as client:
        share = client.share(numpy.ones(50_000))
        pids = set()
        for _ in range(3):
            task = client.submit(touch, share)
            next(task.events("touched"))
            task.send("go")
            pids.add(task.result()[0])
        assert len(pids) == 3


# --- arrays as arguments and results


@pytest.mark.parametrize("size", [0, 1, 1000, 65_535, 262_144, (64 << 20) // 8, (64 << 20) // 8 + 1])
def test_arrays_go_there_and_back_exact(client: Client, size: int) -> None:
    array = numpy.random.default_rng(size).integers(-(2**62), 2**62, size)
    kept = array.copy()
    there = client.submit(back, array).result()
    assert there.dtype == array.dtype
    assert there.shape == array.shape
    assert there.tobytes() == kept.tobytes() == array.tobytes()
    assert there.flags.writeable
    if size:
        there[0] += 1
        assert array[0] == kept[0]


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_536, 262_143, 262_144, 1 << 20, 64 << 20])
def test_bytes_go_there_and_back_exact(client: Client, size: int) -> None:
    data = os.urandom(min(size, 1 << 16)) * (size // (1 << 16) + 1)
    data = data[:size]
    assert client.submit(back, data).result() == data
    if size <= 1 << 20:
        text = data.decode("latin-1")
        assert client.submit(back, {"t": text, "b": bytearray(data)}).result() == {"t": text, "b": bytearray(data)}
        assert list(client.map(back, [data, text])) == [data, text]


def test_a_task_may_change_its_arguments(every: Client) -> None:
    array, other = numpy.zeros(100_000), numpy.ones((10, 10_000))
    kept = array.copy() if "process" in repr(every) else array
    assert every.submit(change, array, other).result() == 200_000.0
    assert (array == kept).all()
    mixed = {"a": numpy.arange(50_000), "b": [numpy.ones(50_000), b"x" * 300_000], "c": "text"}
    result = every.submit(back, mixed).result()
    assert (result["a"] == mixed["a"]).all()
    assert result["b"][1] == mixed["b"][1]


@linux
def test_nothing_stays_of_large_arguments_and_results(client: Client) -> None:
    array = numpy.ones(1 << 20)
    for _ in range(10):
        client.submit(back, array).result()
    gc.collect()
    assert buffers() <= 2
    for child in client._engine.children:
        assert buffers(child.pid) <= 4
