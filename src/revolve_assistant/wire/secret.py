"""Finds the secret that both sides of a shared carrier seal with (see `wire.seal`).

In this order: the one that was given; `REVOLVE_SECRET`; the file that `REVOLVE_SECRET_FILE` names; and, if every
carrier is on this machine, a file of this user, which makes itself. A carrier on a network has no such default: both
sides have to be told, and the error says so before anything is connected.

Text holds one secret a line, the first one seals; blank lines and those that begin with `#` do not count, nor do
blanks at either end of a line. So the same text is the same secrets, wherever it stands.

       process A: open ─▶ missing ─▶ write a file of its own ─▶ link to `secret` ─▶ read `secret`
       process B: open ─▶ missing ─▶ write a file of its own ─▶ link fails: there ─▶ read `secret`, A's

No secret stands in an error, and none in the variables that some tools show beside a traceback.
"""

from __future__ import annotations

import errno
import os
import secrets as randomness
import stat
from collections.abc import Sequence
from typing import NoReturn

from ..errors import UsageError
from ..providers.url import Url
from .seal import Keyring

MAX_FILE = 64 << 10  # bytes of a file with secrets
WAY_OUT = "set REVOLVE_SECRET or REVOLVE_SECRET_FILE to the same on both sides (`revolve secret new` makes a secret)"

_IN_PROCESS = frozenset({"executor", "fork", "inline", "memory", "process", "thread"})
_FILES = frozenset({"file", "filesystem", "sqlite"})
_AT_HOME = frozenset({"beanstalkd", "gearman", "memcached", "redis", "rediss"})  # on 127.0.0.1 where no host is named


def keyring(secret: str | bytes | Sequence[str | bytes] | None, *urls: Url) -> Keyring:
    """The keyring for carriers at these URLs. Reads and, for local ones, makes a file; no other I/O. Thread-safe.

    `secret`: text as above, bytes as they are, a list of such for several, or None to look for it. Raises `UsageError`:
    a URL that leaves this machine and no secret, one that is too short, a file that is missing or open to others.
    """
    given = Held(_explicit(secret)) if secret is not None else None
    del secret
    held, source = find(given, *urls)
    return ring(held, source)


def new() -> str:
    """A fresh secret: 64 hexadecimal digits, 256 random bits."""
    return randomness.token_hex(32)


class Held:
    """Secrets on their way to a keyring. Says how many, never which."""

    __slots__ = ("secrets",)

    def __init__(self, secrets: Sequence[str | bytes]) -> None:
        self.secrets = secrets

    def __repr__(self) -> str:
        return f"<{len(self.secrets)} secrets>"

    def __reduce__(self) -> NoReturn:
        raise UsageError("secrets stay in their process")


def ring(held: Held, source: str) -> Keyring:
    """The keyring of these secrets. Raises `UsageError`, which names where they came from."""
    try:
        return Keyring(held.secrets)
    except UsageError as error:
        problem = str(error)
    raise UsageError(f"{source}: {problem}")


def find(given: Held | None, *urls: Url, make: bool = True) -> tuple[Held, str]:
    """The secrets, and in words where they came from. `make=False` makes no file: then there may be none at all."""
    if given is not None:
        return given, "the secret that was given"
    text = os.environ.get("REVOLVE_SECRET")
    if text is not None:
        held = Held(_lines(os.fsencode(text)))
        text = ""
        if not held.secrets:
            raise UsageError(f"REVOLVE_SECRET is set and holds no secret; unset it, or {WAY_OUT}")
        return held, "REVOLVE_SECRET"
    path = os.environ.get("REVOLVE_SECRET_FILE")
    if path is not None:
        return _named_file(path), f"REVOLVE_SECRET_FILE, {path}"
    for url in urls:
        if not is_local(url):
            raise UsageError(f"{url} is not on this machine alone, so what goes there is signed, and needs a secret: "
                             f"{WAY_OUT}, or pass secret=")  # fmt: skip
    path = user_file()
    return _user_secrets(path, make), path


def is_local(url: Url) -> bool:
    """Whether the carrier at `url` can be reached from this machine only: loopback, a Unix socket, a file, memory.

    In doubt it is not. A name is never looked up. A folder that other machines mount looks like any other, and a
    Sentinel on this machine may send its callers to another one, so the latter is not local.
    """
    if url.scheme in _IN_PROCESS:
        return True
    if url.scheme.endswith("+sentinel"):
        return False
    if not url.hosts:
        return url.scheme in _FILES or url.scheme in _AT_HOME or url.scheme.endswith("+unix")
    return all(_is_loopback(host) for host, _ in url.hosts)


def _is_loopback(host: str) -> bool:
    if host.lower() in ("localhost", "127.0.0.1", "::1"):
        return True
    import ipaddress

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


# --- text


def _explicit(secret: str | bytes | Sequence[str | bytes]) -> list[str | bytes]:
    found: list[str | bytes] = []
    for part in secret if isinstance(secret, Sequence) and not isinstance(secret, str | bytes) else (secret,):
        if isinstance(part, str):
            try:
                found += _lines(part.encode("utf-8", "surrogateescape"))
                continue
            except UnicodeEncodeError:
                pass  # the keyring says so
        found.append(part)
    return found


def _lines(data: bytes) -> list[bytes]:
    lines = [line.strip() for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    return [line for line in lines if line and not line.startswith(b"#")]


# --- files


def user_file() -> str:
    """Where this user's own secret is kept: `revolve/secret` in XDG_DATA_HOME or `~/.local/share`."""
    folder = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(folder):  # to be ignored, says its specification
        home = os.environ.get("HOME") or _home_of_user()
        if not os.path.isabs(home):
            raise UsageError(f"this user has no home folder (HOME is {home!r}) to keep a secret in; {WAY_OUT}")
        folder = os.path.join(home, ".local", "share")
    return os.path.join(folder, "revolve", "secret")


def _home_of_user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""


def _named_file(path: str) -> Held:
    """The secrets in a file that somebody chose: often root's, readable by a group, and a link (as containers do)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return _read(fd, f"REVOLVE_SECRET_FILE, {path},", owners={os.geteuid(), 0}, forbidden=0o022)
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"REVOLVE_SECRET_FILE, {path!r}, cannot be read: {error.strerror}") from error


def _user_secrets(path: str, make: bool) -> Held:
    try:
        fd = _open_own(path)
        if fd is None:
            if not make:
                return Held(())
            _make(path)
            fd = _open_own(path)
        if fd is None:
            raise UsageError(f"the secret {path} vanished while it was made; try again, or {WAY_OUT}")
        try:
            return _read(fd, f"the secret {path}", owners={os.geteuid()}, forbidden=0o077)
        finally:
            os.close(fd)
    except OSError as error:
        why = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise UsageError(f"the secret of this user cannot be kept in {path}: {why}; {WAY_OUT}") from error


def _open_own(path: str) -> int | None:
    """A descriptor of the file, None where there is none."""
    try:
        folder = os.stat(os.path.dirname(path))
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    if folder.st_uid != os.geteuid() or folder.st_mode & 0o022:  # others could put another file of ours in its place
        os.close(fd)
        raise UsageError(f"the folder of the secret {path} belongs to somebody else, or others may write there; "
                         f"chmod 700 it, or {WAY_OUT}")  # fmt: skip
    return fd


def _read(fd: int, what: str, owners: set[int], forbidden: int) -> Held:
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        raise UsageError(f"{what} is no regular file")
    if about.st_uid not in owners:
        raise UsageError(f"{what} belongs to user {about.st_uid}, and this process runs as {os.geteuid()}; {WAY_OUT}")
    if about.st_mode & forbidden:
        open_to = "read or changed" if forbidden & 0o044 else "changed"
        mode = stat.S_IMODE(about.st_mode)
        raise UsageError(f"{what} can be {open_to} by others (mode {mode:04o}): chmod 600 it, and if they may have "
                         "done so, replace the secret")  # fmt: skip
    data = b""
    while len(data) <= MAX_FILE and (more := os.read(fd, MAX_FILE + 1 - len(data))):
        data += more
    size = len(data)
    held = Held(_lines(data))
    del data, more
    if size > MAX_FILE:
        raise UsageError(f"{what} has more than {MAX_FILE} bytes; it should hold one secret a line")
    if not held.secrets:
        raise UsageError(f"{what} holds no secret; remove it, or put one in (`revolve secret new` makes one)")
    return held


def _make(path: str) -> None:
    """Put a new secret at `path`, whole or not at all, unless another process did so meanwhile."""
    _make_folder(os.path.dirname(path))
    own = f"{path}.{os.getpid()}.{randomness.token_hex(8)}"
    fd = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w", encoding="ascii") as file:
            os.fchmod(fd, 0o600)  # whatever the umask
            file.write(f"# What this user's tasks and events on this machine are signed with.\n{new()}\n")
            file.flush()
            os.fsync(fd)
        try:
            os.link(own, path)
        except FileExistsError:
            pass  # another process was first, and its secret is ours now
    finally:
        os.unlink(own)


def _make_folder(folder: str) -> None:
    """Make it and what lacks above it, for us alone; as root not in another user's home (`sudo` that keeps HOME)."""
    try:
        about = os.stat(folder)
    except FileNotFoundError:
        above = os.path.dirname(folder)
        if above == folder:
            raise
        _make_folder(above)
        try:
            os.mkdir(folder, 0o700)
            os.chmod(folder, 0o700)  # whatever the umask
        except FileExistsError:
            pass
        return
    if os.geteuid() == 0 and about.st_uid != 0:
        raise UsageError(f"the folder {folder} belongs to user {about.st_uid}, and this process runs as root: "
                         f"set HOME, or {WAY_OUT}")  # fmt: skip
