"""Where the secret comes from, and which traps on the way are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from revolve_assistant import UsageError
from revolve_assistant.cli import main
from revolve_assistant.providers.url import Url
from revolve_assistant.wire import secret

NEAR, FAR = Url.parse("gearman://127.0.0.1:4730/a"), Url.parse("gearman://user:hush@queue.example/a")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("REVOLVE_SECRET", "REVOLVE_SECRET_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def test_on_this_machine_it_makes_itself_once(home: Path) -> None:
    first, place = secret.find(None, NEAR)
    assert (first, place) == secret.find(None, Url.parse("memory://"), NEAR)
    assert os.stat(place).st_mode & 0o777 == 0o600
    assert os.listdir(os.path.dirname(place)) == ["secret"]


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("gearman://127.0.0.1,127.9.9.9:1", True),
        ("gearman://[::1]:4730", True),
        ("gearman://localhost", True),
        ("gearman://", True),
        ("redis+unix:///run/redis.sock", True),
        ("file:///tmp/x", True),
        ("gearman://10.0.0.1", False),
        ("gearman://127.0.0.1,10.0.0.1", False),
        ("gearman://localhost.example.org", False),
    ],
)
def test_what_is_on_this_machine(text: str, near: bool) -> None:
    assert secret.on_this_machine(Url.parse(text)) is near


def test_elsewhere_it_has_to_be_said() -> None:
    with pytest.raises(UsageError, match="revolve secret new") as caught:
        secret.keyring(None, NEAR, FAR)
    assert "hush" not in str(caught.value)
    assert secret.keyring("x" * 32, FAR).fingerprints


def test_the_argument_wins_then_the_variable_then_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "secrets"
    path.write_text("# ours\n\nfile-secret-of-this-test\n  old-secret-of-this-test  \n")
    path.chmod(0o600)
    monkeypatch.setenv("REVOLVE_SECRET_FILE", str(path))
    assert secret.find(None, FAR)[0] == ["file-secret-of-this-test", "old-secret-of-this-test"]
    monkeypatch.setenv("REVOLVE_SECRET", "one-secret-of-this-test,two-secret-of-this-test")
    assert secret.find(None, FAR)[0] == ["one-secret-of-this-test", "two-secret-of-this-test"]
    assert secret.find(b"said", FAR)[0] == [b"said"]


def test_a_file_that_others_can_read_is_refused(home: Path) -> None:
    _, place = secret.find(None, NEAR)
    os.chmod(place, 0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        secret.find(None, NEAR)


def test_a_link_in_its_place_is_refused(home: Path) -> None:
    _, place = secret.find(None, NEAR)
    os.rename(place, home / "elsewhere")
    os.symlink(home / "elsewhere", place)
    with pytest.raises(UsageError, match="cannot be read"):
        secret.find(None, NEAR)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_somebody_else_is_refused(home: Path) -> None:
    _, place = secret.find(None, NEAR)
    os.chown(place, 12345, -1)
    with pytest.raises(UsageError, match="another user"):
        secret.find(None, NEAR)


def test_where_it_cannot_be_made_the_way_out_is_named(home: Path) -> None:
    (home / "data").write_text("in the way")
    with pytest.raises(UsageError, match="REVOLVE_SECRET"):
        secret.find(None, NEAR)


def test_an_empty_file_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "empty").touch(0o600)
    monkeypatch.setenv("REVOLVE_SECRET_FILE", str(home / "empty"))
    with pytest.raises(UsageError, match="holds no secret"):
        secret.find(None, FAR)


def test_processes_that_start_at_once_agree(home: Path) -> None:
    code = "from revolve_assistant.wire import secret; print(secret.find(None)[0][0])"
    starts = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(8)]
    assert len({start.communicate()[0] for start in starts}) == 1


def test_the_command_makes_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["secret", "new"]) == 0
    made = capsys.readouterr().out.strip()
    assert len(made) >= 43
    assert main(["secret", "show"]) == 0
    shown = capsys.readouterr().out
    assert secret.keyring(None).fingerprints[0] in shown
    assert str(secret.find(None)[0][0]) not in shown
