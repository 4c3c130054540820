"""Every packet of the binary Gearman protocol, as bytes and back. No socket in here.

    magic (NUL "REQ" to the server, NUL "RES" from it) · kind · body length       12 bytes, numbers big-endian
    argument NUL argument NUL … last argument                                      only the last may hold NULs

Two roles: `server`, and `client` for whoever connects to it, worker or client. What stands here was read off
gearmand 1.1.20, and differs from its PROTOCOL document where that is wrong: reduce jobs carry an aggregator, the
handle of a WORK_FAIL may end in NULs, STATUS_RES_UNIQUE begins with the unique.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Literal, NamedTuple

from ...errors import ProtocolError, UsageError

Role = Literal["client", "server"]

MAX_BODY = 64 << 20
"""Bytes of the largest body that a Decoder takes by default."""
MAX_LINE = 64 << 10
"""Bytes of the longest text line that a server's Decoder takes."""

_HEADER = struct.Struct(">4sII")
_REQ, _RES = b"\0REQ", b"\0RES"
_LARGEST = 0xFFFFFFFF - 12


class Kind(IntEnum):
    """The packets, by the names of the protocol."""

    __hash__ = int.__hash__  # that of an enum is a function in Python

    CAN_DO = 1
    CANT_DO = 2
    RESET_ABILITIES = 3
    PRE_SLEEP = 4
    NOOP = 6
    SUBMIT_JOB = 7
    JOB_CREATED = 8
    GRAB_JOB = 9
    NO_JOB = 10
    JOB_ASSIGN = 11
    WORK_STATUS = 12
    WORK_COMPLETE = 13
    WORK_FAIL = 14
    GET_STATUS = 15
    ECHO_REQ = 16
    ECHO_RES = 17
    SUBMIT_JOB_BG = 18
    ERROR = 19
    STATUS_RES = 20
    SUBMIT_JOB_HIGH = 21
    SET_CLIENT_ID = 22
    CAN_DO_TIMEOUT = 23
    ALL_YOURS = 24
    WORK_EXCEPTION = 25
    OPTION_REQ = 26
    OPTION_RES = 27
    WORK_DATA = 28
    WORK_WARNING = 29
    GRAB_JOB_UNIQ = 30
    JOB_ASSIGN_UNIQ = 31
    SUBMIT_JOB_HIGH_BG = 32
    SUBMIT_JOB_LOW = 33
    SUBMIT_JOB_LOW_BG = 34
    SUBMIT_JOB_SCHED = 35
    SUBMIT_JOB_EPOCH = 36
    SUBMIT_REDUCE_JOB = 37
    SUBMIT_REDUCE_JOB_BACKGROUND = 38
    GRAB_JOB_ALL = 39
    JOB_ASSIGN_ALL = 40
    GET_STATUS_UNIQUE = 41
    STATUS_RES_UNIQUE = 42


_FAIL = Kind.WORK_FAIL
_SUBMIT = ("function", "unique", "workload")
_REDUCE = ("function", "unique", "reducer", "aggregator", "workload")
_PROGRESS = ("known", "running", "numerator", "denominator")

TO_SERVER: dict[Kind, tuple[str, ...]] = {
    Kind.CAN_DO: ("function",),
    Kind.CANT_DO: ("function",),
    Kind.RESET_ABILITIES: (),
    Kind.PRE_SLEEP: (),
    Kind.SUBMIT_JOB: _SUBMIT,
    Kind.GRAB_JOB: (),
    Kind.WORK_STATUS: ("handle", "numerator", "denominator"),
    Kind.WORK_COMPLETE: ("handle", "result"),
    Kind.WORK_FAIL: ("handle",),
    Kind.GET_STATUS: ("handle",),
    Kind.ECHO_REQ: ("data",),
    Kind.SUBMIT_JOB_BG: _SUBMIT,
    Kind.SUBMIT_JOB_HIGH: _SUBMIT,
    Kind.SET_CLIENT_ID: ("id",),
    Kind.CAN_DO_TIMEOUT: ("function", "timeout"),
    Kind.ALL_YOURS: (),
    Kind.WORK_EXCEPTION: ("handle", "exception"),
    Kind.OPTION_REQ: ("option",),
    Kind.WORK_DATA: ("handle", "data"),
    Kind.WORK_WARNING: ("handle", "warning"),
    Kind.GRAB_JOB_UNIQ: (),
    Kind.SUBMIT_JOB_HIGH_BG: _SUBMIT,
    Kind.SUBMIT_JOB_LOW: _SUBMIT,
    Kind.SUBMIT_JOB_LOW_BG: _SUBMIT,
    Kind.SUBMIT_JOB_SCHED: ("function", "unique", "minute", "hour", "day", "month", "weekday", "workload"),
    Kind.SUBMIT_JOB_EPOCH: ("function", "unique", "epoch", "workload"),
    Kind.SUBMIT_REDUCE_JOB: _REDUCE,
    Kind.SUBMIT_REDUCE_JOB_BACKGROUND: _REDUCE,
    Kind.GRAB_JOB_ALL: (),
    Kind.GET_STATUS_UNIQUE: ("unique",),
}
"""What a server receives, and the names of the arguments."""

FROM_SERVER: dict[Kind, tuple[str, ...]] = {
    Kind.NOOP: (),
    Kind.JOB_CREATED: ("handle",),
    Kind.NO_JOB: (),
    Kind.JOB_ASSIGN: ("handle", "function", "workload"),
    Kind.WORK_STATUS: ("handle", "numerator", "denominator"),
    Kind.WORK_COMPLETE: ("handle", "result"),
    Kind.WORK_FAIL: ("handle",),
    Kind.ECHO_RES: ("data",),
    Kind.ERROR: ("code", "text"),
    Kind.STATUS_RES: ("handle", *_PROGRESS),
    Kind.WORK_EXCEPTION: ("handle", "exception"),
    Kind.OPTION_RES: ("option",),
    Kind.WORK_DATA: ("handle", "data"),
    Kind.WORK_WARNING: ("handle", "warning"),
    Kind.JOB_ASSIGN_UNIQ: ("handle", "function", "unique", "workload"),
    Kind.JOB_ASSIGN_ALL: ("handle", "function", "unique", "reducer", "workload"),
    Kind.STATUS_RES_UNIQUE: ("unique", *_PROGRESS, "clients"),
}
"""What a client or worker receives, and the names of the arguments."""


class Packet(NamedTuple):
    """One packet. `args` are bytes, in the order of the protocol; `get("handle")` finds one by its name."""

    kind: Kind
    args: tuple[bytes, ...] = ()

    def get(self, name: str) -> bytes:
        """The argument of that name. Raises `UsageError` if this kind of packet has none."""
        names = TO_SERVER.get(self.kind) or FROM_SERVER.get(self.kind, ())
        if name not in names:
            raise UsageError(f"{self.kind.name} has no argument {name!r}, it has: {', '.join(names) or 'none'}")
        return self.args[names.index(name)]


class Line(NamedTuple):
    """A line of the text protocol that a server received, without its end."""

    text: bytes


def encode(packet: Packet, role: Role = "client") -> bytes:
    """The bytes of a packet that `role` sends. Raises `UsageError` for what cannot be sent, before anything is."""
    kind, args = packet
    names = (TO_SERVER if role == "client" else FROM_SERVER).get(kind)
    if names is None:
        raise UsageError(f"a {role} does not send {getattr(kind, 'name', kind)!r}")
    if len(args) != len(names):
        raise UsageError(f"{kind.name} takes {len(names)} arguments ({', '.join(names)}), not {len(args)}")
    try:
        body = b"\0".join(args)
    except TypeError:
        raise UsageError(f"the arguments of {kind.name} are bytes; encode text, e.g. as UTF-8") from None
    for arg in args[:-1]:
        if 0 in arg:
            name = names[args.index(arg)]
            raise UsageError(f"{name} {_shown(arg)} holds a NUL, which only the last argument may; encode it")
    if len(body) > _LARGEST:
        raise UsageError(f"{len(body)} bytes do not fit into one {kind.name}; split them, 4 GiB is the most")
    return _HEADER.pack(_REQ if role == "client" else _RES, kind, len(body)) + body


class Decoder:
    """Bytes in, packets out, however the stream was split. Not thread-safe.

    `role` is ours: a `client` (or worker) receives what servers send; a `server` receives what clients and workers
    send, and text lines between the packets. A body longer than `max_body` bytes is refused when its header is
    there: no more is ever held than was fed.

    What is wrong is a `ProtocolError`, and the stream is over: every later call raises it again. `feed` first gives
    the sound packets before it: then the error waits in `error`.
    """

    def __init__(self, role: Role = "client", *, max_body: int = MAX_BODY) -> None:
        self.role = role
        self.max_body = max_body
        self.error: ProtocolError | None = None
        self._magic = _RES if role == "client" else _REQ
        table = FROM_SERVER if role == "client" else TO_SERVER
        self._kinds: list[tuple[Kind, int] | None] = [None] * (max(Kind) + 1)
        for kind, names in table.items():
            self._kinds[kind] = (kind, len(names))
        self._held = bytearray()
        self._need = 1  # bytes that must be held before anything can be said about them

    def feed(self, data: bytes | bytearray | memoryview) -> list[Packet | Line]:
        """Take the next bytes; the packets (and, for a server, lines) that are complete now."""
        if self.error is not None:
            raise self.error
        held = self._held
        if held:
            held += data
            if len(held) < self._need or (held[0] and b"\n" not in data and len(held) <= MAX_LINE):
                return []
            data = bytes(held)
            held.clear()
        elif not isinstance(data, bytes):
            data = bytes(data)
        found: list[Packet | Line] = []
        try:
            at = self._read(data, found)
        except ProtocolError as error:
            self.error = error
            if not found:
                raise
        else:
            held += memoryview(data)[at:]
        return found

    def end(self) -> None:
        """The stream ended. Raises `ProtocolError` if it did so in the middle of something."""
        if self.error is not None:
            raise self.error
        if self._held:
            self.error = ProtocolError(f"the connection ended inside a packet, {len(self._held)} bytes into it")
            raise self.error

    def _read(self, data: bytes, found: list[Packet | Line]) -> int:
        """Read what is complete; where the rest begins."""
        at, size, kinds, magic = 0, len(data), self._kinds, self._magic
        while at < size:
            if data[at]:
                at, whole = self._line(data, at, found)
                if not whole:
                    return at
                continue
            if size - at < 12:
                if not magic.startswith(data[at : at + 4]):
                    raise self._stranger(data, at)
                self._need = 12 if size - at >= 4 else 1
                return at
            start, number, length = _HEADER.unpack_from(data, at)
            if start != magic:
                raise self._stranger(data, at)
            known = kinds[number] if number < len(kinds) else None
            if known is None:
                raise ProtocolError(f"packet type {number} ({_name(number)}) is nothing that a {self.role} receives")
            kind, count = known
            if length > self.max_body:
                raise ProtocolError(
                    f"{kind.name} announces {length} bytes, the limit is {self.max_body}; raise `max_body` to take it"
                )
            if size - at - 12 < length:
                self._need = 12 + length
                return at
            body = data[at + 12 : at + 12 + length]
            at += 12 + length
            if count > 1 and kind is not _FAIL:
                parts = tuple(body.split(b"\0", count - 1))
                if len(parts) == count:
                    found.append(Packet(kind, parts))
                    continue
            found.append(Packet(kind, _arguments(kind, count, body)))
        self._need = 1
        return at

    def _line(self, data: bytes, at: int, found: list[Packet | Line]) -> tuple[int, bool]:
        if self.role == "client":
            raise self._stranger(data, at)
        end = data.find(b"\n", at, at + MAX_LINE + 1)
        if end < 0:
            if len(data) - at > MAX_LINE:
                raise ProtocolError(f"a text line longer than {MAX_LINE} bytes: {_shown(data[at : at + 100])}")
            self._need = 1
            return at, False
        text = data[at:end]
        found.append(Line(text[:-1] if text.endswith(b"\r") else text))
        return end + 1, True

    def _stranger(self, data: bytes, at: int) -> ProtocolError:
        start = data[at : at + 32]
        other = _REQ if self.role == "client" else _RES
        if start.startswith(other):
            who = "what a server must not receive" if self.role == "server" else "our side of the protocol, an echo"
            return ProtocolError(f"the other side sent {who}: {_shown(start)}")
        return ProtocolError(f"not Gearman, another protocol answers: {_shown(start)}")


def _arguments(kind: Kind, count: int, body: bytes) -> tuple[bytes, ...]:
    if kind is Kind.WORK_FAIL:  # gearmand ends the handle with a NUL where it stands for a WORK_EXCEPTION
        body = body.rstrip(b"\0")
    if count == 1:
        return (body,)
    if count == 0:
        if body:
            raise ProtocolError(f"{kind.name} has no arguments, but came with {_shown(body)}")
        return ()
    parts = tuple(body.split(b"\0", count - 1))
    if len(parts) != count:
        raise ProtocolError(f"{kind.name} takes {count} arguments, {len(parts)} came: {_shown(body)}")
    return parts


def number(arg: bytes, what: str = "number") -> int:
    """A decimal argument, 0 … 2³²−1. Raises `ProtocolError`."""
    if not arg.isdigit() or len(arg) > 10 or (value := int(arg)) > 0xFFFFFFFF:
        raise ProtocolError(f"{what} is no number from 0 to 2³²−1: {_shown(arg)}")
    return value


def _name(number: int) -> str:
    return Kind(number).name if number in Kind._value2member_map_ else "unknown"


def _shown(data: bytes) -> str:
    return repr(bytes(data[:60])) + ("…" if len(data) > 60 else "")
