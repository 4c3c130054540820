"""What stands between a client and its engine: submitting with options, and handing reports to whom they concern."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from .options import PLAIN, Options, merge, options_of

if TYPE_CHECKING:
    from datetime import timedelta, tzinfo

    from .client import Client
    from .task import Task

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("revolve_assistant")


class Sink:
    """Hands each report to the object that the parcel belongs to."""

    def deliver(self, reports: Sequence[Any]) -> None:
        for report in reports:
            owner = report[0].owner
            if owner is not None:
                try:
                    owner.take(report)
                except Exception:
                    log.exception("a report could not be taken")


sink = Sink()


class Submitter:
    """`client.options(…)`: submits with these options. Cheap, reusable, thread-safe."""

    def __init__(self, client: Client, changes: dict[str, Any]) -> None:
        self._client = client
        self._changes = changes
        self._options = merge(PLAIN, **changes)

    def options(self, **changes: Any) -> Submitter:
        """The same with further changes."""
        return Submitter(self._client, {**self._changes, **changes})

    def _merged(self, fn: Callable[..., Any]) -> Options:
        declared = options_of(fn)
        return self._options if declared is None else merge(declared, **self._changes)

    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]: ...
    @overload
    def submit(self, fn: str, /, *args: Any, **kwargs: Any) -> Task[bytes]: ...
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Task[Any]:
        """As `Client.submit`."""
        return self._client._submit(self._merged(fn), fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        show: bool = False,
        errors: str = "raise",
    ) -> Generator[T, None, None]:
        """As `Client.map`."""
        from .mapping import run_map

        return run_map(self._client, self._merged(fn), fn, iterables, timeout, chunksize, show, errors)

    def schedule(
        self,
        fn: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        every: float | timedelta | None = None,
        cron: str | None = None,
        tz: str | tzinfo | None = None,
        key: str | None = None,
    ) -> str:
        """As `Client.schedule`; the options hold for each task."""
        from .scheduling import schedule

        return schedule(self._client, self._merged(fn), fn, args, kwargs, every, cron, tz, key)
