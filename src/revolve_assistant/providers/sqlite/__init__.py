"""SQLite as a Queue and as a Messenger: durable with no server. See docs/providers/sqlite.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .messenger import Messenger
from .queue import Queue

if TYPE_CHECKING:
    from ..diagnosis import Finding
    from ..url import Url

__all__ = ["Messenger", "Queue", "diagnose"]


def diagnose(url: Url) -> list[Finding]:
    """See `providers.diagnosis`."""
    from .doctor import diagnose

    return diagnose(url)
