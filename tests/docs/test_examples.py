"""Every example runs, quickly, without a warning, and prints what it is about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 10.0
EXPECTED = {
    "01_progress.py": "sha256: ",
    "02_listeners.py": "the end comes last: True",
    "03_stream_items.py": "errors.py:8: class MessageError(Exception):",
    "04_cancel.py": "stubborn was stopped by: SIGTERM; events: started, cancelled",
    "05_talk.py": "changes: 2",
    "06_retries.py": "booked by attempt 2",
    "07_map.py": "2262 primes below 20,002",
    "08_asyncio.py": "['ONE', 'TWO', 'THREE']",
    "09_crashes.py": "the others: [0, 1, 4, 9, 16]",
    "10_share.py": "has the most words of its own",
    "11_capture_and_group.py": "; the group: 100% 3/3",
    "12_engines.py": "inline               df493a048918  started, progress, progress, succeeded",
    "13_original_tasks_and_messengers.py": "see this in the client output: 2\ncompleted: succeeded",
    "14_original_worker.py": "run by somebody else: True\nthe worker ended with 0",
    "15_original_fire_and_forget.py": "then a worker came: it was done",
    "16_original_in_event_loops.py": "trio: [0, 1, 2] done",
    "17_original_in_tk.py": "the bar moved to 100%; finished",
    "18_gearman_queue.py": "be: 2",
    "21_redis_queue.py": "tea delivered\nLookupError('coffee is out of stock') twice: True\nkept: ",
    "19_gearman_foreign.py": 'ours, called by them: {"a": [1, 2]}',
    "20_schedule.py": "every 0.4 s -> shop is well\nscheduled no more: True ['mail']",
    "23_report_from_celery.py": "it is a pdf",
    "24_sqlite.py": "rye bread, at attempt 2\n['started', 'oven', 'retrying', 'started', 'oven', 'succeeded']",
    "25_upload_with_progress.py": "'4: 4 words']\nsucceeded 10",
    "26_beanstalkd.py": "succeeded ['a.jpg', 'b.jpg']\nmade: a.jpg at 80",
    "28_token_stream.py": "in order, once: True - cancelled",
    "29_django.py": 'we have none"}\n202 True "order 1 is packed: 10 things"',
    "27_ironmq.py": "tea -> thé (fr) ['retrying', 'succeeded']",
}


NEEDS = {  # programs that an example starts, or is run by
    "13_original_tasks_and_messengers.py": ("gearmand", "memcached"),
    "14_original_worker.py": ("gearmand",),
    "15_original_fire_and_forget.py": ("gearmand",),
    "17_original_in_tk.py": ("xvfb-run",),
    "18_gearman_queue.py": ("gearmand",),
    "19_gearman_foreign.py": ("gearmand", "gearman"),
    "21_redis_queue.py": ("redis-server",),
    "23_report_from_celery.py": ("redis-server",),
    "25_upload_with_progress.py": ("redis-server",),
    "26_beanstalkd.py": ("beanstalkd",),
    "28_token_stream.py": ("redis-server",),
}


def clean_environment() -> dict[str, str]:
    """Ours, without what would change how an example or page runs."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("REVOLVE_", "PYTHON"))}


def test_every_example_is_expected_and_numbered():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(EXPECTED)
    numbers = [int(name[:2]) for name in sorted(EXPECTED)]
    assert numbers == sorted(set(numbers)), "each has a number of its own"


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_example_runs(name, tmp_path, need):
    for program in NEEDS.get(name, ()):
        need(program)
    before = ["xvfb-run", "-a"] if "xvfb-run" in NEEDS.get(name, ()) else []
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    assert source.count("\n") < 60, "an example is to be read at a glance"
    done = subprocess.run(
        [*before, sys.executable, "-W", "error", EXAMPLES / name],
        cwd=tmp_path,
        env=clean_environment() | {"XDG_DATA_HOME": str(tmp_path)},  # where the secret makes itself
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert EXPECTED[name] in done.stdout
