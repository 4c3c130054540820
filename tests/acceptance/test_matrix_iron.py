"""The story of the matrix on IronMQ and IronWorker, which are a stand-in here, in a few pairs.

A file of its own: the stand-in lives on threads of the tests' process, among which nothing is forked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant.testing.iron import IronServer
from revolve_assistant.testing.servers import Redis

from .test_matrix import *  # noqa: F403 - the stories
from .test_matrix import Pair, meeting

IRON = [("ironmq", "ironmq"), ("ironmq", "redis"), ("process", "ironmq"), ("ironworker", "ironmq")]


@pytest.fixture(scope="module")
def places(need: Any) -> Iterator[dict[str, str]]:
    """An address of each carrier."""
    need("redis-server")
    with ExitStack() as stack:
        redis = stack.enter_context(Redis())
        iron = stack.enter_context(IronServer())
        command = [sys.executable, "-m", "revolve_assistant.cli", "ironworker", "--messenger", "ironmq:///matrix"]
        root = Path(__file__).parents[2]  # the image has the application
        env = {"REVOLVE_SECRET": os.environ["REVOLVE_SECRET"], "PYTHONPATH": f"{root}:{Path(__file__).parent}"}
        iron.code("matrix", command, env={**iron.environment(), **env})
        yield {
            "redis": redis.url,
            "ironmq": iron.url("matrix"),
            "ironworker": iron.url("matrix", scheme="ironworker"),
        }


@pytest.fixture(params=IRON[:1] if os.environ.get("TEST_MATRIX") == "few" else IRON, ids="-".join)
def pair(request: pytest.FixtureRequest, places: dict[str, str]) -> Iterator[Pair]:
    with meeting(places, *request.param) as client:
        yield client, request.param[0]
