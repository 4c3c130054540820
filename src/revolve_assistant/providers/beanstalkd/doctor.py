"""What is wrong with beanstalkds: asked on one connection to each, which changes nothing."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

from ...errors import AssistantError, ProtocolError, ProviderError, Unreachable
from ...protocols.beanstalkd import BeanstalkdClient, fields, items
from ...protocols.beanstalkd import commands as ask
from ...protocols.stream import Address, named
from ..diagnosis import Finding
from ..url import Url
from .address import Place

_STRANGERS = {
    "b'ERROR": "memcached",
    "b'STAT ": "memcached",
    "b'-ERR": "Redis",
    "b'ERR ": "gearmand",
    "b'HTTP/": "a web server",
    "b'SSH-": "an SSH server",
}
_SHOWN = 20  # of one kind, before the rest is counted
_LEAST = 8192  # bytes that a job should be able to have


class _Seen(NamedTuple):
    """What one server said."""

    name: str  # host and port
    stats: dict[str, str]
    tubes: dict[str, dict[str, str]]


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
    """Checks of the conformance kit that do not hold, on any server or across several."""
    late = dict.fromkeys(
        ("lease_ends", "fencing"), "beanstalkd misses about every other end of a time to run (docs/decisions/0015)"
    )
    if len(url.hosts) < 2:
        return late
    checks = (
        "order",
        "priority",
        "queues",
        "any_bytes",
        "bury",
        "state",
        "cancel",
        "buried",
        "exhume",
        "purge",
        "settle_and_take",
    )
    return late | dict.fromkeys(checks, "counts on an order, which holds on each server and not across them")


def _server(address: Address, place: Place, url: Url) -> Iterator[Finding]:
    name = named(address)
    with BeanstalkdClient(address, timeout=place.timeout, bells=place.names.bell("").decode()) as client:
        try:
            stats = fields(client.one(ask.stats()).body)
            names = items(client.one(ask.list_tubes()).body)
            said = client.ask(*map(ask.stats_tube, names))
        except ProtocolError as error:
            known = next((kind for mark, kind in _STRANGERS.items() if mark in str(error)), None)
            what = f"{name} is {known}, not a beanstalkd" if known else f"{error}: no beanstalkd answers there"
            yield Finding("wrong", name, f"{what}; correct the port, or the scheme of the address")
            return
        except Unreachable as error:
            silent = "nothing listens" not in str(error) and "no connection" not in str(error)
            advice = (
                "something listens there and does not answer as beanstalkd does: is it another program, or a "
                "beanstalkd that hangs?"
                if silent
                else f"start it (beanstalkd -l {address[0]} -p {address[1]}), or correct host and port"
            )
            yield Finding("wrong", name, f"{error}; {advice}")
            return
        except ProviderError as error:
            yield Finding("wrong", name, str(error))
            return
    tubes = {tube: fields(answer.body) for tube, answer in zip(names, said, strict=True) if answer.word == b"OK"}
    seen = _Seen(name, stats, tubes)
    version, pid = stats.get("version", "?"), stats.get("pid", "?")
    data = {"server": name, "version": version, "pid": pid, "max_job_size": stats.get("max-job-size", "?")}
    yield Finding("ok", name, f"beanstalkd {version} answers (process {pid})", data)
    yield from _limits(seen)
    yield from _stored(address, seen)
    yield from _tasks(seen, place, url)
    yield from _others(seen, place)


def _limits(seen: _Seen) -> Iterator[Finding]:
    stats = seen.stats
    if stats.get("draining") == "true":
        yield Finding("wrong", seen.name, "it is draining (SIGUSR1): it takes no more tasks and messages, and will not "
                      "until it is started anew")  # fmt: skip
    size = stats.get("max-job-size", "")
    if size.isdigit() and int(size) < _LEAST:
        yield Finding("wrong", seen.name, f"a job of it may have {int(size):,} bytes: tasks and messages will be cut "
                      "into very many pieces; start it with -z 65535 or more")  # fmt: skip
    elif size.isdigit():
        yield Finding("ok", seen.name, f"a job may have {int(size):,} bytes; what is larger travels in pieces")
    numbers = tuple(int(part) for part in re.findall(r"\d+", stats.get("version", ""))[:2])
    if numbers and numbers < (1, 10):
        text = f"beanstalkd {stats['version']} is older than what this library is tested with (1.12): upgrade it"
        yield Finding("wrong", seen.name, text)


def _stored(address: Address, seen: _Seen) -> Iterator[Finding]:
    """Whether tasks outlive the server; it says nothing of its log where there never was one."""
    without = "tasks and messages that wait are gone when it ends: start it with -b FOLDER"
    words = _command(address, seen.stats.get("pid", ""))
    if seen.stats.get("binlog-current-index", "0") != "0" or (words is not None and _has_log(words)):
        yield Finding("ok", seen.name, "it keeps a log (-b), so that tasks outlive it")
        if words is not None and "-F" in words:
            yield Finding("note", seen.name, "its log is never flushed to the disk (-F): a power cut loses what is new")
    else:
        yield Finding("note", seen.name, f"it keeps its jobs in memory: {without}")


def _has_log(words: list[str]) -> bool:
    return any(word.startswith("-b") for word in words)


def _command(address: Address, pid: str) -> list[str] | None:
    try:
        local = address[0] == "localhost" or ip_address(address[0].strip("[]")).is_loopback
        if not local or not pid.isdigit():
            return None
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(65536).decode("utf-8", "replace").split("\0")
    except (OSError, ValueError):
        return None
    return words if os.path.basename(words[0]) == "beanstalkd" else None  # else it is in another container


def _tasks(seen: _Seen, place: Place, url: Url) -> Iterator[Finding]:
    """Our queues, what was buried, and the channels."""
    channels = [0, 0, 0]  # all, with a reader, messages
    queues = 0
    for tube, said in sorted(seen.tubes.items()):
        meaning = place.names.meaning(tube)
        count = {name: int(said.get(f"current-jobs-{name}", 0)) for name in ("ready", "reserved", "delayed", "buried")}
        if meaning.kind == "channel":
            channels[0] += 1
            channels[1] += said.get("current-watching", "0") != "0"
            channels[2] += count["ready"] + count["reserved"]
        if meaning.kind != "queue":
            continue
        queues += 1
        workers = int(said.get("current-watching", 0))
        data = {"server": seen.name, "queue": meaning.name, "workers": workers, **count}
        text = (
            f"{_many(count['ready'], 'task')} waiting, {count['delayed']} delayed, {count['reserved']} running, "
            f"{_many(workers, 'worker')}"
        )
        stuck = bool(count["ready"]) and not workers
        if stuck:
            flag = f" -q {meaning.name}" if meaning.name != "default" else ""
            text += f": nobody takes them; start one: revolve worker {url}{flag}"
        yield Finding("wrong" if stuck else "ok", f"queue {meaning.name}", text, data)
        if count["buried"]:
            text = f"{_many(count['buried'], 'task')} of the queue {meaning.name} buried: see  revolve dead --url {url}"
            yield Finding("note", "buried", text, data)
        if said.get("pause-time-left", "0") != "0":
            text = f"somebody has paused its tube for {said['pause-time-left']} s more: until then nobody takes from it"
            yield Finding("note", f"queue {meaning.name}", text, data)
    if not queues:
        yield Finding("note", "queues", f"no queue of the namespace {place.names.prefix} is in use here: nothing was "
                      "submitted, and no worker serves it")  # fmt: skip
    if channels[0]:
        text = f"{channels[0]}, of which {channels[1]} are read now; {_many(channels[2], 'message')} in them"
        data = {"server": seen.name, "channels": channels[0], "read": channels[1], "messages": channels[2]}
        yield Finding("ok", "channels", text, data)


def _others(seen: _Seen, place: Place) -> Iterator[Finding]:
    """Tubes that are none of this namespace's."""
    spaces: dict[str, int] = defaultdict(int)
    plain: list[tuple[bool, str, dict[str, str]]] = []
    for tube, said in seen.tubes.items():
        jobs = sum(int(said.get(f"current-jobs-{name}", 0)) for name in ("ready", "reserved", "delayed", "buried"))
        if place.names.meaning(tube).kind != "foreign" or tube.startswith("revolve.bell."):
            continue
        space, mark, _ = tube.partition(";")
        if mark:
            spaces[space] += jobs
        elif jobs or int(said.get("current-watching", 0)) > (tube == "default"):
            stuck = said.get("current-jobs-ready", "0") != "0" and said.get("current-watching", "0") == "0"
            plain.append((not stuck, tube, said))
    for sound, tube, said in sorted(plain, key=lambda each: each[:2])[:_SHOWN]:
        ready, watching = int(said.get("current-jobs-ready", 0)), int(said.get("current-watching", 0))
        text = f"{_many(ready, 'job')} waiting, {said.get('current-jobs-reserved', '0')} running, {watching} watching"
        if not sound:
            text += f": no worker of any program serves it; start one, such as  revolve worker --expose {tube}=…"
        data = {"server": seen.name, "tube": tube, "ready": ready, "watching": watching}
        yield Finding("ok" if sound else "wrong", f"tube {tube}", text, data)
    if len(plain) > _SHOWN:
        yield Finding("ok", "tubes", f"{len(plain) - _SHOWN} more of other programs")
    for space, count in sorted(spaces.items()):
        yield Finding("ok", "namespace", f"{space} is here too, with {_many(count, 'job')}")


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
