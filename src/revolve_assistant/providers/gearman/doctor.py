"""What is wrong with gearmands: asked with the administrators' protocol, and one echo of the other. Changes nothing."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

from ...errors import AssistantError, ProtocolError, ProviderError, Unreachable
from ...protocols.gearman import FunctionStatus, GearmanAdmin, GearmanClient, WorkerInfo
from ...protocols.stream import Address, named
from ..diagnosis import Finding
from ..url import Url
from .address import Place

_OURS = re.compile(r"([\w.:]+?)\.(?:(?:q|c|buried)\..+|delayed)\Z")
_STRANGERS = {
    "VERSION ": "memcached",
    "-ERR": "Redis",
    "UNKNOWN_COMMAND": "beanstalkd",
    "HTTP/": "a web server",
    "SSH-": "an SSH server",
}
_SHOWN = 20  # of one kind, before the rest is counted


class _Seen(NamedTuple):
    """What one server said."""

    name: str  # host and port
    status: dict[str, FunctionStatus]
    workers: list[WorkerInfo]


def diagnose(url: Url) -> list[Finding]:
    """See `providers.diagnosis`; blocks up to the URL's time-out for each question to each server."""
    try:
        place = Place.read(url, {})
    except AssistantError as error:
        return [Finding("wrong", "address", str(error))]
    found: list[Finding] = []
    for address in place.servers:
        found += _server(address, place, url)
    return found


def excused(url: Url) -> dict[str, str]:
    """Checks of the conformance kit that do not hold across several servers."""
    if len(url.hosts) < 2:
        return {}
    checks = ("order", "priority", "queues", "any_bytes", "bury", "state", "cancel", "settle_and_take")
    return dict.fromkeys(checks, "counts on an order, which holds on each server and not across them")


def _server(address: Address, place: Place, url: Url) -> Iterator[Finding]:
    name = named(address)
    with GearmanAdmin(address, timeout=place.timeout) as admin:
        try:
            version, pid = admin.version(), admin.pid()
            seen = _Seen(name, admin.status(), admin.workers())
        except ProtocolError as error:
            yield Finding("wrong", name, _stranger(name, str(error)))
            return
        except Unreachable as error:
            silent = "nothing listens" not in str(error) and "no connection" not in str(error)
            advice = (
                "something listens there and does not answer as gearmand does: is it another program, or a gearmand "
                "that hangs?" if silent else f"start it (gearmand -p {address[1]}), or correct host and port"
            )  # fmt: skip
            yield Finding("wrong", name, f"{error}; {advice}")
            return
        except ProviderError as error:
            yield Finding("wrong", name, str(error))
            return
    try:
        with GearmanClient([address], timeout=place.timeout) as client:
            client.echo(b"revolve doctor")
    except ProviderError as error:
        yield Finding("wrong", name, f"it answers administrators but not clients: {error}")
        return
    data = {"server": name, "version": version, "pid": pid}
    yield Finding("ok", name, f"gearmand {version} answers (process {pid})", data)
    yield from _version(name, version)
    yield from _stored(address, pid)
    yield from _tasks(seen, place, url)
    yield from _strangers_functions(seen, place)
    yield from _workers(seen, place)


def _stranger(name: str, error: str) -> str:
    known = next((kind for mark, kind in _STRANGERS.items() if mark in error), None)
    if known is not None:
        return f"{name} is {known}, not a gearmand: correct the port, or the scheme of the address"
    return f"{error}: no gearmand answers there; correct the port, or the scheme of the address"


def _version(name: str, version: str) -> Iterator[Finding]:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < (1, 1):
        text = f"gearmand {version} is older than what this library is tested with (1.1.20): upgrade it"
        yield Finding("wrong", name, text)
    elif numbers < (2, 0):
        text = (
            "before 2.0, gearmand passes WORK_EXCEPTION on to clients that did not ask for it in a way that makes the "
            "C tool wait for ever: leave exceptions=yes out unless all callers ask for exceptions"
        )
        yield Finding("note", name, text)


def _stored(address: Address, pid: int) -> Iterator[Finding]:
    """Whether tasks outlive the server, which only its command line says; that can be read on this machine."""
    name = named(address)
    without = "tasks and messages that wait are gone when it ends: start it with -q, such as -q libsqlite3"
    words = _command(address, pid)
    if words is None:
        yield Finding("note", name, f"it does not tell whether it stores its queue; without -q, {without}")
        return
    for at, word in enumerate(words):
        found = re.match(r"(?:-q|--queue-type)(?:=?(.*))\Z", word)
        if found is not None:
            kind = found[1] or "".join(words[at + 1 : at + 2])
            if kind != "builtin":
                yield Finding("ok", name, f"it stores its queue ({kind}), so that tasks outlive it")
                return
    yield Finding("note", name, f"it keeps its queue in memory: {without}")


def _command(address: Address, pid: int) -> list[str] | None:
    try:
        local = address[0] == "localhost" or ip_address(address[0].strip("[]")).is_loopback
        if not local:
            return None
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(65536).decode("utf-8", "replace").split("\0")
    except (OSError, ValueError):
        return None
    return words if os.path.basename(words[0]) == "gearmand" else None  # else it is in another container


def _tasks(seen: _Seen, place: Place, url: Url) -> Iterator[Finding]:
    """Our queues, what was buried, what is delayed, and the channels."""
    queues: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    buried: dict[str, int] = {}
    channels = [0, 0, 0]  # all, with a reader, messages
    delayed: FunctionStatus | None = None
    for function, status in seen.status.items():
        meaning = place.names.meaning(function)
        if meaning.kind == "queue":
            row = queues[meaning.name]
            row[0] += status.total - status.running
            row[1] += status.running
            row[2] = max(row[2], status.workers)
        elif meaning.kind == "buried" and status.total:
            buried[meaning.name] = status.total
        elif meaning.kind == "delayed":
            delayed = status
        elif meaning.kind == "channel":
            channels[0] += 1
            channels[1] += bool(status.workers)
            channels[2] += status.total
    for name, (waiting, running, workers) in sorted(queues.items()):
        data = {"server": seen.name, "queue": name, "waiting": waiting, "running": running, "workers": workers}
        text = f"{_many(waiting, 'task')} waiting, {running} running, {_many(workers, 'worker')}"
        if waiting and not workers:
            text += f": nobody takes them; start one: revolve worker {url}" + (
                f" -q {name}" if name != "default" else ""
            )
        yield Finding("wrong" if waiting and not workers else "ok", f"queue {name}", text, data)
    if not queues:
        yield Finding("note", "queues", f"no queue of the namespace {place.names.prefix} is in use here: nothing was "
                      "submitted, and no worker serves it")  # fmt: skip
    if delayed is not None and delayed.total:
        stuck = not delayed.workers
        text = f"{_many(delayed.total, 'task')} waiting for their time"
        if stuck:
            text += f": nobody moves them when it comes; start a worker: revolve worker {url}"
        yield Finding("wrong" if stuck else "ok", "delayed", text, {"server": seen.name, "delayed": delayed.total})
    for name, count in sorted(buried.items()):
        text = f"{_many(count, 'task')} of the queue {name} buried: refused, or they killed what ran them; see the "
        yield Finding("note", "buried", text + "workers' logs", {"server": seen.name, "queue": name, "buried": count})
    if channels[0]:
        text = f"{channels[0]}, of which {channels[1]} are read now; {_many(channels[2], 'message')} in them"
        data = {"server": seen.name, "channels": channels[0], "read": channels[1], "messages": channels[2]}
        yield Finding("ok", "channels", text, data)


def _strangers_functions(seen: _Seen, place: Place) -> Iterator[Finding]:
    """Functions that are none of this namespace's."""
    others: dict[str, int] = defaultdict(int)
    plain: list[tuple[str, FunctionStatus]] = []
    for function, status in sorted(seen.status.items()):
        if place.names.meaning(function).kind != "foreign":
            continue
        found = _OURS.match(function)
        if found is not None:
            others[found[1]] += status.total
        elif status.total or status.workers:
            plain.append((function, status))
    plain.sort(key=lambda each: (not each[1].total or bool(each[1].workers), each[0]))
    for function, status in plain[:_SHOWN]:
        waiting = status.total - status.running
        stuck = bool(status.total) and not status.workers
        text = f"{_many(waiting, 'job')} waiting, {status.running} running, {_many(status.workers, 'worker')}"
        if stuck:
            text += ": no worker of any program serves it; start one"
        data = {"server": seen.name, "function": function, "waiting": waiting, "running": status.running,
                "workers": status.workers}  # fmt: skip
        yield Finding("wrong" if stuck else "ok", f"function {function}", text, data)
    if len(plain) > _SHOWN:
        yield Finding("ok", "functions", f"{len(plain) - _SHOWN} more of other programs")
    for namespace, count in sorted(others.items()):
        yield Finding("ok", "namespace", f"{namespace} is here too, with {_many(count, 'job')}")


def _workers(seen: _Seen, place: Place) -> Iterator[Finding]:
    """Who serves what: connections, put together by address and client id."""
    members: dict[tuple[str, str], set[str]] = defaultdict(set)
    for info in seen.workers:
        for function in info.functions:
            meaning = place.names.meaning(function)
            kinds = {"queue": f"queue {meaning.name}", "foreign": f"function {meaning.name}", "channel": "channels"}
            if meaning.kind in kinds:
                members[info.address, info.client_id].add(kinds[meaning.kind])
    for (address, client_id), served in sorted(members.items())[:_SHOWN]:
        name = address if client_id == "-" else f"{client_id} at {address}"
        data = {"server": seen.name, "address": address, "client_id": client_id, "serves": sorted(served)}
        yield Finding("ok", "worker", f"{name}: {', '.join(sorted(served)[:_SHOWN])}", data)
    if len(members) > _SHOWN:
        yield Finding("ok", "workers", f"{len(members) - _SHOWN} more")


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
