"""The command `revolve`: one module a command, imported when it is called.

A command `name` is the module `cli/name.py` with a `main(argv: list[str]) -> int`, and one line in `COMMANDS`.
`revolve --help` imports none of them.
"""

from __future__ import annotations

import os
import sys

COMMANDS = {
    "run": "run a function once for each item, in parallel, with live progress",
    "demo": "see it work: real work in child processes, in under 15 seconds, no server",
    "worker": "take tasks from a queue and run them here",
    "ironworker": "run the task of an IronWorker container, as the command of its image",
    "report": "run a command and report it: output, progress, exit code, death",
    "emit": "say an event of a shell script, a cron job, any program",
    "doctor": "say what is wrong with an address, and what to do about it",
    "secret": "make a secret to sign with, or show the fingerprint of the one in use",
    "watch": "watch tasks of any process live",
    "send": "send a message to a running task, or answer its question",
    "cancel": "stop tasks, or take them out of the queue",
    "stack": "show where a running task is, line by line",
    "top": "show what a queue holds, who takes from it, what runs",
    "web": "show all tasks, workers and queues in the browser, live",
    "dead": "list tasks that came to a bad end",
    "retry": "run such a task again",
    "purge": "remove what waits in a queue, or what is buried there",
    "pause": "have no worker take tasks of a function",
    "resume": "have workers take them again",
    "limit": "limit how many tasks of a function run or start on all workers",
    "schedule": "list what workers run again and again, or remove one of it",
}
"""Name -> what it is for, in the order in which people meet them."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (the work failed), 2 (the call was wrong), 128 + signal."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] == "help":
        words = [*words[1:2], "--help"]
    if not words:
        print(_overview(), file=sys.stderr)
        return 2
    name = words[0]
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name in ("-V", "--version"):
        from .. import __version__

        print(f"revolve {__version__}")
        return 0
    if name not in COMMANDS:
        return _unknown(name)
    return _call(name, words[1:])


def _call(name: str, argv: list[str]) -> int:
    from importlib import import_module

    module = import_module(f".{name}", __name__)
    try:
        code: int = module.main(argv)
        return code
    except KeyboardInterrupt as stop:  # with the signal's number, where it stands for another one
        return 128 + (stop.args[0] if stop.args else 2)
    except BrokenPipeError:  # `| head`: end as quietly as a program that SIGPIPE ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the interpreter still flushes goes nowhere
        return 128 + 13
    except Exception as error:
        from ..errors import AssistantError, UsageError

        if not isinstance(error, AssistantError):
            raise
        print(f"revolve {name}: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _unknown(name: str) -> int:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, 1, 0.5)
    what = "flag" if name.startswith("-") else "command"
    hint = f"did you mean `revolve {near[0]}`?" if near else f"there are: {', '.join(COMMANDS)}"
    print(f"revolve: no {what} {name!r}; {hint}", file=sys.stderr)
    return 2


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:<{width}}{summary}" for name, summary in COMMANDS.items())
    return f"""\
usage: revolve COMMAND [flags] …

Run a Python callable anywhere and hear from it while it runs.

{commands}

`revolve COMMAND --help` explains one. Each flag has an environment variable: --timeout of `revolve run`
is REVOLVE_RUN_TIMEOUT. `revolve --version` prints the version."""
