"""What is known of one connection to a server: what it said of itself, and what it was told.

Lines of all roles have one as their `owner`. The server has a name of its own for each time that it was started
(`instance`): without a log it counts jobs from 1 again, so that a number alone says nothing.
"""

from __future__ import annotations

from typing import Any

from ...protocols.beanstalkd import DEFAULT_JOB, fields
from ...protocols.beanstalkd import commands as ask
from ..lines import Line
from .firsts import Firsts

_ENDING = 2
"""Bytes less than a server says that a job may have: when it reads its log again (`-b`), beanstalkd takes one of full
size for larger than that, and drops it and all that comes after (1.12; it counts the end of line there)."""
_LEAST = 256
"""Bytes that a job must be able to have: less would not hold our headers."""


class Told:
    """One connection. `held`: jobs that it reserved, by their numbers; `firsts`: which of them are new."""

    __slots__ = ("draining", "firsts", "held", "instance", "max_job", "used", "version", "watched")

    def __init__(self, line: Line) -> None:
        greeted = line.state.greeted
        stats = greeted.answer.body if greeted is not None and greeted.answer is not None else b""
        said = fields(stats)
        told = said.get("max-job-size", "")
        self.max_job = max(_LEAST, int(told) if told.isdigit() else DEFAULT_JOB) - _ENDING
        self.instance = said.get("id", "") or said.get("pid", "")
        self.version = said.get("version", "?")
        self.draining = said.get("draining") == "true"
        self.used = b"default"
        self.watched: set[bytes] = {b"default"}
        self.held: dict[int, Any] = {}
        self.firsts = Firsts(stats)


def meet(line: Line) -> None:
    """What a role does when a line is up."""
    line.owner = Told(line)


def use(line: Line, tube: bytes) -> None:
    """Have what is put from now on go there."""
    told: Told = line.owner
    if told.used != tube:
        told.used = tube
        line.state.ask(ask.use(tube))


def watch(line: Line, tubes: set[bytes]) -> None:
    """Reserve from these tubes and no others."""
    told: Told = line.owner
    if told.watched == tubes:
        return
    for tube in tubes - told.watched:
        line.state.ask(ask.watch(tube))
    for tube in told.watched - tubes:
        line.state.ask(ask.ignore(tube))
    told.watched = set(tubes)
