"""The reference Messenger and Queue, inside one process: what the contracts mean, in the fewest lines."""

from ...engine import Buried
from .messenger import Messenger
from .queue import Queue

__all__ = ["Buried", "Messenger", "Queue"]
