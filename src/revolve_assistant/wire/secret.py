"""Where the secret comes from that signs what crosses a shared carrier.

said ─▶ REVOLVE_SECRET ─▶ REVOLVE_SECRET_FILE ─▶ all addresses on this machine: a file of this user's own, made
                                              └▶ any other address: an error that says what to do
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ..errors import UsageError
from .seal import Keyring

if TYPE_CHECKING:
    from ..providers.url import Url

_LOCAL = frozenset({"memory", "file", "filesystem", "sqlite", "process", "thread", "fork", "inline"})
MAX_FILE = 1 << 20  # bytes


def keyring(secret: str | bytes | Sequence[str | bytes] | None, *urls: Url) -> Keyring:
    """The keys for these addresses. May create this user's file. Raises `UsageError`, which shows no secret."""
    return Keyring(find(secret, *urls)[0])


def find(secret: str | bytes | Sequence[str | bytes] | None, *urls: Url) -> tuple[list[str | bytes], str]:
    """The secrets, the signing one first, and where they were found. Raises as `keyring`."""
    if secret is not None:
        return ([secret] if isinstance(secret, (str, bytes)) else list(secret)), "the argument secret"
    said = os.environ.get("REVOLVE_SECRET")
    if said:
        return [word for word in said.split(",") if word], "REVOLVE_SECRET"
    path = os.environ.get("REVOLVE_SECRET_FILE")
    if path:
        return _read(path, ours=False), path
    for url in urls:
        if not on_this_machine(url):
            raise UsageError(
                f"{url} is not on this machine, so both sides need the same secret: make one with `revolve secret new` "
                "and set REVOLVE_SECRET, REVOLVE_SECRET_FILE or secret= here and for the workers"
            )
    path = own_file()
    return _read(path, ours=True) if os.path.lexists(path) else _make(path), path


def new() -> str:
    """A fresh secret: 43 characters that hold 256 random bits."""
    return secrets.token_urlsafe(32)


def on_this_machine(url: Url) -> bool:
    """Whether an address stays on this machine: loopback, a Unix socket, a file, memory."""
    if url.scheme in _LOCAL or url.scheme.endswith("+unix"):
        return True
    return all(_loopback(host) for host, _ in url.hosts)  # no host at all: the provider's default, 127.0.0.1


def _loopback(host: str) -> bool:
    if host.lower() in ("localhost", "localhost.", "ip6-localhost"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def own_file() -> str:
    """The path of this user's own secret."""
    folder = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(folder, "revolve", "secret")


def _read(path: str, *, ours: bool) -> list[str | bytes]:
    """The secrets in a file, one a line; what starts with # is a comment."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_NOFOLLOW if ours else 0))
    except OSError as error:
        raise UsageError(
            f"the secret file {path} cannot be read: {error.strerror}; set REVOLVE_SECRET instead"
        ) from None
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) and ours:
            raise UsageError(f"the secret file {path} is no regular file: remove it")
        # Where an orchestrator mounts secrets they belong to root and a group may read them: only ours must be strict.
        if found.st_mode & (0o077 if ours else 0o007) and stat.S_ISREG(found.st_mode):
            raise UsageError(f"the secret file {path} can be read by others: chmod 600 {path}")
        if ours and found.st_uid != os.geteuid():
            raise UsageError(f"the secret file {path} belongs to another user: remove it, or set REVOLVE_SECRET")
        lines = file.read(MAX_FILE).decode("utf-8", "surrogateescape").splitlines()
    kept: list[str | bytes] = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not kept:
        raise UsageError(f"the secret file {path} holds no secret: put one line of `revolve secret new` there")
    return kept


def _make(path: str) -> list[str | bytes]:
    """Write this user's file; of two processes that do so at once, one wins and both read its secret."""
    folder = os.path.dirname(path)
    draft = f"{path}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with open(handle, "w") as file:
                file.write(f"# signs what revolve-assistant sends over carriers on this machine\n{new()}\n")
                file.flush()
                os.fsync(handle)
            try:
                os.link(draft, path)
            except FileExistsError:
                pass
        finally:
            os.unlink(draft)
    except OSError as error:
        raise UsageError(
            f"the secret file {path} cannot be made: {error.strerror}; set REVOLVE_SECRET (`revolve secret new`)"
        ) from None
    return _read(path, ours=True)
