"""What the library warns of, as a line of news: written to the terminal it would spoil the screen."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator


class _Told(logging.Handler):
    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


@contextlib.contextmanager
def heard_as_news(say: Callable[[str], object]) -> Iterator[None]:
    """Hand the library's warnings to `say`, and to nobody else, while the block lasts."""
    logger = logging.getLogger("revolve_assistant")
    told = _Told(say)
    handlers, propagates = logger.handlers[:], logger.propagate
    logger.handlers[:], logger.propagate = [told], False
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = handlers, propagates
