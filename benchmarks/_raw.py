"""Gearman with bare sockets, as little as the protocol allows: what its server and Python's sockets can do at all."""

from __future__ import annotations

import select
import socket
import struct
import sys

HEADER = struct.Struct(">4sII")
REQ = b"\0REQ"
CAN_DO, PRE_SLEEP, SUBMIT_JOB, GRAB_JOB, WORK_COMPLETE, SUBMIT_JOB_BG = 1, 4, 7, 9, 13, 18
NOOP, NO_JOB, JOB_ASSIGN = 6, 10, 11


def packet(kind: int, *args: bytes) -> bytes:
    body = b"\0".join(args)
    return HEADER.pack(REQ, kind, len(body)) + body


def connect(port: int) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", port))
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one


def submit_pipelined(port: int, function: bytes, workload: bytes, count: int) -> None:
    """Background jobs, each a packet made for it; until every one is answered."""
    created = 0
    rest = b""
    with connect(port) as one:
        one.setblocking(False)
        out = b""
        number = 0
        while created < count:
            while number < count and len(out) < 1 << 18:
                out += b"".join(
                    [packet(SUBMIT_JOB_BG, function, b"u%d" % n, workload) for n in range(number, number + 500)]
                )
                number += 500
            _, writable, _ = select.select([one], [one] if out else [], [])
            if writable:
                out = out[one.send(out) :]
            try:
                rest += one.recv(1 << 18)
            except BlockingIOError:
                continue
            at = 0
            while len(rest) - at >= 12:
                end = at + 12 + HEADER.unpack_from(rest, at)[2]
                if end > len(rest):
                    break
                created += 1
                at = end
            rest = rest[at:]


class Foreground:
    """A client that submits one job and waits for its result."""

    def __init__(self, port: int, function: bytes) -> None:
        self.socket = connect(port)
        self.file = self.socket.makefile("rb")
        self.function = function

    def ask(self, workload: bytes) -> bytes:
        self.socket.sendall(packet(SUBMIT_JOB, self.function, b"", workload))
        while True:
            _, kind, size = HEADER.unpack(self.file.read(12))
            body = self.file.read(size)
            if kind == WORK_COMPLETE:
                return body.partition(b"\0")[2]

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def echo_worker(port: int, function: bytes) -> None:
    """Serve until killed: the result is the workload."""
    with connect(port) as one, one.makefile("rb") as file:
        one.sendall(packet(CAN_DO, function) + packet(PRE_SLEEP))
        while True:
            _, kind, size = HEADER.unpack(file.read(12))
            body = file.read(size)
            if kind == NOOP:
                one.sendall(packet(GRAB_JOB))
            elif kind == NO_JOB:
                one.sendall(packet(PRE_SLEEP))
            elif kind == JOB_ASSIGN:
                handle, _, workload = body.split(b"\0", 2)
                one.sendall(packet(WORK_COMPLETE, handle, workload) + packet(GRAB_JOB))


if __name__ == "__main__":
    echo_worker(int(sys.argv[1]), sys.argv[2].encode())
