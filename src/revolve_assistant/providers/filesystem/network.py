"""Is a directory on a file system that other hosts write to, or that tells nobody of changes?"""

from __future__ import annotations

import errno
import sys
from functools import cache
from typing import Any

# f_type of statfs(2). FUSE is among them: it may be sshfs as well as something local.
_MAGICS = {
    0x6969: "nfs",
    0x517B: "smb",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x65735546: "fuse, virtiofs",
    0x01021997: "9p",
    0x00C36400: "ceph",
    0x0BD00BD0: "lustre",
    0x5346414F: "afs",
    0x73757245: "coda",
    0x7461636F: "ocfs2",
    0x01161970: "gfs2",
    0x47504653: "gpfs",
    0x19830326: "beegfs",
    0xAAD7AAEA: "panfs",
    0x786F4256: "vboxsf",
}


@cache
def libc() -> Any:
    """The C library by ctypes, or None."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        import ctypes

        return ctypes.CDLL(None, use_errno=True)
    except (ImportError, OSError):
        return None


def is_network(fd: int) -> bool:
    """Whether the directory behind this descriptor is on a network file system. Linux only; False elsewhere."""
    library = libc()
    if library is None or not hasattr(library, "fstatfs"):
        return False
    import ctypes

    found = ctypes.create_string_buffer(512)  # struct statfs; f_type comes first, as 32 or 64 bits
    while library.fstatfs(fd, found) != 0:
        if ctypes.get_errno() != errno.EINTR:
            return False
    words = (int.from_bytes(found.raw[at : at + 4], sys.byteorder) for at in (0, 4))
    return any(word in _MAGICS for word in words)
