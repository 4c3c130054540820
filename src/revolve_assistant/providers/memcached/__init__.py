"""memcached as a Messenger: ordered, loss-detecting logs for any number of writers. It needs no library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .messenger import Messenger

if TYPE_CHECKING:
    from ..url import Url

__all__ = ["Messenger", "excused"]


def excused(url: Url) -> dict[str, str]:
    """Checks of the conformance kit that do not apply to this address, with the reason."""
    from .doctor import excused

    return excused(url)
