"""Which engine a client gets: from a URL, an engine object, an executor, the environment, or worker processes."""

from __future__ import annotations

import concurrent.futures
import os
from typing import Any

from ..errors import UsageError


def choose_engine(
    url: Any, max_workers: int | None, initializer: Any, initargs: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """The engine, not opened. Raises `UsageError`, `UnknownProvider`, `ProviderMissing`."""
    if url is None:
        url = os.environ.get("REVOLVE_URL") or "process://"
    if isinstance(url, concurrent.futures.Executor):
        if max_workers is not None or initializer is not None:
            raise UsageError("an executor brings its own workers: leave max_workers and initializer out")
        from ..providers.executor import Engine as ExecutorEngine

        return ExecutorEngine(url, **options)
    if not isinstance(url, str):
        if max_workers is not None or initializer is not None or options:
            raise UsageError("an engine object brings its own settings: leave max_workers, initializer and options out")
        return url
    from ..providers import registry

    if max_workers is not None:
        options = {**options, "max_workers": max_workers}
    if initializer is not None:
        options = {**options, "initializer": initializer, "initargs": initargs}
    return registry.engine(url, **options)
