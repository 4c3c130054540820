"""Putting a task into a function once more, safely.

A task that is released, or whose delay is over, becomes a new job, and then the old one is completed: a crash between
leaves two of it, never none. The new job must have another unique than the old one, which still runs. And than any
other: gearmand makes a submission with the unique of a job that it knows one with that job, and if that one is on the
point of being completed by somebody who was stopped just there, both are gone. So each submission is sent with a
question before it, whether its unique is known, and if so it is repeated with the next form of the unique.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import NamedTuple

from ...errors import ProviderError
from ...protocols.gearman import Kind
from ...protocols.gearman.client_state import status_unique_request
from ..lines import Line
from .delivery import Delivery, background, refused
from .names import DELAYED, READY, suffix, unique
from .wrapping import Wrapped, wrap


class Move(NamedTuple):
    """Where a task goes: `at` in Unix seconds, None: at once; `after` is the unique of the job it was."""

    function: bytes
    task: Wrapped
    after: bytes
    at: int | None = None
    buried: bool = False

    def uniques(self) -> list[str]:
        """In the order in which they are tried."""
        own = unique(self.task.id)
        if self.buried:
            return [f"{own}!{os.urandom(1).hex()}" for _ in range(8)]
        forms = DELAYED if self.task.due else READY
        last = suffix(self.after)
        start = forms.index(last) + 1 if last in forms and self.after else 0
        # The last resort is no form that `state` asks for, but the task runs.
        return [
            *(own + form for form in itertools.islice(itertools.cycle(forms), start, start + len(forms))),
            f"{own}.{os.urandom(1).hex()}",
        ]


def move(delivery: Delivery, line: Line, moves: Sequence[Move], base64: bool) -> tuple[list[bool], Exception | None]:
    """Submit them over this line, in order; which of them are safe with the server now, and why one was refused."""
    error: Exception | None = None
    done = [False] * len(moves)
    left = [(at, one, one.uniques()) for at, one in enumerate(moves)]
    while left:
        asked = []
        for at, one, uniques in left:
            known = status_unique_request(uniques[0])
            priority = 0 if one.buried or one.task.due else one.task.priority
            sent = background(one.function, uniques.pop(0), wrap(one.task, base64), priority, one.at)
            asked.append((at, one, uniques, known, sent))
        delivery.ask(line, [request for *_, known, sent in asked for request in (known, sent)])
        try:
            refused((sent for *_, sent in asked if sent.answer is not None), f"{len(asked)} tasks to hold on")
        except ProviderError as problem:
            error = problem
        left = []
        for at, one, uniques, known, sent in asked:
            if not sent.handle or known.answer is None:
                continue
            taken = known.answer.kind is Kind.STATUS_RES_UNIQUE and known.answer.args[1] == b"1"
            if taken and uniques:
                left.append((at, one, uniques))
            else:
                done[at] = not taken
    return done, error
