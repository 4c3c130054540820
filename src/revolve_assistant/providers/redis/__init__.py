"""Redis and Valkey, 6.2 or later."""

REQUIRES = "redis"

from .queue import Queue  # noqa: E402

__all__ = ["Queue"]
