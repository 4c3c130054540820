"""Prometheus metrics of a Worker: counted as it goes, collected when somebody asks.

    speaker ──notices──▶ Metrics.note       adds to plain numbers
    scrape ───────────▶ Metrics.collect     these, the worker's own numbers, and what its queue says within 2 s

Scrapes run on threads of their own and hold no lock that a task waits for. Labels are bounded: functions beyond 200 and
queues beyond 100 are counted together as `(other)`.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from .. import __version__
from ..engine import Count
from ..errors import ProviderMissing, UsageError
from ..pool.threads import OurThread
from .port import Port

REQUIRES = "metrics"
try:
    from prometheus_client import REGISTRY, CollectorRegistry, MetricsHandler
    from prometheus_client.core import CounterMetricFamily as Counter
    from prometheus_client.core import GaugeMetricFamily as Gauge
    from prometheus_client.core import HistogramMetricFamily as Histogram
    from prometheus_client.core import InfoMetricFamily as Info
except ImportError as error:
    raise ProviderMissing(f"metrics need: pip install 'revolve-assistant[{REQUIRES}]' ({error})") from error

if TYPE_CHECKING:
    from .lifecycle import Notice
    from .worker import Worker

log = logging.getLogger("revolve_assistant")

FUNCTIONS = 200  # names that are told apart
QUEUES = 100
OTHER = "(other)"  # all further ones
PATIENCE = 2.0  # seconds that a scrape waits for what the queue says
BUCKETS = (0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)  # seconds
RAN = ("succeeded", "failed", "cancelled", "lost", "retrying")  # ends of an attempt that had begun
STATES = ("pending", "delayed", "blocked", "leased", "buried")


class _Family(Protocol):
    """What a family of prometheus_client is to us."""

    def add_metric(self, labels: Sequence[str], value: float, /) -> None: ...


class _Durations:
    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0


class Metrics:
    """What a Worker counts, as a collector in `registry`, from now until `close`.

    Make it before the worker starts, else what was before is missing. Thread-safe. Raises `UsageError` if another
    worker's are in that registry already, `ProviderMissing` (at import) without prometheus-client.
    """

    def __init__(self, worker: Worker, registry: CollectorRegistry = REGISTRY) -> None:
        self._worker = worker
        self._registry = registry
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}  # functions that are told apart
        self._started: dict[tuple[str, str], int] = {}  # by function, queue
        self._ended: dict[tuple[str, str, str], int] = {}  # by function, queue, outcome
        self._durations: dict[str, _Durations] = {}  # by function
        self._look = Look(worker)
        try:
            registry.register(self)  # type: ignore[arg-type, unused-ignore]
        except ValueError as error:
            raise UsageError(
                f"the metrics of another worker are in this registry: make one of its own ({error})"
            ) from None
        worker.lifecycle.watchers.append(self.note)

    def close(self) -> None:
        """Be collected no more."""
        self._worker.lifecycle.watchers.remove(self.note)
        self._registry.unregister(self)  # type: ignore[arg-type, unused-ignore]

    # --- counting, on the worker's threads

    def note(self, notices: Iterable[Notice]) -> None:
        """What became of tasks."""
        with self._lock:
            for notice in notices:
                function, queue, name = self._name(notice.function), notice.held.lease.queue, notice.name
                if name == "started" or notice.record[0] is None:  # of an exposed function only the end is told
                    self._started[function, queue] = self._started.get((function, queue), 0) + 1
                if name == "started":
                    continue
                self._ended[function, queue, name] = self._ended.get((function, queue, name), 0) + 1
                if notice.began and name in RAN:
                    durations = self._durations.get(function)
                    if durations is None:
                        durations = self._durations[function] = _Durations()
                    seconds = max(0.0, notice.time - notice.began)
                    durations.counts[bisect_left(BUCKETS, seconds)] += 1
                    durations.total += seconds

    def _name(self, function: str) -> str:
        found = self._names.get(function)
        if found is None:
            if len(self._names) >= FUNCTIONS:
                return OTHER
            found = self._names[function] = function or OTHER
        return found

    # --- collecting, on the scrape's thread

    def describe(self) -> Iterator[Any]:
        """What there is to collect, for the registry; asks the queue nothing."""
        yield from self._tasks()
        yield from self._state()
        yield from self._queue(None)

    def collect(self) -> Iterator[Any]:
        """All of it now. Blocks up to 2 s where the queue is to be asked."""
        yield from self._tasks()
        yield from self._state()
        if self._worker.queue.traits.manages:
            yield from self._queue(self._look.find())

    def _tasks(self) -> Iterator[Any]:
        with self._lock:
            started, ended = list(self._started.items()), list(self._ended.items())
            durations = [(name, list(each.counts), each.total) for name, each in self._durations.items()]
        yield _filled(Counter("revolve_tasks_started", "Attempts that began.", labels=("function", "queue")), started)
        yield _filled(
            Counter(
                "revolve_tasks_ended", "Attempts that ended, and what of.", labels=("function", "queue", "outcome")
            ),
            ended,
        )
        family = Histogram("revolve_task_seconds", "Seconds that attempts ran.", labels=("function",))
        bounds = [*map(str, BUCKETS), "+Inf"]
        for name, counts, total in durations:
            family.add_metric((name,), list(zip(bounds, accumulate(counts), strict=True)), total)
        yield family

    def _state(self) -> Iterator[Any]:
        worker = self._worker
        held = list(worker.taker.held.values())
        watch = getattr(worker.engine, "watch", None)
        ready = worker.state == "running" and worker.taker.connected and not worker.speaker.away_since
        yield Info(
            "revolve_worker",
            "This worker.",
            value={
                "version": __version__,
                "worker": worker.name,
                "pool": worker.pool,
                "queues": ",".join(worker.queues),
            },
        )
        for name, text, value in (
            ("revolve_worker_ready", "1 while the queue and the messenger answer and tasks are taken.", ready),
            ("revolve_worker_concurrency", "Tasks that may run at once.", worker.concurrency),
            ("revolve_tasks_held", "Tasks that were taken and are not over.", len(held)),
            ("revolve_tasks_running", "Tasks that run.", sum(each.started and not each.ended for each in held)),
            ("revolve_children", "Child processes.", len(getattr(worker.engine, "children", ()))),
        ):
            yield Gauge(name, text, value=float(value))
        came, died = (watch.came, watch.deaths) if watch is not None else (0, 0)
        refused = worker.admission.refused + worker.control.refused
        for name, text, value in (
            ("revolve_children_started", "Child processes that came up.", came),
            ("revolve_children_died", "Child processes that ended without being asked to.", died),
            (
                "revolve_events_written",
                "Events of tasks that were written, their lifecycle's too.",
                worker.speaker.written,
            ),
            ("revolve_refused", "Tasks and messages whose seal or form was refused.", refused),
        ):
            yield Counter(name, text, value=value)
        yield _filled(
            Counter("revolve_reconnects", "Times that a carrier answered again.", labels=("carrier",)),
            [(("queue",), max(0, worker.taker.connections - 1)), (("messenger",), worker.speaker.returns)],
        )

    def _queue(self, seen: Seen | None) -> Iterator[Any]:
        counts, workers = seen if seen is not None else ((), 0)
        tasks = Gauge("revolve_queue_tasks", "Tasks in the queue.", labels=("queue", "state"))
        oldest = Gauge("revolve_queue_oldest_seconds", "Since when the first pending one waits.", labels=("queue",))
        for count in bounded(counts):
            for state in STATES:
                tasks.add_metric((count.queue, state), getattr(count, state))
            oldest.add_metric((count.queue,), count.oldest)
        yield Gauge(
            "revolve_queue_answers", "1 if the queue said in time what it holds.", value=float(seen is not None)
        )
        yield tasks
        yield oldest
        known = float(workers) if seen is not None else None
        yield Gauge("revolve_queue_workers", "Workers that take from the queue.", value=known)


def _filled(family: _Family, values: Iterable[tuple[Sequence[str], float]]) -> _Family:
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def bounded(counts: Sequence[Count]) -> list[Count]:
    """The first `QUEUES` by their names, and one for all others together."""
    found = sorted(counts)
    kept, rest = found[:QUEUES], found[QUEUES:]
    if rest:
        sums = {state: sum(getattr(each, state) for each in rest) for state in STATES}
        kept.append(Count(OTHER, **sums, oldest=max(each.oldest for each in rest)))
    return kept


Seen = tuple[Sequence[Count], int]
"""What every named queue holds, and how many workers there are."""


class Look:
    """Asks a worker's queue, on a thread for each question, and never a second one before the first was answered."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._asked: Future[Seen] | None = None

    def find(self) -> Seen | None:
        """What the queue says; None: nothing within `PATIENCE`, or an error."""
        if not self._worker.taker.connected or self._worker.state == "ended":
            return None
        with self._lock:
            asked = self._asked
            if asked is None:
                asked = self._asked = Future()
                OurThread(self._ask, "revolve-metrics-queue", (asked,)).start()
        try:
            return asked.result(PATIENCE)
        except Exception as error:
            log.debug("the queue did not say what it holds: %s: %s", type(error).__name__, error)
            return None

    def _ask(self, asked: Future[Seen]) -> None:
        queue = self._worker.queue
        try:
            found = (queue.counts(), len(queue.workers()))
        except Exception as error:
            self._answered(asked.set_exception, error)
        else:
            self._answered(asked.set_result, found)

    def _answered(self, tell: Any, found: Any) -> None:
        with self._lock:
            self._asked = None
        tell(found)


class MetricsPort(Port):
    """Serves a registry on a port, in the formats that Prometheus asks for. Raises `UsageError` if it is taken."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry = REGISTRY) -> None:
        super().__init__("metrics", host, port, MetricsHandler.factory(registry))
