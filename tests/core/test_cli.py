"""The command `revolve` itself: quick help, one-line errors, flags from the environment; and the parts of `run`."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from revolve_assistant import cli
from revolve_assistant.cli import flags
from revolve_assistant.cli.run_items import Ahead, Item, lines, plain
from revolve_assistant.cli.run_log import Done, Log, line
from revolve_assistant.cli.run_output import ERR, OUT, Lines, Turns, to_bytes, to_json

Revolve = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def revolve(tmp_path: Path) -> Revolve:
    """Runs `revolve …` in a folder of its own, without REVOLVE_* variables but for those given."""

    def revolve(*words: str, input: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("REVOLVE_")}
        return subprocess.run(
            [sys.executable, "-m", "revolve_assistant.cli", *words],
            cwd=tmp_path,
            env=env | variables,
            input=input,
            capture_output=True,
            text=True,
            check=False,
        )

    return revolve


# --- the command


def test_help_names_every_command_and_imports_none(tmp_path: Path) -> None:
    code = """
import sys
from revolve_assistant.cli import main
main(["--help"])
loaded = [name for name in sys.modules if name.startswith("revolve_assistant.")]
assert loaded == ["revolve_assistant.cli"], loaded
assert "argparse" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in cli.COMMANDS:
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_explains_itself(revolve: Revolve, name: str) -> None:
    done = revolve(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: revolve {name}")
    assert revolve("help", name).stdout == done.stdout


def test_version(revolve: Revolve) -> None:
    import revolve_assistant

    assert revolve("--version").stdout == f"revolve {revolve_assistant.__version__}\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ruin"], "no command 'ruin'; did you mean `revolve run`?"),
        (["xyz"], "no command 'xyz'; there are: "),
        (["run"], "the following arguments are required: module:function"),
        (["run", "work"], "'work' is not of the form module:function"),
        (["run", "work.up", "a"], "did you mean work:up?"),
        (["run", "work.py", "a"], "say work:NAME"),
        (["run", "./work.py:up", "a"], "a module is work:up"),
        (["run", "wrok:up", "a"], "no module 'wrok'"),
        (["run", "wrok:up", "a"], "did you mean 'work'?"),
        (["run", "work:upp", "a"], "module work has no 'upp'; did you mean 'up'?"),
        (["run", "work:Shop.sel", "a"], "class work:Shop has no 'sel'; did you mean 'sell'?"),
        (["run", "work:LIMIT", "a"], "work:LIMIT is a int, nothing that can be called"),
        (["run", "wrong:up", "a"], "module wrong cannot be imported: ZeroDivisionError"),
        (["run", "leaves:up", "a"], "module leaves cannot be imported: SystemExit"),
        (["run", "needs:up", "a"], "module needs cannot be imported: ModuleNotFoundError: No module named"),
        (["run", "--timout", "3", "work:up", "a"], "no flag --timout; did you mean --timeout?"),
        (["run", "--timeout", "-1", "work:up"], "--timeout"),
        (["run", "-j", "0", "work:up", "a"], "'0' is neither a number of workers"),
        (["run", "--memory-limit", "much", "work:up", "a"], "'much' is no size in bytes"),
        (["run", "--resume", "work:up", "a"], "--resume needs --log FILE"),
        (["run", "-a", "nothing.txt", "work:up"], "nothing.txt: No such file or directory"),
        (["run", "-a", "work.py", "work:up", "a"], "give items or --arg-file, not both"),
        (["run", "--json-items", "work:up", "1", "{"], "item '{' is not JSON"),
        (["run", "--log", "no/log", "work:up", "a"], "no/log: No such file or directory"),
        (["stack"], "the following arguments are required: ID"),
    ],
)
def test_a_wrong_call_is_one_clear_line_and_code_2(
    revolve: Revolve, tmp_path: Path, words: list[str], says: str
) -> None:
    (tmp_path / "work.py").write_text("LIMIT = 3\ndef up(x): return x\nclass Shop:\n    def sell(x): return x\n")
    (tmp_path / "wrong.py").write_text("1 / 0\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit()\n")
    (tmp_path / "needs.py").write_text("import nowhere_to.be_found\n")
    done = revolve(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("revolve")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_flags_come_from_the_environment_and_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = flags.Command("do-it", "")
    parser.flag("-w", "--how-long", type=flags.seconds)
    parser.flag("--all", action="store_true")
    parser.add_argument("words", nargs="*")
    monkeypatch.setenv("REVOLVE_DO_IT_HOW_LONG", "2.5")
    monkeypatch.setenv("REVOLVE_DO_IT_ALL", "yes")
    found = parser.read(["a", "b"])
    assert (found.how_long, found.all, found.words) == (2.5, True, ["a", "b"])
    assert parser.read(["-w", "4"]).how_long == 4.0
    monkeypatch.setenv("REVOLVE_DO_IT_ALL", "0")
    assert parser.read([]).all is False


@pytest.mark.parametrize(("name", "value"), [("JOBS", "many"), ("JSON", "perhaps"), ("TIMEOUT", "0")])
def test_a_wrong_variable_is_named(revolve: Revolve, name: str, value: str) -> None:
    done = revolve("run", "json:loads", "1", **{f"REVOLVE_RUN_{name}": value})
    assert done.returncode == 2
    assert f"REVOLVE_RUN_{name}" in done.stderr
    assert repr(value) in done.stderr


def test_sizes_and_shares() -> None:
    assert flags.size("2G") == flags.size("2GiB") == 2 << 30
    assert flags.jobs("3") == 3
    assert flags.jobs("100%") == flags.cpus()
    assert flags.jobs("1%") == 1


# --- items


def test_dry_run_shows_each_call_exactly(revolve: Revolve) -> None:
    done = revolve("run", "-n", "json:loads", "a b", "-j", "2", "c'd", "*", "--", "-x", "--tag")
    assert done.stdout.splitlines() == [f"json.loads({item!r})" for item in ["a b", "c'd", "*", "-x", "--tag"]]


def test_items_from_stdin_are_lines_and_nothing_is_stripped(revolve: Revolve, tmp_path: Path) -> None:
    text = ' a  b \n\n\t"c"\nlast'
    wanted = [f"json.loads({item!r})" for item in [" a  b ", '\t"c"', "last"]]
    assert revolve("run", "-n", "json:loads", input=text).stdout.splitlines() == wanted
    assert revolve("run", "-n", "json:loads", "-", input=text).stdout.splitlines() == wanted
    (tmp_path / "items").write_text(text)
    assert revolve("run", "-n", "json:loads", "-a", "items").stdout.splitlines() == wanted
    assert revolve("run", "-n", "-0", "json:loads", input="a\nb\0c").stdout == "json.loads('a\\nb')\njson.loads('c')\n"


def test_json_items_are_values(revolve: Revolve) -> None:
    done = revolve("run", "-n", "--json-items", "json:dumps", input='1\n[2, "x"]\n{"a": null}\n')
    assert done.stdout.splitlines() == ["json.dumps(1)", "json.dumps([2, 'x'])", "json.dumps({'a': None})"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100_000])
def test_lines_do_not_depend_on_how_they_arrive(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"one\n\ntwo words\n\xff\xc3\xbc\n" + b"x" * 200_000 + b"\nend"
    pieces = [data[start : start + size] for start in range(0, len(data), size)] if size > 10 else None
    if pieces is None:
        data = data[:20] + b"\nend"
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
    rest = iter([*pieces, b""])
    monkeypatch.setattr(os, "read", lambda fd, limit: next(rest))
    assert list(lines(0)) == [os.fsdecode(piece) for piece in data.split(b"\n") if piece]


def test_reading_ahead_is_bounded() -> None:
    text = "x" * 50_000
    full = threading.Event()

    def endless() -> Iterator[Item]:
        for pulled in itertools.count(1):
            if pulled * len(text) > 4 << 20:
                full.set()
            yield plain(text)

    ahead = Ahead(endless(), lambda: None)
    ahead.start()
    try:
        assert full.wait(30)
        assert ahead.take() == plain(text)
        assert not ahead.ended
    finally:
        left = ahead.stop()
    assert left <= 86  # 4 MiB
    for thread in threading.enumerate():
        if thread.name == "revolve-items":
            thread.join(10)
    assert ahead.seen <= 90


# --- output


def test_lines_of_a_task_stay_whole() -> None:
    gathered = Lines()
    assert gathered.add("a") == ""
    assert gathered.add("b\nc") == "ab\n"
    assert gathered.add("\n\n") == "c\n\n"
    assert gathered.rest() == ""
    gathered.add("d")
    assert gathered.rest() == "d\n"


def test_tagged_lines_each_begin_with_the_tag() -> None:
    gathered = Lines("t\t")
    assert gathered.add("a\n\nb") == "t\ta\nt\t\n"
    assert gathered.rest() == "t\tb\n"


def test_turns_write_in_order_whoever_speaks_first() -> None:
    written: list[tuple[int, bytes]] = []
    turns = Turns(lambda stream, data: written.append((stream, data)), ordered=True)
    turns.put(1, OUT, b"b1")
    turns.put(2, ERR, b"c1")
    turns.end(2)
    turns.put(0, OUT, b"a1")
    assert written == [(OUT, b"a1")]
    turns.end(0)
    assert written[1:] == [(OUT, b"b1")]
    turns.put(1, OUT, b"b2")
    turns.end(1)
    assert written[2:] == [(OUT, b"b2"), (ERR, b"c1")]
    turns.close()


def test_undecodable_names_come_out_as_they_went_in() -> None:
    assert to_bytes(os.fsdecode(b"caf\xe9")) == b"caf\xe9"
    assert to_bytes("\ud800") == b"\\ud800"


def test_what_is_not_json_becomes_its_repr() -> None:
    assert to_json({"result": {1, 2}}) == '{"result": "{1, 2}"}'
    assert to_json({"result": float("nan"), "item": 1}) == '{"result": "nan", "item": 1}'


# --- the log


def entry(item: object, state: str = "succeeded", function: str = "m:f") -> bytes:
    return line(item, state, seconds=1.0, error=None, attempt=1, time=2.0, function=function)


def test_the_log_skips_each_success_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(
        entry("a") + entry("b", "failed") + entry("a") + entry({"x": 1, "y": 2}) + entry("c", function="m:other")
    )
    done = Done(str(path), "m:f")
    asked = ["a", "b", "a", "a", {"y": 2, "x": 1}, "c"]
    assert [done.skip(item) for item in asked] == [True, False, True, False, True, False]
    assert done.skipped == 3


def test_a_torn_line_is_passed_over_and_ended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    whole = entry("a")
    for cut in range(1, len(whole)):
        path.write_bytes(entry("z") + whole[:cut])
        done = Done(str(path), "m:f")
        assert done.skip("z")
        if cut < len(whole) - 1:  # without its newline alone it is whole
            assert not done.skip("a")
        log = Log(str(path))
        log.write(entry("b"))
        log.close()
        assert Done(str(path), "m:f").skip("b")


def test_no_log_yet_skips_nothing(tmp_path: Path) -> None:
    assert not Done(str(tmp_path / "log"), "m:f").skip("a")
