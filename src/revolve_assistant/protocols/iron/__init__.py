"""Iron.io's HTTP interfaces: IronMQ v3 and IronWorker v2.

    settings   token, project and host, as the official clients find them
    mq, tasks  requests as data, and what their answers say: no I/O
    answers    what an error answer means
    caller     sends requests with httpx: time limits, keep-alive, repeated where that helps

What is known of the service is in `limits` and docs/providers/ironmq.md. Importing this package imports no httpx.
"""

from __future__ import annotations

from .answers import Denied, Missing
from .settings import Settings, Token, read

__all__ = ["Denied", "Missing", "Settings", "Token", "read"]
