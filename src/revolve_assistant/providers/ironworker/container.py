"""What runs inside a container of IronWorker: one task, by a Worker that takes it from the payload.

    PAYLOAD_FILE ─▶ payload ─▶ Single ─▶ Worker ─▶ a child process runs the callable
    CONFIG_FILE  ─▶ messenger, secret      ├──▶ messenger: events, end;  ◀── cancel, send
                                           └──▶ IronWorker: /progress, at most once a second

A Worker, and not less: so the seal is checked before anything is unpickled, a callable that dies or is to be stopped is
met as everywhere, and the end is stored before the container ends. The exit code is IronWorker's business: 0 is its
"complete", anything else its "error".
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

from ...engine import Parcel, Sink
from ...errors import AssistantError, ProtocolError, UsageError
from ...messenger import Messenger
from ...pool.reports import PROGRESS, REPORT_EVENTS, REPORT_STARTED
from ...pool.threads import OurThread
from ...protocols.iron import tasks
from ...protocols.iron.settings import read as read_settings
from ...worker.lifecycle import WorkerEvent
from ...worker.setup import Trial, call_setup
from ...worker.worker import Worker
from ..process import Engine as Children
from ..url import Url
from . import payload
from .single import Single

log = logging.getLogger("revolve_assistant")

EVERY = 1.0  # seconds between two words to IronWorker about the progress
PARTS = 60.0  # seconds that a body's parts have to come
MOST = 1 << 20  # bytes of a file of the platform's
CODES = {"succeeded": 0, "cancelled": 0, "failed": 1, "lost": 1}
_FLAGS = {"-payload": "PAYLOAD_FILE", "-config": "CONFIG_FILE", "-id": "TASK_ID", "-d": "TASK_DIR"}
GIVEN_BACK = 75  # the exit code when the task was not ended here: somebody else is to run it (EX_TEMPFAIL)


def run(
    argv: Sequence[str],
    *,
    messenger: str | None = None,
    setup: str | None = None,
    grace: float = 8.0,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run the task of this container; the exit code. Blocks until it has ended.

    `argv` may name the files in the old way (`-payload FILE -config FILE -id ID`); the environment wins. Raises
    `UsageError`, `ProtocolError` for a payload that is not ours, `Unreachable`.
    """
    environment = os.environ if environment is None else environment
    files = _files(argv, environment)
    path = files.get("PAYLOAD_FILE")
    if not path:
        raise UsageError("there is no PAYLOAD_FILE: IronWorker names one when it starts an image with this command")
    task = payload.read(_text(path))
    config = _config(files.get("CONFIG_FILE"))
    carrier = messenger or environment.get("REVOLVE_MESSENGER") or config.get("messenger") or "ironmq://"
    said = environment.get("REVOLVE_SECRET") or environment.get("REVOLVE_SECRET_FILE")
    secret = None if said else config.get("secret")
    place = Url.parse(carrier)
    body = task.whole() if task.parts is None else _gather(place, task.parts)
    ended: list[str] = []
    queue = Single(task.id, body, task.queue, lambda: _stop(worker))
    name = f"ironworker:{files.get('TASK_ID') or os.getpid()}"
    mirror = Mirror(environment, files.get("TASK_ID"))
    children = _Children(mirror, setup, name)
    worker = Worker(queue, messenger=carrier, queues=[task.queue], secret=secret, namespace=task.namespace, grace=grace,
                    unknown_after=0.0, engine=children)  # fmt: skip
    worker.name = name
    if setup is not None:
        worker.trial = Trial(worker)

    def note(event: WorkerEvent) -> None:
        ended.append(event.name)

    for end in CODES:
        worker.add_listener(end, note)
    mirror.start()
    try:
        code = worker.run()
    finally:
        mirror.stop()
    if ended:
        if task.parts is not None:
            _forget(place, task.parts[0])
        return CODES[ended[-1]]
    return code or (1 if worker.admission.refused else GIVEN_BACK)


def _stop(worker: Worker) -> None:
    """Once its only task is over; not on the Worker's own thread, which it waits for."""
    OurThread(worker.stop, "revolve-over").start()


# --- what the platform says


def _files(argv: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for flag, name in _FLAGS.items():
        if flag in argv[:-1]:
            found[name] = argv[list(argv).index(flag) + 1]
        if environment.get(name):
            found[name] = environment[name]
    return found


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(MOST)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


def _config(path: str | None) -> dict[str, str]:
    """`messenger` and `secret` of the code package's configuration, where it has an object `revolve`."""
    if not path or not os.path.exists(path):
        return {}
    text = _text(path)
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    ours = found.get("revolve", {}) if isinstance(found, dict) else None
    if not isinstance(ours, dict) or not all(isinstance(value, str) for value in ours.values()):
        raise UsageError(f'{path} must hold JSON such as {{"revolve": {{"messenger": "redis://…", "secret": "…"}}}}')
    return ours


def _gather(place: Url, parts: tuple[str, int, str]) -> bytes:
    """The body that the messenger has. Raises `ProtocolError` when it does not come whole within a minute."""
    from .. import registry

    channel, count, digest = parts
    found: dict[int, bytes] = {}
    carrier: Messenger = registry.messenger(place)
    carrier.open()
    try:
        deadline, cursor = monotonic() + PARTS, b""
        while len(found) < count and monotonic() < deadline:
            batch = carrier.read({channel: cursor}, limit=100, wait=min(5.0, carrier.traits.max_wait))
            for message in batch.messages:
                found.update([payload.read_part(message.frame)])  # one that was written twice counts once
                cursor = message.cursor
            if channel in batch.lost:
                break
    finally:
        carrier.close()
    body = b"".join(found[number] for number in sorted(found))
    if not payload.fits(body, digest):
        raise ProtocolError(f"{len(found)} of {count} parts of the task's body came through {place}: they are gone")
    return body


def _forget(place: Url, channel: str) -> None:
    from .. import registry

    carrier: Messenger = registry.messenger(place)
    try:
        carrier.open()
        carrier.forget(channel)
    except AssistantError as error:
        log.debug("the parts of the task's body stay until they expire: %s", error)
    finally:
        carrier.close()


# --- progress


class _Children(Children):
    """One child process, whose progress is mirrored, and which is called as its container is."""

    def __init__(self, mirror: Mirror, setup: str | None, name: str) -> None:
        from ...wire.carry import pack

        packed = None if setup is None else pack((call_setup, (setup,)), "initializer")[0]
        super().__init__(max_workers=1, initializer=packed)
        self._mirror, self._name = mirror, name

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        super().submit(parcels, _Watched(sink, self._mirror, self._name))


class _Watched:
    """A sink that notes the newest progress."""

    def __init__(self, sink: Sink, mirror: Mirror, name: str) -> None:
        self._sink, self._mirror, self._name = sink, mirror, name

    def deliver(self, reports: Sequence[Any]) -> None:
        self._sink.deliver([self._named(each) if each[1] == REPORT_STARTED else each for each in reports])
        for report in reversed(reports):
            if report[1] == REPORT_EVENTS:
                for record in reversed(report[2]):
                    if record[0] == PROGRESS:
                        self._mirror.note(*record[4:8])
                        return

    def _named(self, report: Any) -> Any:
        return (*report[:2], self._name, *report[3:])


class Mirror:
    """Shows the newest progress on IronWorker's own page, where the container has a token to say it with."""

    def __init__(self, environment: Mapping[str, str], id: str | None) -> None:
        self._id = id
        self._caller: Any = None
        self._bell = threading.Condition()
        self._newest: tuple[int, str] | None = None
        self._closing = False
        self._thread: OurThread | None = None
        try:
            self._settings = read_settings("iron_worker", environment=environment) if id else None
        except UsageError as error:
            log.info("IronWorker's own page shows no progress: %s", error)
            self._settings = None

    def start(self) -> None:
        """Begin, if there is somebody to say it to."""
        if self._settings is not None:
            from ...protocols.iron.caller import Caller

            self._caller = Caller(self._settings, timeout=5.0, patience=5.0)
            self._thread = OurThread(self._run, "revolve-mirror")
            self._thread.start()

    def note(self, fraction: float | None, done: float | None, total: float | None, message: str | None) -> None:
        """The newest one. Never blocks."""
        if self._thread is None:
            return
        if fraction is None and done is not None and total:
            fraction = done / total
        percent = 0 if fraction is None else max(0, min(100, round(100 * fraction)))
        count = "" if done is None else f"{done:g}" if total is None else f"{done:g} of {total:g}"
        with self._bell:
            self._newest = percent, " ".join(each for each in (message or "", count) if each)
            self._bell.notify()

    def stop(self) -> None:
        """Say the last one, and end. Blocks for some seconds at most."""
        with self._bell:
            self._closing = True
            self._bell.notify()
        if self._thread is not None:
            self._thread.join(8.0)
            self._caller.close()

    def _run(self) -> None:
        failures = 0
        while failures < 3:
            with self._bell:
                while self._newest is None and not self._closing:
                    self._bell.wait()
                newest, self._newest = self._newest, None
            if newest is None:
                return
            try:
                self._caller.call(tasks.progress(str(self._id), *newest))
                failures = 0
            except AssistantError as error:
                failures += 1
                log.debug("IronWorker was not told of the progress: %s", error)
            with self._bell:
                if not self._closing:
                    self._bell.wait_for(lambda: self._closing, EVERY)
