"""A short run of each fuzzer; the long ones are run by hand (`fuzz.py` says how)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = 10_000

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed; it has no wheels for this Python"
)


@pytest.mark.parametrize("target", ["gearman", "beanstalkd", "memcached", "wire", "url"])
def test_nothing_comes_through(target: str, tmp_path: Path) -> None:
    fuzzer = Path(__file__).with_name("fuzz.py")
    command = [sys.executable, str(fuzzer), target, f"-runs={RUNS}", "-seed=7", "-verbosity=0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
