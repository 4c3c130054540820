"""The short form of the stress run: a hundredth of its tasks, workers and the server killed at the same pace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "stress" / "run.py"


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("queue", "server"), [("redis", "redis-server"), ("sqlite", None)])
def test_nothing_is_lost_and_nothing_ends_twice(queue: str, server: str | None, need) -> None:
    if server is not None:
        need(server)
    sizes = ["--tasks", "1000", "--kills", "10", "--restarts", "3", "--workers", "2", "--limit", "120"]
    done = subprocess.run([sys.executable, str(RUN), queue, *sizes], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
