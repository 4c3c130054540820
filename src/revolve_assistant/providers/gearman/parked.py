"""Looking at buried tasks: they are taken, read, and given back by closing the connection."""

from __future__ import annotations

import time

from ...engine import Buried
from ...errors import ProviderError
from ...protocols.gearman import GearmanAdmin
from ...protocols.gearman.worker_state import Assignment
from ..lines import Lines
from .address import MAX_BODY, Place
from .taking import Taking
from .wrapping import unwrap

_BATCH = 100  # jobs taken at once


def buried(place: Place) -> list[Buried]:
    """The buried tasks on every server that answers, in no order: gearmand puts what is given back last and backwards.

    It counts each look as the death of a worker, which matters only where it has `--job-retries`.
    """
    found = []
    for address in place.servers:
        lines = Lines([address], place.timeout)
        taking = Taking(lines, "look", MAX_BODY)
        jobs: list[Assignment] = []
        try:
            with GearmanAdmin(address, timeout=place.timeout) as admin:
                names = [name.encode("utf-8", "surrogateescape") for name in admin.status()]
            taking.functions([name for name in names if name.startswith(place.names.parked)])
            if not taking.current:
                continue
            lines.want(taking.role)
            while lines.undecided("look"):
                lines.pump(time.monotonic() + 0.5)
            while lines.lines("look"):
                busy = taking.ask(_BATCH)
                jobs += taking.arrived
                taking.arrived = []
                if not busy:
                    break
                lines.pump(time.monotonic() + 0.25)
        except ProviderError:
            continue
        finally:
            lines.close()
        for job in jobs:
            task = unwrap(job.unique, "", job.workload)
            if not task.void:
                found.append(Buried(task.id, task.body, task.queue, task.deliveries, task.reason))
    return found
