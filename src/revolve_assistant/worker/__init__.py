"""The side that serves a queue: takes tasks, has them run by a local engine, reports, settles.

Queue ══take══▶ Admission ──▶ local engine (children) ──reports──▶ Held ──▶ Speaker ══write══▶ Messenger
  ▲                                                                              │
  └──────────────────────────────── settle, once the end is stored ◀─────────────┘
Messenger ══read══▶ Control: cancel, send, stack, "have you still got it?"
"""

from __future__ import annotations

from .lifecycle import WorkerEvent
from .worker import Worker

__all__ = ["Worker", "WorkerEvent"]
