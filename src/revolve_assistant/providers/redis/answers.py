"""What a server's error answers mean: the one place where Redis' errors become ours.

LOADING MASTERDOWN READONLY …   Unreachable     come again: it starts, fails over, saves
OOM                             Overloaded      come again when there is room
NOAUTH WRONGPASS NOPERM …       ProviderError   somebody must change something
MOVED CROSSSLOT CLUSTERDOWN     ProviderError   a cluster
"""

from __future__ import annotations

import re

from ...errors import Overloaded, ProtocolError, ProviderError, Unreachable

_AWAY = {
    "LOADING": "is loading its data",
    "MASTERDOWN": "is a replica that has lost its primary",
    "READONLY": "is a read-only replica: name its primary, or the sentinels (redis+sentinel://…)",
    "BUSY": "is busy with somebody's script",
    "TRYAGAIN": "asks to try again",
    "MISCONF": "cannot save to its disk and refuses writes until it can (see its log)",
    "NOREPLICAS": "refuses writes: fewer replicas than min-replicas-to-write are there",
}
_AUTH = ("NOAUTH", "WRONGPASS", "NOPERM")
_CLUSTER = ("MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN")
# The error of a command within a script is the script's; before 7.0 it stands in the midst of a longer text.
_CODE = re.compile(r"(?:\A|: -)([A-Z]{3,})(?= |\Z)")

CLUSTERED = (
    "runs in cluster mode, which this release does not speak: name a server without it "
    "(cluster-enabled no), or one behind sentinels"
)
STRANGER = "what answers there is no Redis: correct the port, or the scheme of the address"


def code(text: str) -> str:
    """The code of an error answer, as `WRONGTYPE`."""
    found = _CODE.findall(text)
    return found[-1] if found else ""


def error(text: str, where: str) -> ProviderError:
    """What to raise for the error answer `text` of the server `where`."""
    kind = code(text)
    if kind == "OOM":
        return Overloaded(
            f"redis at {where} is full: its maxmemory is used up (raise it, or let fewer tasks and events wait)"
        )
    if kind in _AWAY:
        return Unreachable(f"redis at {where} {_AWAY[kind]}")
    if "max number of clients" in text:
        return Unreachable(f"redis at {where} has as many connections as it takes: raise its maxclients")
    if kind in _CLUSTER:
        return ProviderError(f"redis at {where} {CLUSTERED}")
    if kind == "NOAUTH":
        return ProviderError(f"redis at {where} wants a password: redis://user:password@{where}/0")
    if kind == "WRONGPASS" or "invalid password" in text or "invalid username-password" in text:
        return ProviderError(f"redis at {where} refuses the user or the password of the address")
    if kind == "NOPERM":
        return ProviderError(f"redis at {where} does not let this user do that (see ACL SETUSER): {text}")
    if kind == "DENIED":
        return ProviderError(
            f"redis at {where} is in protected mode: it takes no strangers until it has a password (requirepass)"
        )
    if "without any password configured" in text or "no password is set" in text:
        return ProviderError(f"redis at {where} knows no password, and the address has one: leave it out")
    if kind == "NOPROTO" or ("unknown command" in text.lower() and "hello" in text.lower()):
        return ProviderError(f"redis at {where} is older than 6.2, which is needed: upgrade it")
    if kind == "WRONGTYPE":
        return ProviderError(f"redis at {where}: another program uses our names; say another namespace=… ({text})")
    if "DB index" in text:
        return ProviderError(f"redis at {where} has no such database: {text}")
    return ProtocolError(f"redis at {where} answered: {text[:300]}")


def stranger(received: bytes, where: str) -> ProtocolError:
    """What to raise for bytes that are no RESP."""
    kinds = {
        b"HTTP/": "a web server",
        b"SSH-": "an SSH server",
        b"ERROR\r\n": "memcached",
        b"\x15\x03": "a server that wants TLS: write rediss://",
        b"\x00RES": "a Gearman server",
        b"UNKNOWN_COMMAND": "beanstalkd",
    }
    known = next((kind for mark, kind in kinds.items() if received.startswith(mark)), None)
    if known is not None:
        return ProtocolError(f"{where} is {known}, no Redis: correct the port, or the scheme of the address")
    return ProtocolError(f"{where} answered {received[:40]!r}: {STRANGER}")
