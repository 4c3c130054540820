"""`revolve ironworker`: the command of an image at IronWorker: runs the task of PAYLOAD_FILE, reports, ends."""

from __future__ import annotations

import logging
import os
import sys

from .flags import Command, seconds

EPILOG = """\
IronWorker names the files by PAYLOAD_FILE, CONFIG_FILE and TASK_ID. The secret comes from REVOLVE_SECRET or
REVOLVE_SECRET_FILE, or from the configuration of the code package: {"revolve": {"messenger": "…", "secret": "…"}}.

Exit code 0: the task succeeded or was cancelled; 1: it failed; 2: a wrong call, or a payload that is not ours;
75: it was not ended here. docs/providers/ironworker.md says how to build and upload the image."""


def main(argv: list[str]) -> int:
    """Run the task of this container. Exit codes as above."""
    from ..errors import ProtocolError

    words, files = _old_way(argv)
    command = Command("ironworker", "Run the task of an IronWorker container, and report what it says.", epilog=EPILOG)
    command.flag("--messenger", metavar="URL", help="what carries events (default: REVOLVE_MESSENGER, else ironmq://)")
    command.flag("--setup", metavar="MODULE:FUNCTION", help="called once in the child before the task")
    command.flag("--grace", type=seconds, default=8.0, metavar="SECONDS", help="for the task after a signal")
    command.flag("--log-level", default="info", choices=("debug", "info", "warning", "error"), help="of stderr")
    found = command.read(words)
    logging.basicConfig(
        level=found.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it: the application's modules are here
    from ..providers.registry import find

    find("ironworker")  # names what to install
    from ..providers.ironworker.container import run

    try:
        return run(files, messenger=found.messenger, setup=found.setup, grace=found.grace)
    except ProtocolError as error:
        print(f"revolve ironworker: {error}", file=sys.stderr)
        return 2


def _old_way(argv: list[str]) -> tuple[list[str], list[str]]:
    """IronWorker's own words (`-payload FILE`), which older images get, apart from ours."""
    words: list[str] = []
    files: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("-payload", "-config", "-id", "-d") and rest:
            files += [word, rest.pop(0)]
        else:
            words.append(word)
    return words, files
