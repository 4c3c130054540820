"""Which engine a client gets: from a URL, an engine object, an executor, the environment, or worker processes."""

from __future__ import annotations

import concurrent.futures
import os
from typing import Any

from ..errors import Unsupported, UsageError


def choose_engine(
    url: Any,
    messenger: Any,
    max_workers: int | None,
    namespace: str,
    secret: Any,
    initializer: Any,
    initargs: tuple[Any, ...],
    options: dict[str, Any],
) -> Any:
    """The engine, not opened. Raises `UsageError`, `UnknownProvider`, `ProviderMissing`, `Unsupported`."""
    driven = bool(options.pop("_driven", False))
    if url is None:
        url = os.environ.get("REVOLVE_URL") or "process://"
    if not isinstance(url, concurrent.futures.Executor) and url != "process://":
        from ..providers.carriers import choose, is_elsewhere

        if is_elsewhere(url):
            from .remote import Remote

            if max_workers is not None or initializer is not None:
                raise UsageError(
                    "what runs these tasks is started elsewhere (revolve worker): leave max_workers and initializer out"
                )
            pending = {"max_pending": options.pop("max_pending")} if "max_pending" in options else {}
            return Remote(choose(url, messenger, secret, namespace, **options), driven=driven, **pending)
    engine = _local(url, max_workers, initializer, initargs, options)
    if messenger is None and not driven:
        return engine
    if not engine.traits.local:
        raise Unsupported(f"{url!r} is neither a queue nor an engine of this machine: it takes no messenger")
    from .embedded import Embedded

    return Embedded(engine, messenger, secret, namespace, driven=driven)


def _local(
    url: Any, max_workers: int | None, initializer: Any, initargs: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    if isinstance(url, concurrent.futures.Executor):
        if max_workers is not None or initializer is not None:
            raise UsageError("an executor brings its own workers: leave max_workers and initializer out")
        from ..providers.executor import Engine as ExecutorEngine

        return ExecutorEngine(url, **options)
    if not isinstance(url, str):
        if max_workers is not None or initializer is not None or options:
            raise UsageError("an engine object brings its own settings: leave max_workers, initializer and options out")
        return url
    if max_workers is not None:
        options = {**options, "max_workers": max_workers}
    return local_engine(url, initializer, initargs, options)


def local_engine(url: str, initializer: Any, initargs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The local engine of a name or URL, not opened: also what runs a Worker's tasks. Raises as `registry.engine`."""
    from ..providers import registry

    if initializer is not None:
        options = {**options, "initializer": initializer, "initargs": initargs}
    return registry.engine(url if "://" in url else f"{url}://", **options)
