"""The stand-in for Iron.io as a program: its threads are not ours then, among which the fork engine would not fork.

    python iron.py '{"CODE": "URL of the messenger that its containers report to, or null for IronMQ", …}'

Prints a line of JSON with its addresses, {"ironmq": …, "CODE": …}, and serves until its standard input ends.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from revolve_assistant.testing.iron import IronServer

IMAGE = Path(__file__).parents[2]  # has the application: what the tasks call


def main(carriers: dict[str, str | None]) -> None:
    with IronServer() as iron:
        for code, carrier in carriers.items():
            command = [sys.executable, "-m", "revolve_assistant.cli", "ironworker"]
            command += ["--messenger", carrier or "ironmq:///matrix"]
            env = {"REVOLVE_SECRET": os.environ["REVOLVE_SECRET"], "PYTHONPATH": str(IMAGE)}
            iron.code(code, command, env=env if carrier else {**env, **iron.environment()})
        places = {code: iron.url(code, scheme="ironworker") for code in carriers}
        print(json.dumps({"ironmq": iron.url("matrix"), **places}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
