"""`revolve worker [URL]`: take tasks from a queue and run them in child processes of this machine."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import UsageError
from .flags import Command, count, jobs, say, seconds, size

COLLECT = (50_000, 10, 10)  # thresholds of the garbage collector
EPILOG = """\
URL is the address of a queue, such as gearman://127.0.0.1:4730/assistant; without it, REVOLVE_URL.
The secret comes from REVOLVE_SECRET or REVOLVE_SECRET_FILE (`revolve secret new` makes one); for addresses
on this machine it makes itself.

The first SIGTERM or SIGINT stops taking and lets running tasks end for --grace seconds, then cancels them and
gives them back to the queue; a second signal does so at once."""


def main(argv: list[str]) -> int:
    """Serve until a signal. Exit code 0 after a drain, 128 + signal when it was cut short, 1 if no child can be
    set up, 2 for a wrong call."""
    found = _command().read(argv)
    _log(found.log_level)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it: the application's modules are here
    if found.reload or found.processes > 1:
        return _serve_several(found, argv)
    return _serve(found)


def _command() -> Command:
    command = Command("worker", "Take tasks from a queue, run them here, report what they say.", epilog=EPILOG)
    command.add_argument("url", nargs="?", metavar="URL", help="the queue (default: REVOLVE_URL)")
    command.flag("-c", "--concurrency", type=jobs, metavar="N", help="children at once, or 50%% (default: CPUs)")
    command.flag("-q", "--queues", default="default", metavar="A,B", help="queues, the first ones first")
    command.flag("--pool", choices=("process", "thread", "fork", "inline"), default="process", help="what runs tasks")
    command.flag("--processes", type=_at_least_one, default=1, metavar="N", help="whole workers of this kind")
    command.flag("--messenger", metavar="URL", help="what carries events (default: what the queue brings)")
    command.flag("--expose", action="append", metavar="NAME=MODULE:FUNCTION",
                 help="also serve a plain function to other programs; may be repeated")  # fmt: skip
    command.flag(
        "--setup", type=_target, metavar="MODULE:FUNCTION", help="called once in each child before its first task"
    )
    command.flag("--max-tasks-per-child", type=_at_least_one, metavar="N", help="then the child is replaced")
    command.flag("--memory-limit", type=size, metavar="SIZE", help="of a child, such as 500M")
    command.flag("--grace", type=seconds, default=25.0, metavar="SECONDS", help="for running tasks after a signal")
    command.flag("--unknown-after", type=seconds, default=600.0, metavar="SECONDS",
                 help="until a task whose function cannot be imported fails")  # fmt: skip
    command.flag("--namespace", default="assistant", metavar="NAME", help="where the address does not say it")
    command.flag("--health-port", type=count, metavar="PORT", help="answers GET /live and /ready")
    command.flag("--health-host", default="127.0.0.1", metavar="HOST", help="address of the health port")
    command.flag("--health-file", metavar="PATH", help="rewritten every 5 s: ready, live or draining")
    command.flag("--telemetry", action="store_true", help="trace with OpenTelemetry, set up from OTEL_* variables")
    command.flag("--metrics", type=_address, metavar="[HOST:]PORT", help="serves Prometheus metrics (on 127.0.0.1)")
    command.flag("--reload", action="store_true", help="start again when a Python file changes (development)")
    command.flag("--log-level", default="info", choices=("debug", "info", "warning", "error"), help="of stderr")
    return command


def _serve_several(found: argparse.Namespace, argv: list[str]) -> int:
    from .worker_fleet import Fleet

    fleet = Fleet(argv, found.processes, found.grace, found.reload, found.metrics)
    before = {number: signal.signal(number, fleet.heed) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with _monitors(found, fleet.health):
            return fleet.serve()
    finally:
        fleet.close()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _monitors(found: argparse.Namespace, find: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """What tells others how the worker is."""
    from ..worker.health import HealthFile, HealthPort

    with contextlib.ExitStack() as stack:
        if found.health_port is not None:
            port = HealthPort(find, found.health_host, found.health_port)
            stack.callback(port.close)
            say(f"revolve worker: health on http://{found.health_host}:{port.port}/ready")
        if found.health_file:
            stack.callback(HealthFile(find, found.health_file).close)
        yield


@contextlib.contextmanager
def _metrics(found: argparse.Namespace, worker: Any) -> Iterator[None]:
    """What Prometheus asks."""
    if found.metrics is None:
        yield
        return
    from ..worker.metrics import Metrics, MetricsPort

    host, number = found.metrics
    with contextlib.ExitStack() as stack:
        stack.callback(Metrics(worker).close)
        port = MetricsPort(host, number)
        stack.callback(port.close)
        say(f"revolve worker: metrics on http://{f'[{host}]' if ':' in host else host}:{port.port}/metrics")
        yield


def _serve(found: argparse.Namespace) -> int:
    from ..worker import Worker
    from ..worker.health import health
    from ..worker.setup import call_setup

    if found.telemetry:
        from .. import telemetry

        telemetry.configure()
        telemetry.instrument()
        os.environ["REVOLVE_TELEMETRY"] = "1"  # for the children
    worker = Worker(
        found.url,
        messenger=found.messenger,
        concurrency=found.concurrency,
        pool=found.pool,
        queues=found.queues,
        expose=_exposed(found.expose),
        initializer=call_setup if found.setup else None,
        initargs=(found.setup,) if found.setup else (),
        namespace=found.namespace,
        grace=found.grace,
        unknown_after=found.unknown_after,
        max_tasks_per_child=found.max_tasks_per_child,
        memory_limit=found.memory_limit,
    )
    worker.on_ready = lambda: _ready(worker)
    with _monitors(found, lambda: health(worker)), _metrics(found, worker):
        return worker.run()


def _address(text: str) -> tuple[str, int]:
    host, mark, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or (mark and not host):
        raise argparse.ArgumentTypeError(f"{text!r} is neither PORT nor HOST:PORT, such as 0.0.0.0:9808")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def _target(text: str) -> str:
    module, mark, name = text.partition(":")
    if not mark or not all(word.isidentifier() for word in (*module.split("."), *name.split("."))):
        raise argparse.ArgumentTypeError(f"{text!r} is not MODULE:FUNCTION, such as app:connect")
    return text


def _ready(worker: Any) -> None:
    say(_ready_line(worker))
    if worker.pool == "process":
        # No callable of a user runs in this process, and what does makes hardly any cycles: looking for them at the
        # usual pace takes a quarter of its time when there are many tasks.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT)


def _ready_line(worker: Any) -> str:
    names = ", ".join(worker.queues)
    keys = ", ".join(worker.fingerprints)
    return (
        f"revolve worker: ready as {worker.name}: {worker.place}, queues {names}, "
        f"{worker.concurrency} × {worker.pool}, key {keys}"
    )


def _exposed(words: list[str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words or ():
        name, mark, target = word.partition("=")
        if not mark or not name or ":" not in target:
            raise UsageError(f"--expose {word!r} must be NAME=MODULE:FUNCTION, such as reverse=app:reverse")
        found[name] = target
    return found


def _log(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def _at_least_one(text: str) -> int:
    number = count(text)
    if not number:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number
