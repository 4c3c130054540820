"""What the operating system knows of a process, of its limits and of its death.

    /proc/PID/statm, status, stat        memory of a child, is it stopped
    /proc/self/cgroup + mountinfo   ──▶  our cgroup's directory and its ancestors (v2, v1, hybrid; with or without
                                         a cgroup namespace) ──▶ memory limit, OOM kills, CPU quota

Linux answers everything. Elsewhere the memory of others reads as 0, limits as None and nothing is ever stopped:
callers need no second branch. Nothing here raises for a process that is gone or a file that is missing. Imports
`os` alone, because children import it too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..errors import UsageError

_PROC = "/proc"  # tests put a tree of their own here
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
for _power, _letter in enumerate("KMGT", 1):
    _UNITS.update({_letter: 1 << 10 * _power, f"{_letter}I": 1 << 10 * _power, f"{_letter}IB": 1 << 10 * _power})
UNKNOWN_EXIT = -(1 << 16)  # in the place of a returncode
_SIGNALS = {"SIGKILL": "", "SIGTERM": "", "SIGINT": "interrupted", "SIGHUP": "hung up"}  # the rest: strsignal


def _read(path: str) -> bytes:
    """The first 64 KiB of a file, b"" if it cannot be read. Two thirds of the cost of `open().read()` saved."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(handle, 65536)
    except OSError:  # the process went between open and read
        return b""
    finally:
        os.close(handle)


# ---------------------------------------------------------------- one process


def resident(pid: int) -> int:
    """Bytes of memory that only this process holds, about: resident less file-backed and shared pages. 0 if gone.

    Counts neither swap nor tmpfs and shared-memory pages, so `client.share` arrays are not billed to every child.
    """
    fields = _read(f"{_PROC}/{pid}/statm").split()
    return (int(fields[1]) - int(fields[2])) * _PAGE if len(fields) > 2 else 0


def peak(pid: int) -> int:
    """Bytes of the largest resident set the process ever had (VmHWM, shared pages included). 0 if gone or a zombie."""
    _, found, rest = _read(f"{_PROC}/{pid}/status").partition(b"\nVmHWM:")
    return int(rest.split(None, 1)[0]) * 1024 if found else 0


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal (SIGSTOP, Ctrl-Z) or by a debugger: it can heed nothing then."""
    stat = _read(f"{_PROC}/{pid}/stat")
    after = stat.rpartition(b")")[2].split(None, 1)  # comm may hold spaces and parentheses: the last one ends it
    return bool(after) and after[0] in (b"T", b"t")


def raise_oom_score(pid: int | None = None, *, to: int) -> bool:
    """Make the kernel prefer this process (None: ourselves) when memory runs out. Never lowers; True if set or higher.

    `to` is -1000 … 1000. False without permission, or where the system has no such thing.
    """
    path = f"{_PROC}/{'self' if pid is None else pid}/oom_score_adj"
    to = max(-1000, min(1000, to))
    try:
        if int(_read(path)) >= to:
            return True
        handle = os.open(path, os.O_WRONLY)
        try:
            os.write(handle, b"%d" % to)
        finally:
            os.close(handle)
    except (OSError, ValueError):
        return False
    return True


def volunteer_for_oom(by: int = 300) -> bool:
    """In a child: be killed before the supervisor when memory runs out. Adds `by` to our score, up to 1000."""
    try:
        return raise_oom_score(to=int(_read(f"{_PROC}/self/oom_score_adj")) + by)
    except ValueError:
        return False


def describe_exit(status: int) -> tuple[str, int | None, int | None]:
    """Popen's `returncode` as `(text, signal, exit code)`; one of the numbers is None, both for `UNKNOWN_EXIT`."""
    if status == UNKNOWN_EXIT:
        text = "ended; how is not known, because SIGCHLD is ignored here or something else collected its exit status"
        return text, None, None
    if status >= 0:
        return f"exited with code {status}", None, status
    import signal

    number = -status
    try:
        name = signal.Signals(number).name
        text = _SIGNALS.get(name, (signal.strsignal(number) or "").lower())
    except ValueError:  # a real-time signal, or none
        name, text = f"signal {number}", ""
    return f"killed by {name} ({text})" if text else f"killed by {name}", number, None


# ---------------------------------------------------------------- the limits around us


def _cgroups(controller: str) -> Iterator[tuple[bool, str]]:
    """`(is v2, directory)` of our cgroup and each of its visible ancestors, ours first; v2 before v1."""
    own: dict[str, str] = {}
    for line in _read(f"{_PROC}/self/cgroup").decode(errors="surrogateescape").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        own.update(dict.fromkeys(controllers.split(","), path))  # v2's one line has no controllers: ""
    found: list[tuple[bool, str, str]] = []
    for line in _read(f"{_PROC}/self/mountinfo").decode(errors="surrogateescape").splitlines():
        head, _, tail = line.partition(" - ")
        fields, kind = head.split(), [*tail.split(), "", "", ""][:3]
        if len(fields) < 5:
            continue
        wanted = {"cgroup2": "", "cgroup": controller}.get(kind[0])
        if wanted is None or wanted not in own or (wanted and controller not in kind[2].split(",")):
            continue
        root, mount = (field.replace("\\040", " ").rstrip("/") for field in fields[3:5])
        path = own[wanted].rstrip("/")
        # Without a cgroup namespace a container sees the host's path, mounted at the container's own cgroup.
        inner = path[len(root) :] if path == root or path.startswith(root + "/") else ""
        found.append((wanted == "", mount, "" if ".." in inner.split("/") else inner))
    for is_v2, mount, inner in sorted(found, key=lambda item: not item[0]):
        while True:
            yield is_v2, mount + inner
            if not inner:
                break
            inner = inner.rpartition("/")[0]


def total_memory() -> int:
    """Bytes of memory of this machine, 0 if unknown."""
    _, found, rest = _read(f"{_PROC}/meminfo").partition(b"MemTotal:")
    if found:
        return int(rest.split(None, 1)[0]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * _PAGE
    except (AttributeError, OSError, ValueError):
        return 0


def cgroup_limit() -> int | None:
    """Bytes that our cgroup (container, unit, pod) and its ancestors allow; None if that is no real limit."""
    limits = []
    for is_v2, folder in _cgroups("memory"):
        text = _read(f"{folder}/{'memory.max' if is_v2 else 'memory.limit_in_bytes'}").strip()
        if text.isdigit() and int(text) < _UNLIMITED:
            limits.append(int(text))
    limit, total = min(limits, default=None), total_memory()
    return None if limit is None or (total and limit >= total) else limit


def default_memory_limit(children: int) -> int | None:
    """Bytes for each of `children` so that they together stay at 80 % of the cgroup's limit; None without a limit."""
    limit = cgroup_limit()
    return None if limit is None else limit * 4 // (5 * max(1, children))


def oom_kills() -> int:
    """How many processes of our cgroup (where it has no counter: of this machine) the kernel killed for memory.

    Compare two readings around a SIGKILL to say "out of memory". 0 where nobody counts.
    """
    for is_v2, folder in _cgroups("memory"):
        count = _counter(f"{folder}/{'memory.events' if is_v2 else 'memory.oom_control'}")
        if count is not None:
            return count
    return _counter(f"{_PROC}/vmstat") or 0


def _counter(path: str) -> int | None:
    _, found, rest = (b"\n" + _read(path)).partition(b"\noom_kill ")
    return int(rest.split(None, 1)[0]) if found else None


def usable_cpus() -> int:
    """How many CPUs this process may use: its affinity, and the cgroups' CPU quota rounded up. At least 1."""
    try:
        cpus: float = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        cpus = os.cpu_count() or 1
    for is_v2, folder in _cgroups("cpu"):
        if is_v2:
            quota, period = [*_read(f"{folder}/cpu.max").split(), b"", b""][:2]
        else:
            quota, period = _read(f"{folder}/cpu.cfs_quota_us").strip(), _read(f"{folder}/cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):  # "max", "-1", "" are no quota
            cpus = min(cpus, -(-int(quota) // int(period)))
    return max(1, int(cpus))


def parse_memory(value: str | int) -> int:
    """Bytes from a number or a text: `"2GiB"`, `"512M"`, `"1.5 G"`; K M G T count in 1024, KB MB GB TB in 1000.

    Raises `UsageError` for anything else, zero and below included.
    """
    size: float = 0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str):
        text = value.strip()
        number = text.rstrip("BIKMGTbikmgt ")
        factor = _UNITS.get(text[len(number) :].strip().upper())
        if factor and number.replace(".", "", 1).isdecimal() and number.isascii():
            size = int(number) * factor if number.isdecimal() else float(number) * factor
    if size < 1 or size >= _UNLIMITED:
        raise UsageError(f"memory size {value!r} must be a number of bytes > 0, or a text such as '512M' or '2GiB'")
    return int(size)
