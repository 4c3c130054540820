"""Finding the secret: where it is looked for, what makes itself, what is refused, and that it is never shown."""

from __future__ import annotations

import os
import pickle
import re
import resource
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from revolve_assistant.errors import Untrusted, UsageError
from revolve_assistant.providers.url import Url
from revolve_assistant.wire.seal import Keyring, Purpose
from revolve_assistant.wire.secret import Held, is_local, keyring, new, user_file

ONE = "the first secret of the tests, XYZ"
TWO = "the second secret of the tests XYZ"
HERE = Url.parse("redis://localhost/0")
THERE = Url.parse("redis://me:XYZpassword@queue.example:6379/0")
MAKE = "from revolve_assistant.wire.secret import keyring; print(*keyring(None).fingerprints)"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own, and no variables that say otherwise."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("REVOLVE_SECRET", "REVOLVE_SECRET_FILE", "XDG_DATA_HOME", "REVOLVE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home


def prints(*secrets: str | bytes) -> tuple[str, ...]:
    return Keyring(secrets).fingerprints


def fails(*arguments: object) -> str:
    """The error, which shows no secret: neither itself, nor what led to it, nor the variables of our frames."""
    with pytest.raises(UsageError) as caught:
        keyring(*arguments)  # type: ignore[arg-type]
    error: BaseException | None = caught.value
    while error is not None:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        ours = [frame.locals for frame in told.stack if Path(frame.filename).parent.name == "wire"]
        assert ours
        assert "XYZ" not in f"{error} {error!r} {ours}"
        error = error.__context__
    return str(caught.value)


def file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)  # it may be read-only
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


# --- where it is looked for


def test_what_is_given_wins_then_the_variable_then_the_named_file_then_the_users_own(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = keyring(None, HERE).fingerprints
    monkeypatch.setenv("REVOLVE_SECRET_FILE", str(file(tmp_path / "named", TWO)))
    assert keyring(None, HERE).fingerprints == prints(TWO) != own
    monkeypatch.setenv("REVOLVE_SECRET", ONE)
    assert keyring(None, HERE).fingerprints == keyring(None, THERE).fingerprints == prints(ONE)
    assert keyring("quite another one", THERE).fingerprints == prints("quite another one")


def test_the_same_text_is_the_same_secrets_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"# new, since May\n  {ONE}\t\r\n\n# old\n{TWO}\nschlüssel für alle\n"
    wanted = prints(ONE, TWO, "schlüssel für alle")
    assert keyring(text, THERE).fingerprints == wanted
    assert keyring([ONE, TWO.encode(), "schlüssel für alle"], THERE).fingerprints == wanted
    monkeypatch.setenv("REVOLVE_SECRET", text)
    assert keyring(None, THERE).fingerprints == wanted
    monkeypatch.delenv("REVOLVE_SECRET")
    monkeypatch.setenv("REVOLVE_SECRET_FILE", str(file(tmp_path / "named", "\ufeff" + text)))
    assert keyring(None, THERE).fingerprints == wanted


def test_bytes_are_taken_as_they_are() -> None:
    assert keyring(b"# sixteen bytes\n ", THERE).fingerprints == prints(b"# sixteen bytes\n ")


def test_bytes_of_the_environment_that_are_no_text_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = b"\xff\xfe of sixteen bytes"
    monkeypatch.setenv("REVOLVE_SECRET", os.fsdecode(raw))
    assert keyring(None, THERE).fingerprints == keyring(os.fsdecode(raw), THERE).fingerprints == prints(raw)


def test_both_sides_that_were_told_the_same_understand_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = keyring(ONE, THERE)
    monkeypatch.setenv("REVOLVE_SECRET", f"{TWO}\n{ONE}")
    worker = keyring(None, THERE)
    assert worker.open(Purpose.TASK, "default", caller.seal(Purpose.TASK, "default", b"x")) == b"x"
    with pytest.raises(Untrusted, match="unknown key"):  # the caller does not know the new one yet
        caller.open(Purpose.EVENT, "inbox", worker.seal(Purpose.EVENT, "inbox", b"x"))


def test_a_fresh_secret_is_long_and_new() -> None:
    found = {new() for _ in range(100)}
    assert len(found) == 100
    assert all(re.fullmatch("[0-9a-f]{64}", secret) for secret in found)


# --- what is wrong is said, and how to go on


def test_a_url_that_leaves_this_machine_needs_a_secret(home: Path) -> None:
    text = fails(None, HERE, THERE)
    for part in ("redis://me:***@queue.example:6379/0", "revolve secret new", "REVOLVE_SECRET", "both sides"):
        assert part in text
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        ("shortXYZ", "the secret that was given: the secret has 8 bytes, at least 16"),
        ([ONE, "shortXYZ"], "secret 2 of 2 has 8 bytes"),
        ("# only XYZ", "the secret that was given: no secret given"),
        ([], "no secret given"),
        ("XYZ and more than 16 \ud800", "no text"),
        (7, "is int"),
    ],
)
def test_a_secret_that_cannot_be_used(secret: object, says: str) -> None:
    assert says in fails(secret, THERE)


@pytest.mark.parametrize(
    ("value", "says"),
    [("", "set and holds no secret"), ("# XYZ", "holds no secret"), ("shortXYZ", "REVOLVE_SECRET: the secr")],
)
def test_a_variable_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, value: str, says: str) -> None:
    monkeypatch.setenv("REVOLVE_SECRET", value)
    assert says in fails(None, HERE)


def test_a_named_file_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tmp_path / "named"
    monkeypatch.setenv("REVOLVE_SECRET_FILE", str(named))
    assert "cannot be read: No such file or directory" in fails(None, HERE)
    file(named, "# XYZ\n\n")
    assert "holds no secret" in fails(None, HERE)
    file(named, "shortXYZ")
    assert f"REVOLVE_SECRET_FILE, {named}: the secret has 8 bytes" in fails(None, HERE)
    file(named, f"{ONE}\n" * 2000)
    assert "more than 65536 bytes" in fails(None, HERE)
    for mode in (0o620, 0o602):
        file(named, ONE, mode)
        assert f"can be changed by others (mode 0{mode:o})" in fails(None, HERE)
    for mode in (0o400, 0o444, 0o640):  # as Docker and Kubernetes mount them
        file(named, ONE, mode)
        assert keyring(None, THERE).fingerprints == prints(ONE)
    named.unlink()
    named.mkdir()
    assert "no regular file" in fails(None, HERE)
    named.rmdir()
    os.mkfifo(named)
    assert "no regular file" in fails(None, HERE)  # and does not wait for a writer
    monkeypatch.setenv("REVOLVE_SECRET_FILE", "")
    assert "REVOLVE_SECRET_FILE, '', cannot be read" in fails(None, HERE)


def test_a_named_file_may_be_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(file(tmp_path / "mounted", ONE))
    monkeypatch.setenv("REVOLVE_SECRET_FILE", str(tmp_path / "link"))
    assert keyring(None, THERE).fingerprints == prints(ONE)


# --- what is on this machine


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost", "redis://LOCALHOST:1/0", "redis://127.0.0.1", "redis://127.8.9.1:6379", "redis://[::1]:1",
        "redis://[::ffff:127.0.0.1]", "rediss://localhost", "redis://", "gearman://127.0.0.1,localhost:4731/assistant",
        "gearman:///assistant", "memcached://", "beanstalkd://:pw@localhost", "ironmq://localhost:8080",
        "redis+unix:///run/redis.sock", "sqlite:///tasks.db", "file:///var/spool/x", "filesystem:///x",
        "memory://name", "process://", "thread://", "custom://127.0.0.1",
    ],
)  # fmt: skip
def test_local(url: str) -> None:
    assert is_local(Url.parse(url))


@pytest.mark.parametrize(
    "url",
    [
        "redis://queue.example", "redis://10.0.0.1", "redis://0.0.0.0", "redis://[::]", "redis://[2001:db8::1]",
        "redis://localhost,10.0.0.1", "redis://localhost.example", "redis://127.0.0.1.example", "redis://127.1",
        "redis://2130706433", "redis+sentinel://localhost/0", "ironmq://", "ironworker://", "custom://", "file://nas/x",
        "redis+unix://host/run/x", "redis://[::ffff:10.0.0.1]",
    ],
)  # fmt: skip
def test_not_local(url: str) -> None:
    assert not is_local(Url.parse(url))
    assert str(Url.parse(url)) in fails(None, HERE, Url.parse(url))


# --- the file that makes itself


def test_the_users_file_makes_itself_for_him_alone(home: Path) -> None:
    previous = os.umask(0)
    try:
        made = keyring(None, HERE)
    finally:
        os.umask(previous)
    path = home / ".local" / "share" / "revolve" / "secret"
    assert user_file() == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in path.parents[:3]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["secret"]
    assert keyring(None).fingerprints == keyring(None, HERE, HERE).fingerprints == made.fingerprints
    secret = path.read_text().splitlines()[-1]
    assert prints(secret) == made.fingerprints


def test_the_umask_cannot_make_it_unreadable() -> None:
    previous = os.umask(0o377)
    try:
        made = keyring(None, HERE)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(Path(user_file()).stat().st_mode) == 0o600
    assert keyring(None, HERE).fingerprints == made.fingerprints


def test_xdg_data_home_counts_if_it_is_absolute(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    keyring(None, HERE)
    assert (tmp_path / "data" / "revolve" / "secret").is_file()
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    assert user_file() == str(home / ".local" / "share" / "revolve" / "secret")


def test_processes_that_start_at_once_agree(home: Path) -> None:
    """Each waits until all are ready, so that several see no file."""
    code = f"import sys; from revolve_assistant.wire import secret; print(flush=True); sys.stdin.read(); {MAKE}"
    for _ in range(3):
        running = [
            subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(6)
        ]
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        for process in running:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        found = [process.communicate()[0].strip() for process in running]
        assert found == [*keyring(None, HERE).fingerprints] * 6
        path = Path(user_file())
        assert [each.name for each in path.parent.iterdir()] == ["secret"]
        path.unlink()


def test_the_one_that_comes_second_takes_the_firsts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The very moment: another process makes the file between our look and our link."""
    link = os.link
    theirs = "the secret of the other one XYZ"

    def late(source: str, target: str) -> None:
        file(Path(target), theirs)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert keyring(None, HERE).fingerprints == prints(theirs)
    assert os.listdir(os.path.dirname(user_file())) == ["secret"]


def test_a_death_while_it_is_made_leaves_nothing_that_counts() -> None:
    died = subprocess.run([sys.executable, "-c", f"import os; os.link = lambda *_: os._exit(9); {MAKE}"], check=False)
    assert died.returncode == 9
    assert not os.path.exists(user_file())
    assert len(os.listdir(os.path.dirname(user_file()))) == 1
    made = keyring(None, HERE).fingerprints
    assert keyring(None, HERE).fingerprints == made


def test_a_full_disk_is_told_and_leaves_nothing() -> None:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10, {resource.RLIM_INFINITY})); {MAKE}"
    done = subprocess.run([sys.executable, "-B", "-c", limit], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be kept in" in done.stderr
    assert "REVOLVE_SECRET" in done.stderr
    assert os.listdir(os.path.dirname(user_file())) == []


def loosen(path: Path) -> None:
    path.chmod(0o640)


def world(path: Path) -> None:
    path.chmod(0o604)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def empty(path: Path) -> None:
    path.write_text("")


def shared(path: Path) -> None:
    path.parent.chmod(0o770)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (loosen, "can be read or changed by others (mode 0640)"),
        (world, "can be read or changed by others (mode 0604)"),
        (link, "it is a symbolic link"),
        (dangling, "it is a symbolic link"),
        (folder, "is no regular file"),
        (pipe, "is no regular file"),
        (empty, "holds no secret; remove it"),
        (shared, "others may write there"),
    ],
)
def test_a_file_of_the_user_that_others_could_have_touched_is_refused(spoil: Callable[[Path], None], says: str) -> None:
    keyring(None, HERE)
    path = Path(user_file())
    spoil(path)
    text = fails(None, HERE)
    assert says in text
    assert str(path) in text


def test_a_file_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring(None, HERE)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert "belongs to somebody else" in fails(None, HERE)
    if me:  # a file of root is allowed here
        monkeypatch.setenv("REVOLVE_SECRET_FILE", str(file(tmp_path / "named", ONE)))
        assert f"belongs to user {me}, and this process runs as {me + 1}" in fails(None, HERE)


def test_a_file_of_somebody_else_in_our_own_folder_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring(None, HERE)
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(user_file(), 12345, -1)
    assert "belongs to user 12345, and this process runs as 0" in fails(None, HERE)
    monkeypatch.setenv("REVOLVE_SECRET_FILE", user_file())
    assert "belongs to user 12345" in fails(None, HERE)


def test_root_leaves_nothing_in_the_home_of_another(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: 0)
    else:
        os.chown(home, 12345, -1)
    assert "this process runs as root: set HOME" in fails(None, HERE)
    assert list(home.iterdir()) == []


def test_without_a_place_to_keep_it_the_way_out_is_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "nowhere")
    assert "no home folder (HOME is 'nowhere')" in fails(None, HERE)
    for place in (file(tmp_path / "no-folder", ""), Path("/proc/self"), Path("/dev/null")):
        monkeypatch.setenv("HOME", str(place))
        text = fails(None, HERE)
        assert "cannot be kept in" in text
        assert "REVOLVE_SECRET" in text
    if os.geteuid():
        home.chmod(0o500)
        monkeypatch.setenv("HOME", str(home))
        assert "Permission denied" in fails(None, HERE)


def test_where_home_is_not_set_the_users_own_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pwd = pytest.importorskip("pwd")
    for unset in (lambda: monkeypatch.delenv("HOME"), lambda: monkeypatch.setenv("HOME", "")):
        unset()
        assert user_file() == f"{pwd.getpwuid(os.geteuid()).pw_dir}/.local/share/revolve/secret"
    monkeypatch.setattr(os, "geteuid", lambda: 987654)  # as in a container
    assert "no home folder" in fails(None, HERE)


def test_secrets_on_their_way_show_nothing() -> None:
    held = Held([ONE, TWO])
    assert repr(held) == "<2 secrets>"
    with pytest.raises(UsageError):
        pickle.dumps(held)


# --- the command


def revolve(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "revolve_assistant.cli", "secret", *words]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)


def test_new_prints_one_that_can_be_used() -> None:
    done = revolve("new")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(keyring(done.stdout, THERE).fingerprints) == 1
    assert not os.path.exists(user_file())
    assert revolve("new", "redis://localhost").returncode == 2


def test_show_prints_fingerprints_and_where_they_come_from(tmp_path: Path) -> None:
    done = revolve("show", str(THERE.reveal()), REVOLVE_SECRET=f"{ONE}\n{TWO}")
    one, two = prints(ONE, TWO)
    assert done.stdout == f"from     REVOLVE_SECRET\nsigns    {one}\naccepts  {two}\n"
    named = file(tmp_path / "named", ONE)
    assert f"from     REVOLVE_SECRET_FILE, {named}\n" in revolve("show", REVOLVE_SECRET_FILE=str(named)).stdout


def test_show_makes_nothing(home: Path) -> None:
    done = revolve("show")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"none yet; {user_file()} is made at first use" in done.stderr
    assert list(home.iterdir()) == []
    made = keyring(None, HERE).fingerprints[0]
    assert revolve("show", "redis://localhost").stdout == f"from     {user_file()}\nsigns    {made}\n"


def test_show_says_what_is_wrong_in_one_line() -> None:
    for done in (revolve("show", THERE.reveal()), revolve("show", REVOLVE_URL=THERE.reveal())):
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("revolve secret: redis://me:***@queue.example")
        assert done.stderr.count("\n") == 1
    done = revolve("show", REVOLVE_SECRET="shortXYZ")
    assert (done.returncode, "XYZ" in done.stderr) == (2, False)
