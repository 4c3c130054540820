"""memcached as a Messenger: ordered, loss-detecting logs for any number of writers. It needs no library."""

from .messenger import Messenger

__all__ = ["Messenger"]
