"""gearmand as a Queue and as a Messenger: several servers, no other program. See docs/providers/gearman.md."""

from .queue import Queue

__all__ = ["Queue"]
