"""beanstalkd as a Queue and as a Messenger: several servers, no other program. See docs/providers/beanstalkd.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .messenger import Messenger
from .queue import Queue

if TYPE_CHECKING:
    from ..diagnosis import Finding
    from ..url import Url

__all__ = ["Messenger", "Queue", "diagnose", "excused"]


def diagnose(url: Url) -> list[Finding]:
    """See `providers.diagnosis`."""
    from .doctor import diagnose

    return diagnose(url)


def excused(url: Url) -> dict[str, str]:
    """Checks of the conformance kit that do not apply to this address, with the reason."""
    from .doctor import excused

    return excused(url)
