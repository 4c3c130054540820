"""The conformance kit: what every Messenger and Queue must do, and a door to break connections with; `assert_events`.

A provider's test file is ten lines (see `messenger` and `queue`); outside pytest, `run_checks` gives the results as a
list. Importing this package imports no pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from .checks import Skipped, run_all
from .door import Door
from .events import assert_events
from .messenger import MESSENGER_CHECKS, MessengerConformance
from .queue import QUEUE_CHECKS, QueueConformance

__all__ = [
    "MESSENGER_CHECKS",
    "QUEUE_CHECKS",
    "Door",
    "MessengerConformance",
    "QueueConformance",
    "Skipped",
    "assert_events",
    "run_checks",
]


def run_checks(
    kind: Literal["messenger", "queue"],
    make: Callable[..., Any],
    *,
    excused: Mapping[str, str] | None = None,
    heard: Callable[[str, str], object] | None = None,
) -> list[tuple[str, str]]:
    """Run every check of a kind; `(name, "ok" | "skipped: …" | "FAILED: …")` of each, in order.

    `make()` gives a fresh, unopened object on the same carrier at every call; for queues it should accept
    `lease=seconds`. Blocks for about 20 s on a sound provider, at most 90 s a check on a broken one. Uses names of
    its own, so that it may run against a server in use. `excused` maps names of checks to reasons to skip them;
    `heard(name, outcome)` is called after each.
    """
    return run_all(MESSENGER_CHECKS if kind == "messenger" else QUEUE_CHECKS, make, excused, heard)
