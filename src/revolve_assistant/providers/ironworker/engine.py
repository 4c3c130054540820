"""Tasks as tasks of IronWorker: each is run in a container of its own, by `revolve ironworker` there.

    submit ─ POST /tasks ─▶ IronWorker ─ starts the image, PAYLOAD_FILE ─▶ revolve ironworker ─ runs the callable
                                                                              │
    client ◀═══════ any Messenger that both reach (IronMQ by default) ◀═══════┘ events, end
                                                                       ═══════▶ cancel, send

IronWorker itself tells of a task no more than its status, one number of per cent with a text, and its log once it has
ended. A body that is larger than a payload travels through the messenger.
"""

from __future__ import annotations

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from ...engine import Engine as Contract
from ...engine import EngineState, Parcel, Sink
from ...errors import ClientClosed, Overloaded, ProviderError, UsageError
from ...protocols.iron import Denied, Missing, tasks
from ...protocols.iron.asking import Asking
from ...protocols.iron.caller import PATIENCE, TIMEOUT, Caller
from ...protocols.iron.limits import BATCH, LONGEST_DELAY, LONGEST_RUN
from ...traits import Traits
from ..ironmq.address import settings_of
from ..url import Url
from . import payload

if TYPE_CHECKING:
    from ...messenger import Messenger
    from ...protocols.iron import Settings

log = logging.getLogger("revolve_assistant")

LARGEST = 64 << 20  # bytes of a body, through the messenger
KNOWN = 100_000  # tasks that are remembered
KEEP = 7 * 86400.0  # seconds that the parts of a body wait to be read
OPTIONS = ("project_id", "token", "protocol", "path_prefix", "cloud", "config", "timeout", "patience", "cluster", "run")
OPTIONS_OF_OURS = ("namespace",)
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,99}\Z")
_TAIL = 500  # characters of a log, in a message


class Engine(Contract):
    """Runs tasks at IronWorker, as tasks of the code package `code`. `status` and `log` may be called from any thread.

    `run`: seconds that a task may take before IronWorker kills it, 3600 at most; `cluster` None: the default one.
    A priority above 0 is IronWorker's 1, above 4 its 2, which cost more and are few.
    """

    traits: ClassVar[Traits] = Traits(
        summary="containers at IronWorker; events by any messenger",
        durable=True,
        delays=True,
        priorities=True,
        max_bytes=LARGEST,
        messenger="ironmq://",
    )
    needs_messenger = True

    def __init__(
        self,
        settings: Settings,
        code: str,
        *,
        cluster: str | None = None,
        run: float = LONGEST_RUN,
        namespace: str = "assistant",
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
    ) -> None:
        if not _CODE.match(code):
            raise UsageError(f"ironworker://project@host/CODE names the code package, not {code!r:.100}")
        self.code = code
        self._settings, self._cluster, self._run, self._namespace = settings, cluster, run, namespace
        self._timeout, self._patience = timeout, patience
        self._known: OrderedDict[str, str] = OrderedDict()  # task -> IronWorker's id
        self._asking = Asking()
        self._told: set[str] = set()  # tasks whose bad end was logged
        self._caller: Caller | None = None
        self._pid = 0

    @classmethod
    def from_url(cls, url: Url, **options: object) -> Engine:
        """`ironworker://[project[:token]@][host[:port]]/CODE?run=3600&cluster=default`; what is not said comes from
        variables and files, as the official clients have it. Raises `UsageError`."""
        url = url.with_options(options).only(*OPTIONS, *OPTIONS_OF_OURS)
        return cls(
            settings_of(url, "iron_worker"),
            url.path,
            cluster=url.text("cluster"),
            run=url.number("run", LONGEST_RUN, least=1, most=LONGEST_RUN),
            namespace=url.text("namespace", "assistant"),
            timeout=url.number("timeout", TIMEOUT, least=0.05, most=3600.0),
            patience=url.number("patience", PATIENCE, least=0.0, most=3600.0),
        )

    def __repr__(self) -> str:
        return f"<ironworker.Engine {self.code} of project {self._settings.project_id} at {self._settings.origin}>"

    def open(self) -> None:
        """Make sure that the project answers and has the code package. Blocks up to `timeout` a request.

        Raises `Unreachable`, and `ProviderError` for a token that is refused or a package that is not there."""
        if self._caller is not None and self._pid == os.getpid():
            return
        caller = Caller(self._settings, timeout=self._timeout, patience=self._patience)
        try:
            page, found = 0, tasks.codes(caller.once(tasks.packages()))
            while self.code not in found:
                page += 1
                if len(found) < BATCH:
                    raise ProviderError(
                        f"IronWorker has no code package {self.code!r} in project {self._settings.project_id}: upload "
                        "it first (docs/providers/ironworker.md)"
                    )
                found = tasks.codes(caller.once(tasks.packages(page)))
        except BaseException:
            caller.close()
            raise
        self._caller, self._pid = caller, os.getpid()

    def close(self) -> None:
        """Tasks go on."""
        caller, self._caller = self._caller, None
        if caller is not None and self._pid == os.getpid():
            caller.close()

    def wake(self) -> None:
        """Nothing here waits."""

    def _here(self) -> Caller:
        if self._caller is None:
            raise ClientClosed(f"{self!r} is not open: call open() first")
        return self._caller

    # ---- giving

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        """A request for each 100 tasks. Raises `UsageError` for a body that a payload does not hold."""
        for parcel in parcels:
            if len(parcel.body) > payload.ROOM:
                size = f"{len(parcel.body):,} bytes"
                raise UsageError(f"task {parcel.id} has {size}, and a payload holds {payload.ROOM:,}")
        self._queue([(p, payload.write(p.id, p.queue, self._namespace, bytes(p.body))) for p in parcels])

    def submit_and_keep(
        self,
        parcels: Sequence[Parcel],
        sink: Sink,
        messenger: Messenger,
        channels: Sequence[str],
        *,
        seconds: float,
        cap: int,
    ) -> None:
        """Large bodies go through `messenger`. Raises `UsageError` for one of more than 64 MiB, as `submit` else."""
        for parcel in parcels:
            if len(parcel.body) > LARGEST:
                raise UsageError(
                    f"task {parcel.id} has {len(parcel.body):,} bytes, more than the {LARGEST:,} that are sent to "
                    "IronWorker: put the data where the container can read it and pass its name"
                )
        messenger.keep(channels, seconds=seconds, cap=cap)
        texts: list[tuple[Parcel, str]] = []
        for parcel in parcels:
            body = bytes(parcel.body)
            if len(body) <= payload.ROOM:
                text = payload.write(parcel.id, parcel.queue, self._namespace, body)
            else:
                size = min(messenger.traits.max_bytes, 1 << 20)
                text, channel, parts = payload.write_parts(parcel.id, parcel.queue, self._namespace, body, size)
                messenger.keep([channel], seconds=KEEP + parcel.delay, cap=2 * len(body) + (1 << 20))
                messenger.write([(channel, part) for part in parts])
            texts.append((parcel, text))
        self._queue(texts)

    def _queue(self, texts: Sequence[tuple[Parcel, str]]) -> None:
        caller = self._here()
        jobs: list[tuple[str, tasks.Job]] = []
        for parcel, text in texts:
            if parcel.delay > LONGEST_DELAY:
                raise UsageError(f"a delay of {parcel.delay:g} s for task {parcel.id} is more than IronWorker's 7 days")
            if parcel.id in self._known and self._look(caller, parcel.id, tell=False) != "unknown":
                continue  # it was sent before, and nobody knew whether it had arrived
            priority = 0 if parcel.priority <= 0 else 1 if parcel.priority < 5 else 2
            job = tasks.Job(self.code, text, priority, self._run, parcel.delay, self._cluster, parcel.id)
            jobs.append((parcel.id, job))
        for start in range(0, len(jobs), BATCH):
            some = jobs[start : start + BATCH]
            try:
                ids = tasks.queued(caller.call(tasks.queue([job for _, job in some])))
            except Denied as error:
                raise Overloaded(str(error)) from None  # a limit of the plan: later it may be taken
            for (id, _), own in zip(some, ids, strict=False):
                self._remember(id, own)

    def _remember(self, id: str, own: str) -> None:
        self._known[id] = own
        self._known.move_to_end(id)
        self._asking.forget(id)
        if len(self._known) > KNOWN:
            self._asking.forget(self._known.popitem(last=False)[0])

    # ---- asking

    def state(self, ids: Iterable[str]) -> Mapping[str, EngineState]:
        """Of tasks that this object submitted: a request for each, and 20 at most; of more the others are as they were
        when they were last asked about. Others are unknown. A status that is new to us counts as running."""
        caller = self._here()
        wanted = list(ids)
        states = self._asking.states([id for id in wanted if id in self._known], lambda id: self._look(caller, id))
        return {id: states.get(id, "unknown") for id in wanted}

    def _look(self, caller: Caller, id: str, tell: bool = True) -> EngineState:
        try:
            found = tasks.status(caller.call(tasks.look(self._known[id])))
        except Missing:
            return "unknown"
        if found.status in tasks.WAITING:
            return "queued"
        if not found.over:
            return "running"
        if tell and found.status != "complete" and id not in self._told:
            self._told.add(id)
            log.warning("task %s ended at IronWorker as %s (its task %s)%s", id, found.status, found.id, self._end(id))
        return "unknown"

    def _end(self, id: str) -> str:
        """The end of its log, for a message."""
        try:
            text = self.log(id).strip()
        except (ProviderError, LookupError):
            return ""
        return f"; its log ends with: {text[-_TAIL:]}" if text else ""

    def status(self, task_id: str) -> tasks.Status:
        """What IronWorker tells of a task that this object submitted: its status, per cent and message, times.

        Raises `LookupError` for another one, `Unreachable`."""
        return tasks.status(self._here().call(tasks.look(self._own(task_id))))

    def log(self, task_id: str) -> str:
        """What the container of a task printed; there once it has ended. Raises `LookupError`, `Unreachable`."""
        try:
            return self._here().call(tasks.log(self._own(task_id))).decode("utf-8", "replace")
        except Missing:
            raise LookupError(f"IronWorker has no log of task {task_id}: it has not ended") from None

    def _own(self, task_id: str) -> str:
        own = self._known.get(task_id)
        if own is None:
            raise LookupError(f"task {task_id} was not submitted to IronWorker by this program")
        return own

    def cancel(self, task_id: str) -> bool:
        """Remove a task that this object submitted and that does not run yet; False of any other: one that runs is
        asked to stop through the messenger, and has time to clean up (`kill` gives it none)."""
        caller = self._here()
        if task_id not in self._known or self._look(caller, task_id, tell=False) != "queued":
            return False
        return self.kill(task_id)

    def kill(self, task_id: str) -> bool:
        """Have IronWorker end the container at once, whatever it is at. False: it has ended, or is not ours."""
        own = self._known.get(task_id)
        if own is None:
            return False
        try:
            self._here().call(tasks.cancel(own))
        except (Missing, Denied):
            return False
        except ProviderError as error:
            if isinstance(error, ConnectionError):
                raise
            return False  # it has ended
        self._asking.forget(task_id)
        return True
