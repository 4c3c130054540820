"""The original's form: configurations, tasks that are handed over, clients that are driven by hand."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from revolve_assistant import Make, UnknownProvider, Unsupported, UsageError, Worker, emit
from revolve_assistant.caller.driven import DrivenClient, HandedTask
from revolve_assistant.caller.make import address_of
from revolve_assistant.testing.servers import Gearmand
from revolve_assistant.wire.named import NamedMessenger

Story = tuple[Any, Any, Any, str]  # messenger, client and worker configuration, provider

make = Make()


@pytest.fixture(params=["process", "fork", "thread", "inline", "memory", "gearman", "gearman, memory"])
def story(request: pytest.FixtureRequest, need: Any) -> Iterator[Story]:
    """A way to run the original's examples: which messenger, which engine."""
    name: str = request.param
    if name in ("process", "fork", "thread", "inline"):
        yield f"memory://{name}", {"provider": name}, None, name
    elif name == "memory":
        config = {"provider": "memory", "memory": {"name": "make"}}
        yield "memory://other", config, config, name
    else:
        need("gearmand")
        with Gearmand() as server:
            config = {
                "provider": "gearman",
                "gearman": {"namespace": "assistant", "servers": [("127.0.0.1", server.port)]},
            }
            messenger = config if name == "gearman" else {**config, "gearman": {**config["gearman"], "namespace": "m"}}  # type: ignore[dict-item]
            yield messenger, config, config, "gearman"


@pytest.fixture
def driven(story: Story) -> Iterator[tuple[DrivenClient, NamedMessenger, str]]:
    messenger, client_config, worker_config, provider = story
    worker = make.worker(worker_config, concurrency=2) if worker_config else None
    if worker is not None:
        worker.start()
    client = make.client(client_config)
    try:
        yield client, make.messenger(messenger), provider
    finally:
        client.shutdown()
        if worker is not None:
            worker.stop(5.0)


def drive(client: DrivenClient, task: HandedTask, messenger: NamedMessenger | None = None) -> None:
    deadline = time.monotonic() + 30
    while not client.has_completed(task):
        client.read(messenger)
        assert time.monotonic() < deadline, "the task has not completed"
        time.sleep(0.002)  # the loop of the original's example


def test_the_first_example_of_the_original(driven: tuple[DrivenClient, NamedMessenger, str]) -> None:
    client, messenger, provider = driven
    heard: list[Any] = []

    def work(task: Any) -> int:
        for number in range(200):
            task.write_to(messenger, "output", f"see this in the client output {number}")
        return 7

    task = make.task({"provider": provider, "callback": work})
    task.add_listener("output", heard.append)
    task.add_listener("succeeded", heard.append)
    assert client.handle(task) is client
    drive(client, task, messenger)
    # nothing is missing when it has completed, the last messages least of all
    assert heard == [*(f"see this in the client output {number}" for number in range(200)), 7]
    assert task.result() == 7


def test_a_lambda_and_a_second_task_on_one_client(driven: tuple[DrivenClient, NamedMessenger, str]) -> None:
    client, messenger, provider = driven
    tasks = [
        make.task({"provider": provider, "callback": lambda task, n=n: task.write_to(messenger, "output", n) or n})
        for n in range(3)
    ]
    heard: list[int] = []
    for task in tasks:
        task.add_listener("output", heard.append)
        client.handle(task)
    client.read(messenger)
    assert [task.result(30) for task in tasks] == [0, 1, 2]
    assert sorted(heard) == [0, 1, 2]


def test_a_captured_messenger_is_read_though_read_does_not_name_it(
    driven: tuple[DrivenClient, NamedMessenger, str],
) -> None:
    client, _, provider = driven
    hidden = [make.messenger("memory://not-named")]
    heard: list[str] = []

    def work(task: Any) -> None:
        emit("said", "emit")
        task.write_to(hidden[0], "said", "write_to")

    task = make.task({"provider": provider, "callback": work})
    task.add_listener("said", heard.append)
    client.handle(task)
    drive(client, task)
    assert sorted(heard) == ["emit", "write_to"]  # in which order is promised on one messenger alone


def test_failures_and_generators(driven: tuple[DrivenClient, NamedMessenger, str]) -> None:
    client, messenger, provider = driven

    def fails(task: Any) -> None:
        task.write_to(messenger, "output", "last words")
        raise ValueError("on purpose")

    def yields(task: Any) -> Any:
        yield 1
        yield 2
        return "done"

    heard: list[str] = []
    bad = make.task({"provider": provider, "callback": fails})
    bad.add_listener("output", heard.append)
    client.handle(bad).read(messenger)
    with pytest.raises(ValueError, match="on purpose"):
        bad.result(30)
    assert heard == ["last words"]
    good = make.task({"provider": provider, "callback": yields})
    client.handle(good)
    assert list(good.items()) == [1, 2]
    assert good.result() == "done"


def test_inside_an_event_loop(driven: tuple[DrivenClient, NamedMessenger, str]) -> None:
    client, messenger, provider = driven
    task = make.task({"provider": provider, "callback": lambda task: task.write_to(messenger, "output", 1) or 2})

    async def main() -> int:
        client.handle(task)
        while not client.has_completed(task):
            client.read(messenger)
            await asyncio.sleep(0.002)
        return int(await task)

    assert asyncio.run(main()) == 2


# --- misuse


def test_a_task_waits_for_nothing_before_it_is_handed_over() -> None:
    task = make.task({"provider": "inline", "callback": lambda task: 1})
    for call in (task.result, task.queued, task.cancel, lambda: next(iter(task.events()))):
        with pytest.raises(UsageError, match=r"client\.handle\(task\) first"):
            call()
    assert task.state == "pending"


def test_a_task_is_handled_once_by_the_client_it_was_made_for() -> None:
    task = make.task({"provider": "inline", "callback": lambda task: 1})
    with make.client({"provider": "thread"}) as other, pytest.raises(UsageError, match="made for inline"):
        other.handle(task)
    with make.client({"provider": "inline"}) as client:
        client.handle(task)
        with pytest.raises(UsageError, match="handed over before"):
            client.handle(task)
        assert task.result(30) == 1


def test_a_listener_that_raises_ctrl_c_repeats_and_loses_nothing() -> None:
    heard: list[int] = []

    def listen(number: int) -> None:
        heard.append(number)
        if number == 3:
            raise KeyboardInterrupt

    def work(task: Any) -> None:
        for number in range(6):
            emit("n", number)

    with make.client({"provider": "inline"}) as client:
        task = make.task({"provider": "inline", "callback": work})
        task.add_listener("n", listen)
        client.handle(task)
        with pytest.raises(KeyboardInterrupt):
            drive(client, task)
        drive(client, task)
    assert heard == [0, 1, 2, 3, 4, 5]


def test_waiting_for_a_task_in_a_listener_is_an_error_not_a_deadlock() -> None:
    caught: list[str] = []
    with make.client({"provider": "thread"}) as client:
        first = make.task({"provider": "thread", "callback": lambda task: emit("go")})
        second = make.task({"provider": "thread", "callback": lambda task: task.receive(30)})

        def listen() -> None:
            try:
                second.result()
            except UsageError as error:
                caught.append(str(error))

        first.add_listener("go", listen)
        client.handle(second).handle(first)
        drive(client, first)
        second.send("enough")
        second.result(30)
    assert len(caught) == 1


# --- the original's listeners


def test_priorities_one_time_listeners_and_local_dispatch() -> None:
    heard: list[Any] = []
    task = make.task({"provider": "inline", "callback": lambda task: None})
    low, high, once = (functools.partial(heard.append, name) for name in ("low", "high", "once"))
    task.add_listener("e", low, priority=-1)
    task.add_listener("e", high, priority=5)
    task.add_one_time_listener("e", once)
    assert task.has_listeners("e")
    assert not task.has_listeners("other")
    assert task.get_listeners("e") == [high, once, low]
    task.emit("e")
    task.emit_batch([("e",), ("other", 1)])
    assert heard == ["high", "once", "low", "high", "low"]
    task.remove_listener("e", high)
    task.remove_listener("e", high)
    task.emit("e")
    assert heard[5:] == ["low"]
    task.remove_all_listeners()
    assert not task.has_listeners()


# --- configurations


@pytest.mark.parametrize(
    ("config", "address"),
    [
        ({"provider": "gearman", "gearman": {"namespace": "a", "servers": [("h", 1), ("i", 2)]}}, "gearman://h:1,i:2/a"),
        ({"provider": "gearman", "gearman": {"servers": ["h:1", "i"]}}, "gearman://h:1,i"),
        ({"provider": "gearman", "gearman": {"host": "h", "port": 1}}, "gearman://h:1"),
        ({"provider": "gearman", "gearman": {"servers": [{"host": "h", "port": 1}], "timeout": 2}}, "gearman://h:1?timeout=2"),
        ({"provider": "gearman"}, "gearman://"),
        ({"provider": "thread", "thread": {"max_workers": 3}}, "thread://"),
        ("gearman://h:1/a", "gearman://h:1/a"),
        ("thread", "thread://"),
    ],
)  # fmt: skip
def test_configurations_are_addresses(config: Any, address: str) -> None:
    assert str(address_of(config, "client")[1]) == address


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        (3, UsageError, "configuration or an address"),
        ({}, UsageError, "needs a provider"),
        ({"provider": "germane"}, UnknownProvider, "gearman"),
        ({"provider": "gearman", "gearman": 3}, UsageError, "must be a mapping"),
        ({"provider": "gearman", "germane": {}}, UsageError, "did you mean 'gearman'"),
        ({"provider": "gearman", "gearman": {"servers": [3]}}, UsageError, "list of"),
        ({"provider": "gearman", "gearman": {"namespaces": "x"}}, UsageError, "namespaces"),
    ],
)
def test_wrong_configurations_name_the_thing(config: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make.client(config)


def test_what_a_provider_cannot_be() -> None:
    with pytest.raises(Unsupported, match="no Messenger"):
        make.messenger("thread://")
    with pytest.raises(UsageError, match="needs no worker"):
        make.worker({"provider": "thread"})
    with pytest.raises(UsageError, match="callback"):
        make.task({"provider": "thread"})
    with pytest.raises(UsageError, match="retires"):
        make.task({"provider": "thread", "callback": print, "retires": 3})


def test_an_address_with_a_password_travels_without_it() -> None:
    import cloudpickle

    messenger = make.messenger("gearman://me:hush@127.0.0.1/a")
    assert b"hush" not in cloudpickle.dumps(lambda task: task.write_to(messenger, "x"))
    assert "hush" not in repr(messenger)


def test_swap_puts_something_else_in_the_place_of_a_provider() -> None:
    asked: list[tuple[str, Any]] = []

    def factory(kind: str, settings: Any) -> Any:
        asked.append((kind, settings))
        return "inline://" if kind == "client" else "memory://swapped"

    swapped = Make().swap("gearman", factory)
    client = swapped.client({"provider": "gearman", "gearman": {"namespace": "x"}})
    with client:
        task = swapped.task({"callback": lambda task: 3})
        assert client.handle(task).read() is client
        assert task.result(30) == 3
    assert swapped.messenger("gearman://h").address == "memory://swapped"
    assert isinstance(swapped.worker({"provider": "gearman"}), Worker)
    assert asked == [
        ("client", {"namespace": "x"}),
        ("messenger", {"url": "gearman://h"}),
        ("worker", {}),
    ]
