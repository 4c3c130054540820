"""One call in a process of somebody else's executor: runs it, and speaks over the caller's socket while it can."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from time import monotonic_ns
from typing import Any

import msgspec

from ..errors import CancelSignal
from ..running import api
from ..running.body import run, run_async
from ..running.running import Running
from ..telemetry import begin
from .child import frames
from .reports import CANCELLED, CREDIT, ERROR, RESULT, SEND, STARTED, STOPPING

_encode = msgspec.msgpack.Encoder().encode


class Line:
    """The `Port` of a call: a connection to the caller, or nothing where it cannot be reached."""

    def __init__(self, address: str, token: bytes) -> None:
        self.flagged = False
        self.running: Running | None = None
        self._lock = threading.Lock()
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(address)
            self._socket.sendall(token)
        except OSError:
            self._socket.close()
            self._socket = None

    def put(self, record: bytes) -> None:
        if self._socket is not None:
            try:
                with self._lock:
                    self._socket.sendall((len(record) + 1).to_bytes(4, "little") + b"\x91" + record)
            except OSError:  # the caller is gone; the call goes on, as the executor wants it
                self._socket = None

    def stopping(self, running: Running) -> bool:
        return self.flagged

    def listen(self) -> None:
        sock = self._socket
        pending = bytearray()
        while sock is not None:
            try:
                data = sock.recv(65536)
            except OSError:
                return
            if not data:
                return
            pending += data
            for message in frames(pending):
                running = self.running
                if running is None:
                    continue
                if message[0] == STOPPING:
                    self.flagged = True
                    running.nudge()
                elif message[0] == CREDIT:
                    running.grant()
                elif message[0] == SEND:
                    from ..wire.values import unpack_message

                    said = unpack_message(message[2], message[3])
                    if said is not None:
                        running.put_message(said)

    def close(self) -> None:
        sock = self._socket
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def remote_call(address: str, token: bytes, call: tuple[Any, ...]) -> tuple[str, Any]:
    """Run the call; returns `("result", pickle)`, `("error", packed)` or `("cancelled", rung)`."""
    from pickle import loads

    from ..wire.carry import pack
    from ..wire.remote import pack_error

    name, kind, body, payload, id, attempt, capture, queue, headers = call
    line = Line(address, token)
    running = line.running = Running(line, 1, id, attempt)
    reader = threading.Thread(target=line.listen, daemon=True)
    reader.start()
    line.put(_encode((STARTED, 1, f"{os.uname().nodename}:{os.getpid()}")))
    mark = api.in_context.set(running)
    trace = begin(running, name, queue, headers) if headers is not None else None
    began = monotonic_ns()
    try:
        args, kwargs = loads(payload)
        fn = loads(body)
        value = _call(running, kind, fn, args, kwargs, capture)
        if trace is not None:
            trace.returned(running)
        if running._noticed:
            end: tuple[str, Any] = ("cancelled", "flag")
        else:
            packed, buffers = pack(value, "result")
            if buffers:
                import pickle

                packed = pickle.dumps(value, 5)
            end = ("result", packed)
    except CancelSignal:
        if trace is not None:
            trace.cancelled("flag")
        end = ("cancelled", "flag")
    except BaseException as error:
        if trace is not None:
            trace.failed(error)
        end = ("error", pack_error(error))
    finally:
        api.in_context.reset(mark)
    number = {"result": RESULT, "error": ERROR, "cancelled": CANCELLED}[end[0]]
    line.put(_encode((number, 1, monotonic_ns() - began, end[1])))
    line.close()
    reader.join(1.0)
    return end


def _call(running: Running, kind: str, fn: Any, args: Any, kwargs: Any, capture: bool) -> Any:
    if capture:
        from ..running.capture import capturing

        with capturing(running.emit):
            return _call(running, kind, fn, args, kwargs, False)
    if kind in ("plain", "generator"):
        return run(running, kind, fn, args, kwargs)
    import asyncio

    return asyncio.run(run_async(running, kind, fn, args, kwargs))
