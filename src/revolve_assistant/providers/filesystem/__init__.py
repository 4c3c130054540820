"""Ordered logs in a directory, over a network file system too."""

from .messenger import Messenger

__all__ = ["Messenger"]
