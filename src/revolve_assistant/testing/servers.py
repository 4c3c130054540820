"""Real servers for tests: each on a free port of this machine, with a temporary folder of its own.

    with Gearmand() as server:
        connect(server.host, server.port)
        server.kill()               # SIGKILL, as a crash
        server.start()              # again, on the same port

The port stays the same for the life of the object. `start` returns once the server accepts connections.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from typing import ClassVar, TypeVar

from ..errors import ProviderMissing, Unreachable, UsageError

Self = TypeVar("Self", bound="Server")

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])  # servers live in sbin
_PAUSE = 0.01  # seconds between attempts to connect


class Server:
    """A server program under test. A subclass says `program`, `package` and how it is started (`command`)."""

    program: ClassVar[str]
    package: ClassVar[str]  # the Debian package that brings the program

    def __init__(self, *args: str, timeout: float = 20.0) -> None:
        """`args` go to the program as they are, `timeout` (seconds) bounds `start` and `stop`. Nothing is started.

        Raises `ProviderMissing` when the program is not installed.
        """
        path = shutil.which(self.program, path=_PATH)
        if path is None:
            raise ProviderMissing(f"{self.program} is not installed; on Debian: apt-get install {self.package}")
        self.path = path
        self.args = args
        self.timeout = timeout
        self.host = "127.0.0.1"
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix=f"{self.program}-")
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The command line, without `args`: in the foreground, on `host` and `port`, files only in `folder`."""
        raise NotImplementedError

    def __enter__(self: Self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it, or start it again on the same port; wait until it accepts. Raises `Unreachable` with its log."""
        if self.process is not None:
            raise UsageError(f"{self.program} runs already, as process {self.process.pid}; stop or kill it first")
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [*self.command(), *self.args], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )
        deadline = time.monotonic() + self.timeout
        pause = threading.Event()
        while True:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1.0):
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                code = self.process.poll()
                self.kill()
                state = "does not answer" if code is None else f"ended at once with exit code {code}"
                raise Unreachable(f"{self.program} on {self.host}:{self.port} {state}; its log:\n{self.log()}")
            pause.wait(_PAUSE)

    def stop(self) -> None:
        """End it as its operator would (SIGTERM), with SIGKILL after `timeout`; wait for its end. Idempotent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would (SIGKILL); wait for its end. Idempotent."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """`kill`, then `start` on the same port."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Stop it from doing anything (SIGSTOP): connections stay open and nobody answers."""
        process = self._signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # until all of its threads stand still

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """`kill`, and remove the folder. Idempotent."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port

    @property
    def log_path(self) -> str:
        return os.path.join(self.folder, "log")

    def log(self) -> str:
        """What the server has printed so far."""
        with contextlib.suppress(OSError), open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()
        return ""

    def _signal(self, number: int) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise UsageError(f"{self.program} does not run; start it first")
        self.process.send_signal(number)
        return self.process

    def _end(self, number: int) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # a frozen one hears nothing else
        try:
            process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Gearmand(Server):
    """gearmand, which keeps its queue in memory unless `args` say otherwise (`--queue-type=libsqlite3`, …)."""

    program = "gearmand"
    package = "gearman-job-server"

    def command(self) -> list[str]:
        return [
            self.path,
            f"--listen={self.host}",
            f"--port={self.port}",
            "--log-file=stderr",
            f"--pid-file={self.folder}/pid",
            "--threads=1",
            "--config-file=/dev/null",
        ]


class Memcached(Server):
    """memcached, 64 MB of memory unless `args` say otherwise (`-m 1024`, `-M`, `-I 2m`, …)."""

    program = "memcached"
    package = "memcached"

    def command(self) -> list[str]:
        # It refuses to run as root unless told to; elsewhere -u is passed over.
        return [self.path, "-U", "0", "-l", self.host, "-p", str(self.port), "-u", "root", "-t", "2"]


class Beanstalkd(Server):
    """beanstalkd, which keeps its jobs in memory; with `stored` in a log in its folder, which outlives `restart`.

    `args` go to it as they are (`-z 1000000`, …).
    """

    program = "beanstalkd"
    package = "beanstalkd"

    def __init__(self, *args: str, stored: bool = False, timeout: float = 20.0) -> None:
        super().__init__(*args, timeout=timeout)
        self.stored = stored

    def command(self) -> list[str]:
        words = [self.path, "-l", self.host, "-p", str(self.port)]
        return [*words, "-b", self.folder] if self.stored else words

    def drain(self) -> None:
        """Have it take no more jobs until it is started anew (SIGUSR1)."""
        self._signal(signal.SIGUSR1)

    @property
    def url(self) -> str:
        """Its address: `beanstalkd://127.0.0.1:port`."""
        return f"beanstalkd://{self.host}:{self.port}"


class Redis(Server):
    """redis-server, which saves nothing unless `args` say so (`--appendonly yes`, `--save 60 1`, …).

    Its folder, and so what it saved, is kept over `restart`. `Redis(replica_of=primary)` makes a replica.
    """

    program = "redis-server"
    package = "redis-server"

    def __init__(self, *args: str, replica_of: Server | None = None, timeout: float = 20.0) -> None:
        """As `Server`; `replica_of` is a server that runs when this one is started."""
        if replica_of is not None:
            args = ("--replicaof", f"{replica_of.host} {replica_of.port}", *args)
        super().__init__(*args, timeout=timeout)

    def command(self) -> list[str]:
        words = f"--bind {self.host} --port {self.port} --daemonize no --dir {self.folder} --save"
        return [self.path, *words.split(), "", "--repl-diskless-sync-delay", "0"]

    def start(self) -> None:
        """As `Server.start`; it has also loaded what it had saved, and a replica has its primary's data."""
        super().start()
        self.ask("INFO", until=lambda text: "loading:0" in text and "master_link_status:down" not in text)

    def ask(self, *words: str, until: Callable[[str], object] = lambda text: True) -> str:
        """What it answers to a command, as raw text, asked again until it is as wanted. Raises `Unreachable`."""
        deadline = time.monotonic() + self.timeout
        pause = threading.Event()
        request = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        text = ""
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(self.address, timeout=1.0) as link:
                link.sendall(request.encode())
                link.sendall(b"*1\r\n$4\r\nQUIT\r\n")
                with link.makefile("rb") as file:
                    text = file.read().decode(errors="replace").removesuffix("+OK\r\n")
                if text.startswith("-NOAUTH") or until(text):
                    return text
            pause.wait(_PAUSE)
        raise Unreachable(f"{self.program} on {self.host}:{self.port} does not get ready; it says:\n{text}{self.log()}")

    @property
    def url(self) -> str:
        """Its address: `redis://127.0.0.1:port`."""
        return f"redis://{self.host}:{self.port}"


class Sentinel(Redis):
    """A sentinel that alone decides, after half a second, that `primary` is down; it calls the service `tasks`."""

    def __init__(self, primary: Redis) -> None:
        super().__init__()
        with open(f"{self.folder}/sentinel.conf", "w", encoding="utf-8") as file:
            file.write(
                f"bind {self.host}\nport {self.port}\ndir {self.folder}\n"
                f"sentinel monitor tasks {primary.host} {primary.port} 1\n"
                "sentinel down-after-milliseconds tasks 500\nsentinel failover-timeout tasks 3000\n"
            )

    def command(self) -> list[str]:
        return [self.path, f"{self.folder}/sentinel.conf", "--sentinel"]

    def start(self) -> None:
        Server.start(self)

    def knows(self, replica: Redis) -> None:
        """Wait until it does. Raises `Unreachable`."""
        deadline = time.monotonic() + self.timeout
        pause = threading.Event()
        while time.monotonic() < deadline:  # it has no QUIT, so `ask` would wait for its end
            with contextlib.suppress(OSError), socket.create_connection(self.address, timeout=1.0) as link:
                link.sendall(b"SENTINEL replicas tasks\r\n")
                if str(replica.port).encode() in link.recv(1 << 16):
                    return
            pause.wait(_PAUSE)
        raise Unreachable(f"the sentinel on {self.host}:{self.port} does not get to know {replica.url}:\n{self.log()}")

    @property
    def url(self) -> str:
        return f"redis+sentinel://{self.host}:{self.port}/tasks/0"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
