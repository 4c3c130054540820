"""Redis and Valkey, 6.2 or later."""

REQUIRES = "redis"

from .messenger import Messenger  # noqa: E402
from .queue import Queue  # noqa: E402

__all__ = ["Messenger", "Queue"]
