"""The reference Messenger and Queue, inside one process: what the contracts mean, in the fewest lines."""

from .messenger import Messenger
from .queue import Buried, Queue

__all__ = ["Buried", "Messenger", "Queue"]
