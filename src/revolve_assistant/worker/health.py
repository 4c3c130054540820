"""Tells an orchestrator how a worker is: by HTTP on a port, or by a file.

    GET /live    200 while the worker's threads live and the local engine can run tasks; 503 otherwise
    GET /ready   200 while the queue and the messenger answer; 503 before that, when one is away, and when draining

The file holds `ready`, `live` or `draining` in its first line and is rewritten every 5 seconds, so that its age says
whether the worker lives; it is removed at the end.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..pool.threads import OurThread
from .port import Port

if TYPE_CHECKING:
    from .worker import Worker

EVERY = 5.0  # seconds between two writes of the file
SOON = 0.5  # the same, until it is ready

Find = Callable[[], dict[str, Any]]
"""What there is to say, with at least `state`, `live` and `ready`."""


def health(worker: Worker) -> dict[str, Any]:
    """What there is to say, as plain data."""
    return {
        "worker": worker.name,
        "state": worker.state,
        "live": worker.live_threads(),
        "ready": worker.state == "running" and worker.taker.connected and not worker.speaker.away_since,
        "running": len(worker.taker.held),
        "taken": worker.taker.taken,
        "settled": worker.taker.settled,
        "refused": worker.admission.refused + worker.control.refused,
    }


class HealthPort(Port):
    """Serves `/live` and `/ready` on a port. Raises `UsageError` if it cannot be bound."""

    def __init__(self, find: Find, host: str, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = find()
                name = self.path.partition("?")[0].strip("/") or "ready"
                if name not in ("live", "ready"):
                    self.send_error(404)
                    return
                body = json.dumps(found).encode() + b"\n"
                self.send_response(200 if found[name] else 503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__("health", host, port, Handler)


class HealthFile:
    """Rewrites a file every 5 seconds. Raises `UsageError` if it cannot be written."""

    def __init__(self, find: Find, path: str) -> None:
        self._find = find
        self._ready = False
        self._path = os.path.abspath(path)
        self._over = threading.Event()
        try:
            self._write()
        except OSError as error:
            raise UsageError(f"the health file {path} cannot be written: {error}") from None
        self._thread = OurThread(self._run, "revolve-health")
        self._thread.start()

    def _write(self) -> None:
        found = self._find()
        self._ready = bool(found["ready"])
        word = "draining" if found["state"] == "draining" else "ready" if found["ready"] else "live"
        draft = f"{self._path}.{os.getpid()}"
        with open(draft, "w", encoding="utf-8") as file:
            file.write(f"{word}\n{json.dumps(found)}\n")
        os.replace(draft, self._path)

    def _run(self) -> None:
        while not self._over.wait(EVERY if self._ready else SOON):
            try:
                if self._find()["live"]:
                    self._write()
            except OSError:
                pass  # its age says so

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        try:
            os.unlink(self._path)
        except OSError:
            pass
