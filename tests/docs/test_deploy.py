"""What the pages on deployment show is accepted by who is to read it: systemd, the command line, the probes."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from revolve_assistant.cli.worker import _command
from revolve_assistant.testing.servers import Gearmand

DOCS = Path(__file__).parents[2] / "docs" / "howto"
LADDER = 15.0  # seconds that a worker takes beyond its grace


def blocks(language: str, page: str = "deploy.md") -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(blocks("ini")[0])
    return parser


def kubernetes() -> Any:
    return yaml.safe_load(next(each for each in blocks("yaml") if "kind: Deployment" in each))


def compose() -> Any:
    return yaml.safe_load(next(each for each in blocks("yaml") if each.startswith("services:")))


def commands() -> list[list[str]]:
    """Every `revolve worker` that the pages run, as words after `worker`."""
    found = [shlex.split(unit()["Service"]["ExecStart"])]
    found += [json.loads(line[4:]) for line in blocks("dockerfile")[0].splitlines() if line.startswith("CMD ")]
    found.append(compose()["services"]["worker"]["command"])
    found.append(kubernetes()["spec"]["template"]["spec"]["containers"][0]["args"])
    for page in ("deploy.md", "queues-and-workers.md"):
        for block in blocks("sh", page):
            for line in block.splitlines():
                if line.startswith("revolve worker"):
                    found.append(shlex.split(line.partition("#")[0].rstrip().removesuffix("&")))
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_one_that_the_worker_takes(words):
    assert Path(words[0]).name == "revolve"
    assert words[1] == "worker"
    _command().read(words[2:])  # ends with code 2 if not


def grace(words: list[str]) -> float:
    return float(_command().read(words[words.index("worker") + 1 :]).grace)


def test_whoever_stops_a_worker_waits_for_it():
    service = unit()["Service"]
    assert float(service["TimeoutStopSec"]) >= grace(shlex.split(service["ExecStart"])) + LADDER
    worker = compose()["services"]["worker"]
    assert float(worker["stop_grace_period"].removesuffix("s")) >= grace(worker["command"]) + LADDER
    spec = kubernetes()["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] >= grace(spec["containers"][0]["args"]) + LADDER


def test_probes_ask_where_the_worker_answers():
    container = kubernetes()["spec"]["template"]["spec"]["containers"][0]
    found = _command().read(container["args"][2:])
    assert found.health_host == "0.0.0.0"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe, path in (("startupProbe", "/live"), ("livenessProbe", "/live"), ("readinessProbe", "/ready")):
        get = container[probe]["httpGet"]
        assert get["path"] == path
        assert ports[get["port"]] == found.health_port
    text = blocks("dockerfile")[0]
    assert "http://127.0.0.1:8080/live" in text
    assert '"--health-port", "8080"' in text


def test_secrets_are_where_the_worker_looks():
    spec = kubernetes()["spec"]["template"]["spec"]
    environment = {each["name"]: each["value"] for each in spec["containers"][0]["env"]}
    mount = spec["containers"][0]["volumeMounts"][0]["mountPath"]
    assert environment["REVOLVE_SECRET_FILE"] == f"{mount}/secret"
    assert spec["volumes"][0]["secret"]["defaultMode"] == 0o440  # neither world-readable nor group-writable
    found = compose()
    assert found["services"]["worker"]["environment"]["REVOLVE_SECRET_FILE"] == "/run/secrets/revolve"
    assert list(found["secrets"]) == ["revolve"]


def test_from_zero_in_five_commands(revolve: Any, need: Callable[[str], str], tmp_path):
    """The page's own lines, with a gearmand of this test's own in place of the machine's."""
    need("gearmand")
    text = (DOCS / "queues-and-workers.md").read_text(encoding="utf-8")
    (tmp_path / "app.py").write_text(re.findall(r"^```python\n(# app\.py\n.*?)^```", text, re.M | re.S)[0])
    lines = blocks("sh", "queues-and-workers.md")[0]
    words = shlex.split(lines.partition("python -c ")[2])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REVOLVE_")}
    with Gearmand() as server:
        url = f"gearman://127.0.0.1:{server.port}/demo"
        revolve("worker", REVOLVE_URL=url).says("ready as")
        done = subprocess.run(
            [sys.executable, "-c", *words],
            cwd=tmp_path,
            env={**kept, "REVOLVE_URL": url, "XDG_DATA_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=40,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "{'to': 2, 'be': 2, 'or': 1, 'not': 1}\n"


def test_the_unit_says_what_the_page_explains():
    service = unit()["Service"]
    assert (service["KillMode"], service["OOMPolicy"], service["Restart"]) == ("mixed", "continue", "always")


def test_systemd_takes_the_unit(need: Callable[[str], str], tmp_path):
    analyze = need("systemd-analyze")
    text = blocks("ini")[0].replace("/srv/app/.venv/bin/revolve", sys.executable).replace("User=app", "User=root")
    path = tmp_path / "revolve-worker.service"
    path.write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--recursive-errors=no", path], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "revolve-worker" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_systemd_would_not_take_any_unit(need: Callable[[str], str], tmp_path):
    """The test above can fail."""
    analyze = need("systemd-analyze")
    path = tmp_path / "revolve-worker.service"
    path.write_text(blocks("ini")[0].replace("KillMode=mixed", "KillMode=maybe"))
    done = subprocess.run(
        [analyze, "verify", "--recursive-errors=no", path], capture_output=True, text=True, check=False
    )
    assert "maybe" in done.stderr


def test_the_image_hands_signals_on():
    lines = blocks("dockerfile")[0].splitlines()
    assert json.loads(next(line for line in lines if line.startswith("ENTRYPOINT "))[11:]) == ["tini", "--"]
    assert any("install" in line and " tini " in line for line in lines)
    assert lines.index("USER app") < next(at for at, line in enumerate(lines) if line.startswith("CMD "))
