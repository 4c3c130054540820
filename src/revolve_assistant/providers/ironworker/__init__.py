"""IronWorker v2 as an Engine: tasks run in the vendor's containers. See docs/providers/ironworker.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

REQUIRES = "ironworker"

from .engine import Engine  # noqa: E402 - it imports httpx, and an error names what REQUIRES says

if TYPE_CHECKING:
    from ..diagnosis import Finding
    from ..url import Url

__all__ = ["Engine", "diagnose"]


def diagnose(url: Url) -> list[Finding]:
    """See `providers.diagnosis`."""
    from .doctor import diagnose

    return diagnose(url)
