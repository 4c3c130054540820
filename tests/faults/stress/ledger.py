"""What the tasks of the stress run do: note that they ran, then say two things and return what can be checked."""

from __future__ import annotations

import os

from revolve_assistant import emit

LEDGER = os.environ.get("STRESS_LEDGER", "")


def double(number: int) -> int:
    """One line in the ledger for each time that it ran."""
    file = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, b"%d\n" % number)
    finally:
        os.close(file)
    emit("half", number)
    emit("whole", number)
    return number * 2
