"""A fork of this process for each task: what the callable needs is there already, nothing is pickled on the way in."""

from __future__ import annotations

from typing import Any

from ..pool.fork import ForkSupervisor
from .url import Url


class Engine(ForkSupervisor):
    """`fork://`, `fork://?other_threads=allow`: see `ForkSupervisor`."""

    @classmethod
    def from_url(cls, url: Url, **options: Any) -> Engine:
        url.only("other_threads")
        options.setdefault("other_threads", url.text("other_threads", "refuse", choices=("refuse", "allow")))
        return cls(**options)
