"""IronMQ v3 as a Queue and as a Messenger. See docs/providers/ironmq.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

REQUIRES = "ironmq"

from .messenger import Messenger  # noqa: E402 - they import httpx, and an error names what REQUIRES says
from .queue import Queue  # noqa: E402

if TYPE_CHECKING:
    from ..diagnosis import Finding
    from ..url import Url

__all__ = ["Messenger", "Queue", "clear", "diagnose"]


def diagnose(url: Url) -> list[Finding]:
    """See `providers.diagnosis`."""
    from .doctor import diagnose

    return diagnose(url)


def clear(url: Url) -> None:
    """Take away every queue of this address's namespace. For namespaces that were lent."""
    from .doctor import clear

    clear(url)
