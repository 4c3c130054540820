"""Fixtures for pytest. They are not there by themselves: `pytest_plugins = ["revolve_assistant.testing.plugin"]`.

`inline_client`     a Client whose tasks run in the calling thread
`assert_events`     what a task said, as expected
`kill_at_event`     makes a Client whose child is killed (SIGKILL) right after an event
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from .. import Client
from ..event import LIFECYCLE, Event
from .events import assert_events as compare
from .killing import begin_killing

__all__ = ["KillAtEvent", "assert_events", "inline_client", "kill_at_event"]

SHOWN = 10  # names of events, in a message


class KillAtEvent(Protocol):
    """What the fixture `kill_at_event` is."""

    def __call__(self, number: int, name: str | None = None, *, times: int = 1, **options: Any) -> Client: ...


@pytest.fixture
def inline_client() -> Iterator[Client]:
    """A Client whose tasks run in the calling thread: `submit` returns when the task has ended."""
    with Client("inline://") as client:
        yield client


@pytest.fixture
def assert_events() -> Callable[..., list[Event]]:
    """`assert_events(task, [("skipped", 3), "done", ...])`: as `revolve_assistant.testing.assert_events`."""
    return compare


@pytest.fixture
def kill_at_event(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillAtEvent]:
    """`kill_at_event(3)` is a Client with one child, which is killed right after the third event of a task.

    `kill_at_event(3, "row")` counts events of that name only; without a name all but `progress`. It is killed in the
    first `times` attempts of each task, so one that is tried again (`retries`) succeeds. Further options are the
    Client's. The test fails if no child was killed: then it showed nothing.
    """
    with ExitStack() as stack:
        marks: list[tuple[str, Path, dict[str, list[str]]]] = []
        numbers = itertools.count()

        def make(number: int, name: str | None = None, *, times: int = 1, **options: Any) -> Client:
            if number < 1:
                pytest.fail(f"kill_at_event({number}): events are counted from 1", pytrace=False)
            if name in LIFECYCLE:
                pytest.fail(f"kill_at_event({number}, {name!r}): a task says that not by itself", pytrace=False)
            mark = tmp_path_factory.mktemp("kill_at_event") / str(next(numbers))
            said: dict[str, list[str]] = {}
            user = (options.pop("initializer", None), tuple(options.pop("initargs", ())))
            client = Client(
                "process://",
                **{"max_workers": 1, **options},
                initializer=begin_killing,
                initargs=(number, name, times, str(mark), *user),
            )
            stack.enter_context(client)
            marks.append((f"kill_at_event({number}{f', {name!r}' if name is not None else ''})", mark, said))

            def note(event: Event) -> None:
                names = said.setdefault(event.task_id, [])
                if event.name not in LIFECYCLE:
                    names.append(event.name)

            client.add_listener("*", note)
            return client

        yield make
        stack.close()
        missed = [_missed(call, said) for call, mark, said in marks if not mark.exists()]
        if missed:
            pytest.fail("\n".join(missed), pytrace=False)


def _missed(call: str, said: dict[str, list[str]]) -> str:
    if not said:
        return f"{call}: no child was killed, for its client was given no task"
    lines = [f"{call}: no child was killed, for no task came to that event:"]
    for id, names in said.items():
        shown = ", ".join(map(repr, names[:SHOWN])) + (", …" if len(names) > SHOWN else "")
        lines.append(f"    {id} said {len(names)}{f': {shown}' if names else ''}")
    return "\n".join(lines)
