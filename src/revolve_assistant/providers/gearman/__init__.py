"""gearmand as a Queue and as a Messenger: several servers, no other program. See docs/providers/gearman.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...engine import Buried
from .messenger import Messenger
from .queue import Queue

if TYPE_CHECKING:
    from ..diagnosis import Finding
    from ..url import Url

__all__ = ["Buried", "Messenger", "Queue", "clear", "diagnose", "excused"]


def diagnose(url: Url) -> list[Finding]:
    """See `providers.diagnosis`."""
    from .doctor import diagnose

    return diagnose(url)


def excused(url: Url) -> dict[str, str]:
    """Checks of the conformance kit that do not apply to this address, with the reason."""
    from .doctor import excused

    return excused(url)


def clear(url: Url) -> None:
    """Take away every job of this address's namespace: tasks, buried ones, messages. For namespaces that were lent."""
    from .sweeping import clear

    clear(url)
