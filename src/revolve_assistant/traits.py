"""What a provider can and cannot do, declared once on its class; read by run time, tests and docs alike."""

from __future__ import annotations

import msgspec


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """Capabilities of a Messenger, Engine or Queue. What is False raises `Unsupported` when asked for."""

    summary: str = ""
    """One line for the table of providers."""

    # of a Messenger
    replays: bool = False
    """Reading from the start again gives the same messages until they are forgotten."""
    fanout: bool = False
    """Several readers of one channel each get every message."""
    waits: bool = False
    """`read` sleeps until something comes (False: it is polled)."""
    keeps: bool = False
    """Survives a restart of the carrier, as far as the carrier is configured to."""
    max_bytes: int = 1 << 20
    """Largest frame in bytes."""
    max_wait: float = 60.0
    """Longest useful `wait` in seconds."""

    # of an Engine or Queue
    live: bool = False
    """Runs the callable object itself, in or forked from this process; nothing is pickled."""
    durable: bool = False
    """Tasks survive the caller, and the carrier as far as it is configured to."""
    cancels: bool = False
    """`cancel` can stop a task that runs (not only one that waits)."""
    kills: bool = False
    """A running callable can be stopped against its will."""
    delays: bool = False
    """Holds a task back until its delay is over."""
    priorities: bool = False
    """Takes higher priorities first."""
    manages: bool = False
    """Can be looked into and steered: counts, buried tasks, rules for a function, plans, who takes."""
    buries: bool = False
    """Tasks that came to a bad end are kept, listed, taken out and counted. With `manages` that and more."""
    finds: bool = True
    """`state` and `cancel` know every task; False: those that were submitted through the same object."""
    local: bool = False
    """Runs in or under this process, and reports to the sink."""
    foreign: bool = False
    """Other programs' functions can be called (`call`), and ours be called by them (`expose`, `answer`)."""
    serves: bool = False
    """Jobs of other programs can be taken (`expose`, `answer`), though nobody hears what becomes of them. With
    `foreign` somebody does."""
    messenger: str | None = None
    """URL of the messenger that goes with it by nature; None: `messenger=` must be given (or it is local)."""
