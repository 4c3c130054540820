"""gearmand as a Queue and as a Messenger: several servers, no other program. See docs/providers/gearman.md."""

from .messenger import Messenger
from .parked import Buried
from .queue import Queue

__all__ = ["Buried", "Messenger", "Queue"]
