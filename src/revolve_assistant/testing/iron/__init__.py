"""A stand-in for IronMQ v3 and IronWorker v2 on this machine, for tests: Iron.io has no server to be had offline.

    with IronServer() as iron:
        client = Client(iron.url("shop"))            # or the official clients, with **iron.settings()
        iron.fail(503, times=2)                      # the next two requests
        iron.code("thumbs", ["revolve", "ironworker"], env={...})    # what IronWorker would run as an image

It is built from Iron.io's public documentation, and checked with the official clients in this project's own tests. It
was never compared with the service itself. Loopback only; nothing but the standard library.
"""

from __future__ import annotations

from .clock import Clock, VirtualClock
from .server import IronServer, Seen

__all__ = ["Clock", "IronServer", "Seen", "VirtualClock"]
