"""What is wrong with a Redis server, for tasks and messages: asked of itself, and of what our namespace holds there.

It needs no rights beyond those of a client; what an administrator alone may ask (CONFIG) is passed over if it is
refused. It changes nothing.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hiredis import ReplyError

from ...engine import Count
from ...errors import AssistantError, ProviderError
from ..diagnosis import Finding
from ..url import Url
from .address import Place
from .connection import Connection
from .queue import Queue

MOST = 100_000  # keys that are looked at
LONGEST = 3.0  # seconds of looking at them
FAR = 0.005  # seconds of a round trip that are worth a word
ANSWER = 8 << 20  # bytes that a server must let wait for a reader: an answer of ours, and some notices
_SHOWN = 20  # of one kind, before the rest is counted
_LOOPBACK = ("127.", "::1", "localhost")


def diagnose(url: Url) -> list[Finding]:
    """See `providers.diagnosis`; blocks up to the URL's time-out for each question, and 3 s to count channels."""
    try:
        place = Place.read(url)
    except AssistantError as error:
        return [Finding("wrong", "address", str(error))]
    line = Connection(place, replica=True)
    found: list[Finding] = []
    try:
        line.connect()
        for finding in _look(line, place, url):
            found.append(finding)  # noqa: PERF402 - what was found before it failed counts
    except ProviderError as error:
        found.append(Finding("wrong", line.where, str(error)))
    finally:
        line.close()
    return found


def _look(line: Connection, place: Place, url: Url) -> Iterator[Finding]:
    info = _info(line)
    yield from _server(line, place, info)
    yield from _role(line, info)
    yield from _disk(info, _config(line, "append*"), _config(line, "save"))
    yield from _memory(info)
    yield from _clients(info, _config(line, "client-output-buffer-limit"))
    yield from _tasks(line, place, url)
    yield from _channels(line, place)


# ---- the server


def _server(line: Connection, place: Place, info: Mapping[str, str]) -> Iterator[Finding]:
    server = line.server
    assert server is not None
    took = []
    for _ in range(7):
        began = time.perf_counter()
        line.call("ECHO", "")  # a PING is refused by a server that cannot save
        took.append(time.perf_counter() - began)
    trip = statistics.median(took)
    kind = "Valkey" if server.kind == "valkey" or "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or ".".join(map(str, server.version))
    data = {"server": line.where, "kind": kind, "version": version, "run": info.get("run_id"), "seconds": trip}
    text = f"{kind} {version} answers in {trip * 1000:.2g} ms"
    if uptime := info.get("uptime_in_seconds"):
        text += f", up for {_span(int(uptime))}"
    yield Finding("ok", line.where, text, data)
    if trip > FAR:
        yield Finding("note", "far", f"a round trip takes {trip * 1000:.0f} ms, which every batch of tasks waits for")
    if not info:
        yield Finding("note", "rights", "this user may not ask INFO: a restart of the server is then noticed by what "
                      "it lost alone; allow it (ACL SETUSER … +info)")  # fmt: skip
    host = line.where.strip("[")
    if not place.socket and not host.startswith(_LOOPBACK) and (place.password is None or place.tls is None):
        lacks = "no password" if place.password is None else "a password that travels in the clear (rediss:// has TLS)"
        yield Finding("note", "access", f"{lacks}: who reaches this port can read and remove all that is there")


def _role(line: Connection, info: Mapping[str, str]) -> Iterator[Finding]:
    server = line.server
    assert server is not None
    if server.role != "master":
        primary = f"{info.get('master_host', 'its primary')}:{info.get('master_port', '')}".rstrip(":")
        yield Finding("wrong", "replica", f"a replica takes neither tasks nor messages: name {primary}, or the "
                      "sentinels (redis+sentinel://…)")  # fmt: skip
    elif (count := int(info.get("connected_slaves", 0))) and not line.place.service:
        text = f"{_many(count, 'replica')}: after a fail-over nobody finds the new primary by this address, unless it "
        yield Finding("note", "replicas", text + "moves along; name the sentinels if there are some")
    elif count:
        yield Finding("ok", "replicas", f"{_many(count, 'replica')}, and sentinels that say which one is the primary")


def _disk(info: Mapping[str, str], log: Mapping[str, str], save: Mapping[str, str]) -> Iterator[Finding]:
    """What a restart keeps."""
    if not info:
        return
    if info.get("aof_enabled") == "1":
        sync = log.get("appendfsync", "everysec")
        data = {"appendonly": True, "appendfsync": sync}
        if info.get("aof_last_write_status", "ok") != "ok":
            yield Finding("wrong", "disk", "it cannot write its log (is the disk full?) and refuses tasks: see its own "
                          "messages", data)  # fmt: skip
        elif sync == "always":
            yield Finding("ok", "disk", "it logs every change before it answers: nothing is lost in a crash", data)
        elif sync == "no":
            yield Finding("note", "disk", "it logs changes, and lets the system write them when it likes (half a "
                          "minute of tasks may go with the power): appendfsync everysec", data)  # fmt: skip
        else:
            yield Finding("ok", "disk", "it logs every change, and writes once a second: a loss of power costs the "
                          "last one", data)  # fmt: skip
        return
    saves = save.get("save")
    data = {"appendonly": False, "save": saves}
    if info.get("rdb_last_bgsave_status", "ok") != "ok" and saves != "":
        yield Finding("wrong", "disk", "it failed to save and may refuse tasks until it can (is the disk full?): see "
                      "its own messages", data)  # fmt: skip
    elif saves == "":
        yield Finding("note", "disk", "it writes nothing to its disk: tasks and messages are gone when it ends; "
                      "appendonly yes keeps them", data)  # fmt: skip
    else:
        yield Finding("note", "disk", "it only saves a copy now and then: a crash costs all tasks and messages since "
                      "the last one; appendonly yes keeps them", data)  # fmt: skip


def _memory(info: Mapping[str, str]) -> Iterator[Finding]:
    if "used_memory" not in info:
        return
    used, most = int(info["used_memory"]), int(info.get("maxmemory", 0))
    policy, evicted = info.get("maxmemory_policy", "noeviction"), int(info.get("evicted_keys", 0))
    data = {"used": used, "maxmemory": most, "policy": policy, "evicted": evicted}
    if not most:
        text = f"{_size(used)} used, and no bound: without one the system ends a server that takes it all; "
        yield Finding("note", "memory", text + "set maxmemory, and maxmemory-policy noeviction", data)
        return
    text = f"{_size(used)} of {_size(most)} used"
    if policy != "noeviction":
        thrown = f", {evicted:,} so far" if evicted else ""
        yield Finding("wrong", "eviction", f"when its memory is full it throws keys away ({policy}{thrown}), tasks "
                      "and messages too: set maxmemory-policy noeviction", data)  # fmt: skip
    if used >= 0.9 * most:
        yield Finding("wrong", "memory", f"{text}: soon it takes nothing any more; raise maxmemory, or start workers",
                      data)  # fmt: skip
    else:
        yield Finding("ok", "memory", text, data)


def _clients(info: Mapping[str, str], limits: Mapping[str, str]) -> Iterator[Finding]:
    if "connected_clients" in info:
        now, most = int(info["connected_clients"]), int(info.get("maxclients", 0))
        data = {"clients": now, "maxclients": most, "refused": int(info.get("rejected_connections", 0))}
        text = f"{_many(now, 'connection')}" + (f" of {most:,}" if most else "")
        if most and now >= 0.8 * most:
            yield Finding("wrong", "connections", f"{text}: soon nobody gets in; raise maxclients", data)
        else:
            yield Finding("ok", "connections", text, data)
    words = limits.get("client-output-buffer-limit", "").split()
    if "pubsub" in words:
        hard = int(words[words.index("pubsub") + 1])
        if 0 < hard < ANSWER:
            yield Finding("wrong", "buffers", f"it cuts off who listens when {_size(hard)} wait for him, and answers "
                          "have up to 4 MB: client-output-buffer-limit pubsub 32mb 8mb 60, the default")  # fmt: skip


# ---- what we have there


def _tasks(line: Connection, place: Place, url: Url) -> Iterator[Finding]:
    queue = Queue(place)
    try:
        queue.open()
        counts, rules = queue.counts(), queue.rules()
    except ProviderError as error:
        if line.server is not None and line.server.role == "master":
            yield Finding("wrong", "tasks", str(error))
        return
    finally:
        queue.close()
    takers = _takers(line, place)
    for count in counts[:_SHOWN]:
        yield _queue(count, takers, url)
    if len(counts) > _SHOWN:
        yield Finding("ok", "queues", f"{len(counts) - _SHOWN} more")
    if not counts:
        yield Finding("ok", "queues", f"no task of the namespace {place.namespace} is here")
    yield Finding("ok", "workers", f"{_many(takers, 'worker')} of this namespace connected", {"workers": takers})
    buried = sum(count.buried for count in counts)
    if buried:
        yield Finding("note", "buried", f"{_many(buried, 'task')} failed, and kept to be looked at or tried again",
                      {"buried": buried})  # fmt: skip
    paused = [rule.name or "everything" for rule in rules if rule.paused]
    if paused:
        yield Finding("note", "paused", f"{', '.join(paused[:_SHOWN])}: nothing of that is run until it is resumed",
                      {"paused": paused})  # fmt: skip


def _queue(count: Count, takers: int, url: Url) -> Finding:
    parts = [(count.pending, "waiting"), (count.leased, "running"), (count.delayed, "delayed"),
             (count.blocked, "kept back by a rule"), (count.buried, "buried")]  # fmt: skip
    text = ", ".join(f"{number:,} {word}" for number, word in parts if number or word in ("waiting", "running"))
    data = {"queue": count.queue, "pending": count.pending, "leased": count.leased, "delayed": count.delayed,
            "blocked": count.blocked, "buried": count.buried, "oldest": count.oldest}  # fmt: skip
    stuck = bool(count.pending + count.delayed + count.blocked) and not takers
    if count.pending:
        text += f", the oldest for {_span(int(count.oldest))}"
    if stuck:
        text += f": nobody takes them; start one: revolve worker {url}"
        text += f" -q {count.queue}" if count.queue != "default" else ""
    return Finding("wrong" if stuck else "ok", f"queue {count.queue}", text, data)


def _takers(line: Connection, place: Place) -> int:
    """Who takes from this namespace and is connected to this server now."""
    base = f"{{{place.namespace}}}:q".encode()
    found = line.call("ZRANGE", base + b":takers", 0, -1)
    if not found:
        return 0
    numbers = line.call("PUBSUB", "NUMSUB", *[base + b":ear:" + taker for taker in found])
    return sum(1 for number in numbers[1::2] if number)


def _channels(line: Connection, place: Place) -> Iterator[Finding]:
    prefix = f"{{{place.namespace}}}:m:".encode()
    kinds: Counter[str] = Counter()
    cursor, looked, deadline, sample = b"0", 0, time.monotonic() + LONGEST, list[bytes]()
    while True:
        cursor, keys = line.call("SCAN", cursor, "MATCH", _literal(prefix) + b"*", "COUNT", 1000)
        looked += 1000
        for key in keys:
            kinds["tasks" if key.startswith(prefix + b"t.") else "others"] += 1
        sample += keys[: 100 - len(sample)]
        if cursor == b"0" or looked >= MOST or time.monotonic() > deadline:
            break
    total = sum(kinds.values())
    sizes = [size for size in line.exchange([("MEMORY", "USAGE", key) for key in sample]) if isinstance(size, int)]
    each = sum(sizes) / len(sizes) if sizes else 0.0
    more = " or more" if cursor != b"0" else ""
    text = f"{total:,}{more}, {kinds['tasks']:,} of them logs of tasks"
    if each and total:
        text += f"; about {_size(each)} each, {_size(each * total)} in all"
    data = {"channels": total, "tasks": kinds["tasks"], "all": cursor == b"0", "bytes": round(each * total)}
    yield Finding("ok", "channels", text, data)


# ---- to ask and to tell


def _info(line: Connection) -> dict[str, str]:
    (answer,) = line.exchange([("INFO",)])
    if isinstance(answer, ReplyError):
        return {}
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else str(answer)
    return dict(row.split(":", 1) for row in text.splitlines() if ":" in row and not row.startswith("#"))


def _config(line: Connection, name: str) -> dict[str, str]:
    """What CONFIG GET gives; nothing where that is refused, or there is no such command (hosted servers)."""
    (answer,) = line.exchange([("CONFIG", "GET", name)])
    if isinstance(answer, ReplyError):
        return {}
    flat: Sequence[Any] = [each for pair in answer.items() for each in pair] if isinstance(answer, dict) else answer
    words = [each.decode("utf-8", "replace") for each in flat]
    return dict(zip(words[::2], words[1::2], strict=True))


def _literal(text: bytes) -> bytes:
    """A pattern of Redis that matches this text."""
    return b"".join(b"\\" + bytes([each]) if each in b"*?[]\\^" else bytes([each]) for each in text)


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"


def _span(seconds: int) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 2 * size:
            return _many(seconds // size, unit)
    return _many(seconds, "second")


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
