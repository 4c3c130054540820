"""`revolve report ID -- command …`: a command's output, progress, exit code and death, for whoever watches the id.

command ── stdout ──▶ ┐ ──▶ our stdout, as it came          client.attach(id), revolve watch id
        ── stderr ──▶ ┤ ──▶ our stderr
                      └ output, error_output, progress ══▶  the end: its exit code, or what killed it
        ◀── SIGTERM, then SIGKILL ─────────────────────◀══  cancel
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from .emit import add_flags
from .flags import Command, seconds

GRACE = 10.0  # seconds from SIGTERM to SIGKILL
EPILOG = """\
  0 3 * * *  revolve report backup-$(date +\\%F) -- /usr/local/bin/backup --all          (a line of a crontab)

The command's output goes where it went before, and to whoever watches `client.attach(ID)` or `revolve watch ID`; so do
percentages and counts that it begins a line with, or draws over (`25%`, `[2/8]`), as progress. Signals are passed on. A
cancel is SIGTERM, and SIGKILL after --grace. In the command's environment REVOLVE_ID is the ID, for `revolve emit`.

exit codes: the command's, 128 + signal if one killed it, 126 or 127 if it cannot be run, 2 the call was wrong. A
messenger that does not answer changes nothing but costs one warning, and up to 5 s at the end."""


def main(argv: list[str]) -> int:
    """Run the command to its end; its exit code."""
    command = Command("report", "Run a command and report it under an id: output, progress, exit code, death.",
                      usage="revolve report [flags] ID -- command [argument …]", epilog=EPILOG)  # fmt: skip
    command.add_argument("id", metavar="ID", help="what it is watched by")
    command.add_argument("words", metavar="command", nargs="*", help="what to run")
    command.flag("--name", metavar="WHAT", help="what it is called (default: the command's name)")
    command.flag("--no-progress", action="store_true", help="look for no progress in the output")
    command.flag("--grace", metavar="S", type=seconds, default=GRACE,
                 help=f"seconds that a cancelled command has to end (default: {GRACE:g})")  # fmt: skip
    add_flags(command)
    found = command.read(argv)
    words = [*found.words, *found.tail]
    if not words:
        command.error("say what to run: revolve report ID -- command …")
    from ..errors import TaskCancelled
    from ..running.reporting import reporting
    from .report_command import Reported, Stopped

    block = reporting(
        found.id,
        messenger=found.messenger,
        namespace=found.namespace,
        name=found.name or os.path.basename(words[0]),
        history=found.history,
    )
    _warnings()
    environment = os.environ | {"REVOLVE_ID": found.id}
    if found.messenger is not None:
        environment["REVOLVE_MESSENGER"] = found.messenger
    code = 0
    try:
        with block as running:
            reported = Reported(running, words, environment, found.grace, not found.no_progress)
            code = reported.run()
            if reported.stopped_by:
                raise Stopped(reported.stopped_by)
            if code:
                raise reported.error(code)
            running.result = code
    except (subprocess.CalledProcessError, TaskCancelled):
        pass
    except OSError as error:
        print(f"revolve report: {words[0]}: {error.strerror or error}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
    return code if code >= 0 else 128 - code


def _warnings() -> None:
    """What the library warns of is a line as any other of this command."""
    import logging

    handler: Any = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("revolve report: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger("revolve_assistant").addHandler(handler)
