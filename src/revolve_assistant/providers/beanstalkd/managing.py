"""What can be seen of the queues, and what can be taken out of them again. On connections of its own.

    NAMESPACE.QUEUE        a job that was buried, natively: any tool can kick it
    NAMESPACE;dead.QUEUE   a note about it: its number, whose it is, why. Oldest first

beanstalkd shows the first buried job of a tube and no other. So whoever buries leaves a note; who lists reserves all
notes for a moment, and gives them back to where they were. A note whose job is not buried any more is dropped.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...engine import Buried, Count
from ...errors import ClientClosed, ProviderError
from ...protocols.beanstalkd import BeanstalkdClient, fields, items
from ...protocols.beanstalkd import commands as ask
from ...protocols.stream import Address
from ..joined import Joined
from .address import Place
from .names import uncounted_of
from .wrapping import Note, Task, read_note, read_task

_BATCH = 500  # reserves at once
_RECENT = 60.0  # seconds that a note may be there before its job is buried
_OLD_PART = 30 * 86400  # seconds after which a part is nobody's


class _Note(NamedTuple):
    """A note that is reserved; `number` is its own."""

    number: int
    tube: bytes
    note: Note


class Managing(Joined):
    """Part of the Queue. From any thread, one call at a time; each blocks for a few round trips to each server, and
    raises `Unreachable` if one of them does not answer."""

    def __init__(self, place: Place) -> None:
        super().__init__(place.text)
        self.place = place
        self._desk = threading.Lock()
        self._clients: dict[Address, BeanstalkdClient] = {}
        self._owner = os.getpid()

    # ---- to see

    def counts(self) -> Sequence[Count]:
        found: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0, 0.0])
        with self._desk_open():
            for address in self.place.servers:
                client = self._client(address)
                for tube, queue in self._tubes(client, "queue"):
                    said = self._tube(client, tube)
                    row = found[queue]
                    for at, name in enumerate(("ready", "delayed", "reserved", "buried")):
                        row[at] += int(said.get(f"current-jobs-{name}", 0))
                    if said.get("current-jobs-ready", "0") != "0":
                        row[4] = max(row[4], self._age(client, tube))
        return [
            Count(
                queue, pending=int(row[0]), delayed=int(row[1]), leased=int(row[2]), buried=int(row[3]), oldest=row[4]
            )
            for queue, row in sorted(found.items())
            if any(row[:4])
        ]

    def buried(self, *, limit: int = 100) -> Sequence[Buried]:
        """Jobs that somebody else buried have no note, and are counted but not listed."""
        found: list[Buried] = []
        with self._desk_open():
            for address in self.place.servers:
                client = self._client(address)
                with self._notes(client) as notes:
                    latest = sorted(notes, key=lambda each: (each.note.when, each.number), reverse=True)
                    mine: list[Buried] = []
                    while latest and len(mine) < limit:
                        room = limit - len(mine)
                        mine += [one for one in self._read(client, latest[:room]) if one is not None]
                        del latest[:room]
                    found += mine
        found.sort(key=lambda one: one.when, reverse=True)
        return found[:limit]

    # ---- to take out

    def exhume(self, task_id: str) -> Buried | None:
        """Of those that are not buried, the ones that were submitted through this object."""
        with self._desk_open():
            for address in self.place.servers:
                client = self._client(address)
                with self._notes(client) as notes:
                    for each in notes:
                        if each.note.id == task_id:
                            one = self._read(client, [each])[0]
                            if one is not None and self._remove(client, each):
                                return one
            return self._untaken(task_id)

    def purge(self, queue: str, *, buried: bool = False, limit: int = 1000) -> Sequence[Buried]:
        found: list[Buried] = []
        with self._desk_open():
            for address in self.place.servers:
                client = self._client(address)
                if not buried:
                    found += self._purge(client, queue, limit - len(found))
                    continue
                with self._notes(client, self.place.names.dead(queue)) as notes:
                    page = notes[: limit - len(found)]
                    for each, one in zip(page, self._read(client, page), strict=True):
                        if one is not None and self._remove(client, each):
                            found.append(one)
        return found

    def _untaken(self, task_id: str) -> Buried | None:
        where = self._where(task_id)
        if where is None:
            return None
        client = self._client(where[0])
        number = where[1]
        peek, stats = client.ask(ask.peek(number), ask.stats_job(number))
        task, said = read_task(peek.body), fields(stats.body)
        if task is None or task.id != task_id or said.get("state") not in ("ready", "delayed"):
            return None
        body = self._body(client, task)
        if body is None or not client.delete(number)[0]:
            return None
        client.delete(*task.parts)
        return _taken_out(task, body, self._queue_of(said), said)

    @abstractmethod
    def _where(self, task_id: str) -> tuple[Address, int] | None:
        """Server and number of a task that was submitted here."""

    def _purge(self, client: BeanstalkdClient, queue: str, room: int) -> list[Buried]:
        """Take out what is ready, then what is delayed."""
        found: list[Buried] = []
        tube = self.place.names.queue(queue)
        with _watching(client, [tube]):
            while len(found) < room:
                jobs = _reserve(client, min(_BATCH, room - len(found)))
                for number, data in jobs:
                    found.append(self._take_out(client, number, data, queue))
                if not jobs:
                    break
        client.ask(ask.use(tube))
        while len(found) < room:
            peek = client.one(ask.peek_delayed())
            if peek.word != b"FOUND":
                break
            one = self._take_out(client, peek.number, peek.body, queue)
            found.append(one)
        return found

    def _take_out(self, client: BeanstalkdClient, number: int, data: bytes, queue: str) -> Buried:
        said = fields(client.ask(ask.stats_job(number))[0].body)
        task = read_task(data) or Task(f"job-{number}", "", data)
        body = self._body(client, task)
        client.delete(number, *task.parts)
        held = said.get("state") == "reserved"  # by us, which does not count
        return _taken_out(task, body or b"", queue, said, held)

    # ---- notes

    @contextlib.contextmanager
    def _notes(self, client: BeanstalkdClient, *tubes: bytes) -> Iterator[list[_Note]]:
        """All notes of a server, or of some of its tubes, oldest first in each; they are held while the block lasts."""
        found: list[_Note] = []
        for tube in tubes or [tube for tube, _ in self._tubes(client, "dead")]:
            with _watching(client, [tube]):
                while jobs := _reserve(client, _BATCH):
                    for number, data in jobs:
                        note = read_note(data)
                        if note is None:
                            client.ask(ask.bury(number))  # of somebody else's making
                        else:
                            found.append(_Note(number, tube, note))
        try:
            yield found
        finally:
            with contextlib.suppress(ProviderError):
                client.ask(*[ask.release(each.number, 0) for each in found])

    def _read(self, client: BeanstalkdClient, notes: Sequence[_Note]) -> list[Buried | None]:
        """The buried tasks that the notes are about; None where there is none any more."""
        asked = [request for each in notes for request in (ask.stats_job(each.note.job), ask.peek(each.note.job))]
        answers = client.ask(*asked) if asked else []
        found: list[Buried | None] = []
        for each, stats, peek in zip(notes, answers[::2], answers[1::2], strict=True):
            note = each.note
            state = fields(stats.body).get("state") if stats.word == b"OK" else None
            if state != "buried" or peek.word != b"FOUND":
                if time.time() - note.when > _RECENT or state is None:
                    client.delete(each.number)
                found.append(None)
                continue
            task = read_task(peek.body) or Task(note.id, note.name, peek.body)
            body = self._body(client, task)
            found.append(
                Buried(
                    note.id, body or b"", note.queue, note.deliveries, note.reason, note.name or task.name, note.when
                )
            )
        return found

    def _remove(self, client: BeanstalkdClient, each: _Note) -> bool:
        """Delete a buried task and its note. False: somebody else has it."""
        peek = client.ask(ask.peek(each.note.job))[0]
        if not client.delete(each.note.job)[0]:
            return False
        task = read_task(peek.body)
        client.delete(each.number, *(task.parts if task is not None else ()))
        return True

    def _body(self, client: BeanstalkdClient, task: Task) -> bytes | None:
        if not task.parts:
            return task.body
        answers = client.ask(*map(ask.peek, task.parts))
        return None if any(each.word != b"FOUND" for each in answers) else b"".join(each.body for each in answers)

    # ---- sweeping

    def sweep(self) -> None:
        """Drop what nothing else ever would: buried tasks that are kept for too long, or are too many; wake-up calls
        for connections that are gone; parts of tasks that never came to be. Servers that are away are passed over."""
        self._fresh()
        with self._desk:
            for address in self.place.servers:
                with contextlib.suppress(ProviderError):
                    self._sweep(self._client(address))

    def _sweep(self, client: BeanstalkdClient) -> None:
        place = self.place
        with self._notes(client) as notes:
            notes.sort(key=lambda each: (each.note.when, each.number))
            surplus = max(0, len(notes) - place.most_buried)
            for at, each in enumerate(notes):
                if at >= surplus and time.time() - each.note.when <= place.keep_buried:
                    break
                if self._remove(client, each) or self._read(client, [each])[0] is None:
                    client.delete(each.number)
        for tube, _ in self._tubes(client, "bell"):
            if self._tube(client, tube).get("current-watching") == "0":
                _drain(client, tube)
        client.ask(ask.use(place.names.part))
        while (peek := client.one(ask.peek_ready())).word == b"FOUND":
            age = fields(client.ask(ask.stats_job(peek.number))[0].body).get("age", "0")
            if not age.isdigit() or int(age) < _OLD_PART:
                break
            client.delete(peek.number)

    # ---- servers

    def _client(self, address: Address) -> BeanstalkdClient:
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = BeanstalkdClient(
                address, timeout=self.place.timeout, bells=self.place.names.bell("").decode()
            )
        return client

    def _tubes(self, client: BeanstalkdClient, kind: str) -> list[tuple[bytes, str]]:
        """The tubes of this kind, and what they are of."""
        found = []
        for tube in items(client.one(ask.list_tubes()).body):
            meaning = self.place.names.meaning(tube)
            if meaning.kind == kind:
                found.append((tube.encode(), meaning.name))
        return found

    def _tube(self, client: BeanstalkdClient, tube: bytes) -> dict[str, str]:
        return fields(client.one(ask.stats_tube(tube)).body)

    def _age(self, client: BeanstalkdClient, tube: bytes) -> float:
        """Of the next ready job, seconds."""
        peek = client.ask(ask.use(tube), ask.peek_ready())[1]
        if peek.word != b"FOUND":
            return 0.0
        age = fields(client.ask(ask.stats_job(peek.number))[0].body).get("age", "0")
        return float(age) if age.isdigit() else 0.0

    def _queue_of(self, said: dict[str, str]) -> str:
        return self.place.names.meaning(said.get("tube", "")).name

    @contextlib.contextmanager
    def _desk_open(self) -> Iterator[None]:
        self._fresh()
        with self._desk:
            if not self._open:
                raise ClientClosed(f"{self.place.text} is not open: call open() first")
            yield

    def _let_go(self) -> None:
        """Close the connections of this part."""
        self._fresh()
        held = self._desk.acquire(timeout=self.place.timeout)
        try:
            self._abandon()
        finally:
            if held:
                self._desk.release()

    def _fresh(self) -> None:
        """In a child that was forked: the parent goes on with its own connections, and may have held the lock."""
        if self._owner != os.getpid():
            self._owner = os.getpid()
            self._desk = threading.Lock()
            self._abandon()

    def _abandon(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients = {}


def _taken_out(task: Task, body: bytes, queue: str, said: dict[str, str], held: bool = False) -> Buried:
    reserves, priority = int(said.get("reserves", 0)), int(said.get("pri", 0))
    return Buried(task.id, body, queue, max(0, reserves - uncounted_of(priority) - held), "", task.name, 0.0)


@contextlib.contextmanager
def _watching(client: BeanstalkdClient, tubes: Sequence[bytes]) -> Iterator[None]:
    """Reserve from these alone."""
    before = [tube for tube in client.watched if tube not in tubes]
    client.ask(*map(ask.watch, tubes), *map(ask.ignore, before), ask.ignore("default"))
    try:
        yield
    finally:
        with contextlib.suppress(ProviderError):
            client.ask(*map(ask.ignore, tubes))


def _reserve(client: BeanstalkdClient, count: int) -> list[tuple[int, bytes]]:
    """Up to so many jobs that are there now."""
    answers = client.ask(*[ask.reserve(0) for _ in range(count)])
    return [(each.number, each.body) for each in answers if each.word == b"RESERVED"]


def _drain(client: BeanstalkdClient, tube: bytes) -> None:
    with _watching(client, [tube]):
        while jobs := _reserve(client, _BATCH):
            client.delete(*[number for number, _ in jobs])
