"""How a task is heard: its log, filled from the engine's reports, and its listeners, called on the dispatcher."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from ..event import ENDS, Progress
from ..pool.reports import PROGRESS
from .ending import Ending, _ending, _nothing
from .listeners import Listener, Listeners
from .log import GAP, LOCAL, Log, Reader, arguments, event

log = logging.getLogger("revolve_assistant")


class Hearing(Ending):
    """The part of a `Task` that keeps events and calls listeners."""

    _log: Log | None = None
    _listeners: Listeners | None = None
    _late: list[tuple[str, Listener]] | None = None  # listeners added when something was there already
    _reader: Reader | None = None  # the dispatcher's place in the log
    _routes: dict[str, Any] | None = None
    _routes_version = -1
    _posted = False
    _started: tuple[Any, float] | None = None  # (worker, Unix time)
    _progress: Progress | None = None

    @property
    def _listened(self) -> bool:
        return self._listeners is not None or self._late is not None or self._client._listeners is not None

    def _take_events(self, records: list[Any], size: int) -> None:
        for record in reversed(records):
            if record[0] == PROGRESS:
                self._progress = Progress(*record[4:8])
                break
        kept = self._log or self._ensure_log()
        kept.append(records, size)
        if self._listened:
            self._post()
        if kept.weight > 65536:
            self._client._weigh(self)

    def _take_start(self, worker: str, when: float) -> None:
        with _ending:
            self._started = (worker, when)
            kept = self._log
            if kept is None and self._listened:
                self._ensure_log()
            elif kept is not None:
                kept.begin_attempt()
                kept.append([(LOCAL, 0, "started", when, (worker,))], 64)
        if self._listened:
            self._post()

    def _before_end(self, now: float) -> bool:
        if self._started is None:
            self._start_late(now)
        listened = self._listened
        if listened and self._log is None:
            self._ensure_log()
        return listened

    def _start_late(self, now: float) -> None:
        """It ended before its start was announced; one that never started stays without."""
        parcel = self._parcel
        job = parcel._ if parcel is not None else None
        child = getattr(job, "child", None)
        if child is not None:
            if self._log is not None or self._listened:
                self._take_start(child.name, now)
            else:
                self._started = (child, now)

    def _log_end(self) -> None:
        kept, end = self._log, self._end
        if kept is None or end is None:
            return
        if not kept.attempts:
            kept.begin_attempt()
        kept.append([(LOCAL, 0, end[0], end[1], None)], 64)

    # --- the log

    def _ensure_log(self) -> Log:
        with _ending:
            kept = self._log
            if kept is None:
                kept = Log()
                if self._started is not None:
                    worker, when = self._started
                    worker = getattr(worker, "name", worker)
                    kept.begin_attempt()
                    kept.append([(LOCAL, 0, "started", when, (worker,))], 64)
                self._log = kept
                if self._listened:  # from now on nothing is trimmed before they have heard it
                    self._reader = kept.reader(_nothing)
                self._log_end()
            return kept

    def _materialize(self, record: Any) -> Any:
        """A record whose arguments can be read: the end's are made when they are needed."""
        if record[0] == LOCAL and record[4] is None:
            state = record[2]
            if state == "succeeded":
                error, value = self._exception, None
                try:
                    value = self._value() if error is None else None
                except BaseException as problem:  # it cannot be rebuilt here: result() says so
                    error = problem
                args: tuple[Any, ...] = (value if error is None else error,)
            elif state == "cancelled":
                args = (self._end[2] if self._end is not None else "",)
            elif state == "lost":
                args = (str(self._error()),)
            else:
                args = (self._error(),)
            return (LOCAL, 0, state, record[3], args)
        return record

    # --- listeners (on the dispatcher)

    def _add(self, name: str, listener: Listener) -> None:
        check = Listeners()
        check.add(name, listener)
        self._refuse_foreign()
        self._client._dispatcher.get_ready()
        with _ending:
            if self._reader is None and self._log is None and self._end is None and self._started is None:
                if self._listeners is None:
                    self._listeners = Listeners()
                self._listeners.add(name, listener)
                self._routes = None
                return
            if self._late is None:
                self._late = []
            self._late.append((name, listener))
            kept = self._ensure_log()
            if self._reader is None:
                self._reader = kept.reader(_nothing)
        self._post()

    def _post(self) -> None:
        if not self._posted:
            self._posted = True
            self._client._dispatcher.post(self._dispatch)

    def _dispatch(self) -> None:
        """Call the listeners of what has come, the end's before `_finish`. Runs on the dispatcher alone."""
        self._posted = False
        kept = self._ensure_log()
        reader = self._reader
        while self._late:
            self._settle_in(kept, reader)
        if reader is None:
            reader = self._reader = kept.reader(_nothing)
        while True:
            records = reader.take()
            if not records:
                return
            call = self._call_listeners
            for attempt, seq, record in records:
                call(record, attempt, seq)
            if record[0] == LOCAL and record[2] in ENDS:
                reader.close()
                self._finish()
                return

    def _settle_in(self, kept: Log, reader: Reader | None) -> None:
        """The first of the late listeners catches up and joins the others; until then it stays known as late."""
        with _ending:
            if not self._late:
                return
            entry = self._late[0]
        name, listener = entry
        heard = reader is not None and self._catch_up(kept, reader.next, entry)
        with _ending:
            late = self._late or []
            there = any(each is entry for each in late)  # else it was removed meanwhile
            self._late = [each for each in late if each is not entry] or None
            if self._listeners is None:
                self._listeners = Listeners()
            if there and not heard:
                self._listeners.add(name, listener)
            self._routes = None

    def _catch_up(self, kept: Log, stop: int, entry: tuple[str, Listener]) -> bool:
        """A late listener hears what is buffered and was already dispatched. True: it wanted one, and had it."""
        name, listener = entry
        if stop == 0:
            return False  # nothing was dispatched yet: it hears all with the others
        with kept.lock:
            first = kept.first
            count = max(0, min(kept.place(stop), len(kept.records)))
            records = kept.placed(0, count) if count else []
            if first:
                when = records[0][2][3] if records else 0.0
                records.insert(0, (kept.attempt_at(first)[0], 0, (GAP, 0, "gap", when, (first,))))
        for attempt, seq, record in records:
            if name == "*" or record[2] == name:
                self._call_one(listener.fn, record, name == "*", attempt, seq)
                if listener.once:
                    return True
                if not any(each is entry for each in self._late or ()):
                    return False  # it was removed, perhaps by itself
        return False

    def _route(self, name: str) -> Any:
        """(listener, takes the Event, whose) for an event, in the order of their calls."""
        client = self._client._listeners
        version = self._client._listeners_version
        routes = self._routes
        if routes is None or self._routes_version != version:
            routes = self._routes = {}
            self._routes_version = version
        route = []
        for listeners, mine in ((self._listeners, True), (client, False)):
            if listeners is not None:
                found = [(each, False, mine, name) for each in listeners.by_name.get(name, ())]
                found += [(each, True, mine, "*") for each in listeners.by_name.get("*", ())]
                found.sort(key=lambda entry: -entry[0].priority)
                route += found
        routes[name] = route
        return route

    def _call_listeners(self, record: Any, attempt: int, seq: int) -> None:
        routes = self._routes
        name = record[2]
        if routes is None or self._routes_version != self._client._listeners_version:
            route = self._route(name)
        else:
            found = routes.get(name)
            route = self._route(name) if found is None else found
        if not route:
            return
        if record[0] == LOCAL and record[4] is None:
            record = self._materialize(record)
        for listener, star, mine, key in route:
            if listener.once:
                owner = self._listeners if mine else self._client._listeners
                if owner is None or not owner.discard(key, listener):
                    continue
                self._routes = None
                if not mine:
                    self._client._listeners_version += 1
            if star:
                self._call_one(listener.fn, record, True, attempt, seq)
            else:
                try:
                    listener.fn(*arguments(record))
                except Exception:
                    self._complain(listener.fn, name)
                except BaseException:
                    self._complain(listener.fn, name)

    def _call_one(self, fn: Callable[..., Any], record: Any, star: bool, attempt: int, seq: int) -> None:
        record = self._materialize(record)
        try:
            if star:
                fn(event(self._id, attempt, seq, record))
            else:
                fn(*arguments(record))
        except BaseException:
            self._complain(fn, record[2])

    def _complain(self, fn: Callable[..., Any], name: str) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, Exception) and self._client._dispatcher.passes(error):
            return  # a Ctrl-C, which whoever drives the client gets
        log.exception("listener %r failed at event %r of task %s", fn, name, self._id)
