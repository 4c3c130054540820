"""Large buffers travel in anonymous shared memory: written once, mapped by the other side, gone with the last map."""

from __future__ import annotations

import mmap
import os
import struct
from _socket import SCM_RIGHTS, SOL_SOCKET, socket
from collections.abc import Sequence
from typing import Any

import msgspec

_ALIGN = 64  # bytes
_length = struct.Struct("<I")


def _align(size: int) -> int:
    return (size + _ALIGN - 1) // _ALIGN * _ALIGN


def write_buffers(buffers: Sequence[Any]) -> tuple[int, list[int]]:
    """Copy the buffers into new shared memory; returns its descriptor, which the caller closes, and their sizes."""
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    sizes = [view.nbytes for view in views]
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("revolve-buffers", os.MFD_CLOEXEC)
    else:
        import tempfile

        fd, path = tempfile.mkstemp(prefix="revolve-buffers")
        os.unlink(path)
    try:
        os.ftruncate(fd, max(1, sum(map(_align, sizes))))
        offset = 0
        for view in views:
            done = 0
            while done < view.nbytes:
                done += os.pwrite(fd, view[done:], offset + done)
            offset += _align(view.nbytes)
    except BaseException:
        os.close(fd)
        raise
    return fd, sizes


def map_buffers(fd: int, sizes: Sequence[int], *, writable: bool) -> list[memoryview]:
    """The buffers behind a received descriptor, which is closed; they live as long as somebody uses them."""
    try:
        whole = memoryview(
            mmap.mmap(
                fd,
                max(1, sum(map(_align, sizes))),
                mmap.MAP_SHARED,
                mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0),
            )
        )
    finally:
        os.close(fd)
    views, offset = [], 0
    for size in sizes:
        views.append(whole[offset : offset + size])
        offset += _align(size)
    return views


def frame(message: object) -> bytes:
    """One message as a frame of the task or control socket."""
    body = msgspec.msgpack.encode((message,))
    return _length.pack(len(body)) + body


def send_buffers(sock: socket, head: tuple[Any, ...], buffers: Sequence[Any]) -> None:
    """Send `(*head, sizes)` with the buffers' descriptor on a blocking socket."""
    fd, sizes = write_buffers(buffers)
    try:
        import array

        data = frame((*head, sizes))
        rights = [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [fd]))]
        sent = sock.sendmsg([data], rights)
        if sent < len(data):
            sock.sendall(data[sent:])
    finally:
        os.close(fd)


_kept = False


def keep_freed_memory() -> None:
    """Let malloc keep up to 32 MiB of what is freed: to fault the pages of large values in anew costs more than
    copying them. glibc raises its limits when a large block is freed; this one is never touched (2 system calls)."""
    global _kept  # noqa: PLW0603
    if not _kept:
        _kept = True
        bytes(16 << 20)
