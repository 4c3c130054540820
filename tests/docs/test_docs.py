"""The documentation names everything there is, its blocks run, its links lead somewhere."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import msgspec
import pytest

import revolve_assistant
from revolve_assistant import Client, Options, Running, Task, errors
from revolve_assistant.cli import COMMANDS
from revolve_assistant.cli.flags import Command
from revolve_assistant.event import LIFECYCLE
from revolve_assistant.pool.process import POOL_SIZES
from revolve_assistant.testing import servers

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "revolve_assistant"
SECONDS = 20.0  # a page may take
NOT_RUN = "<!-- not run -->"
ENGINES = ("process", "thread", "fork", "inline", "executor")
PAGES = [
    ROOT / "README.md",
    DOCS / "tutorial.md",
    *sorted((DOCS / "howto").glob("*.md")),
    *sorted((DOCS / "providers").glob("*.md")),
    DOCS / "explanation" / "security.md",
]


def read(name: str) -> str:
    return (DOCS / "reference" / name).read_text(encoding="utf-8")


def code_of(text: str) -> str:
    """What stands in code spans and fenced blocks."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))])


def missing(names, *pages: str) -> list[str]:
    """The names that no code on these pages of the reference has."""
    code = code_of("\n".join(map(read, pages or ALL_REFERENCE)))
    return [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", code)]


ALL_REFERENCE = sorted(path.name for path in (DOCS / "reference").glob("*.md"))


def public(kind: type) -> list[str]:
    """Public attributes that a class of ours defines, or overrides."""
    ours = [each for each in kind.__mro__ if each.__module__.startswith("revolve_assistant")]
    return sorted({name for each in ours for name in vars(each) if not name.startswith("_")})


# ---------------------------------------------------------------- the reference is complete


def test_every_public_name_is_documented():
    assert missing(revolve_assistant.__all__) == []


def test_every_option_is_documented_with_its_default():
    page = read("options.md")
    for field in msgspec.structs.fields(Options):
        shown = "(Exception,)" if field.default == (Exception,) else repr(field.default).replace("'", '"')
        assert f"| `{field.name}` | `{shown}` |" in page


def test_every_event_is_documented():
    inside = "".join(path.read_text(encoding="utf-8") for path in (SOURCE / "running").glob("*.py"))
    sent = set(re.findall(r'\bemit\(\s*"(\w+)"', inside)) | set(re.findall(r'_Text\(capture, "(\w+)"', inside))
    assert {"item", "question", "log", "output", "error_output", "progress"} <= sent | {"progress"}, "look elsewhere"
    assert missing(sorted(LIFECYCLE | sent), "events.md") == []


def test_every_error_is_documented():
    assert errors.TaskCancelled  # made at first use
    kinds = [name for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, BaseException)]
    ours = [name for name in kinds if getattr(errors, name).__module__ == errors.__name__]
    assert len(ours) > 20
    assert missing(ours, "errors.md") == []
    assert missing(inspect.get_annotations(errors.TaskLost), "errors.md") == []


def test_every_client_option_is_documented():
    taken = set(inspect.signature(Client).parameters) - {"provider_options"}
    for name in ENGINES:
        engine = import_module(f"revolve_assistant.providers.{name}").Engine
        for function in (engine.from_url, engine.__init__):
            taken.update(inspect.signature(function).parameters)
    assert missing(sorted(taken - {"self", "options"}), "client-and-task.md") == []


@pytest.mark.parametrize("kind", [Client, Task, Running], ids=lambda kind: kind.__name__)
def test_every_method_is_documented(kind):
    driven = {"set_result", "set_exception", "set_running_or_notify_cancel"}  # refuse to be called
    engines = {"take", "put_message", "grant", "nudge", "item"}  # the engine's side
    assert missing([name for name in public(kind) if name not in driven | engines], "client-and-task.md") == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_flag_is_documented(name, monkeypatch):
    found: list[Command] = []

    def keep(self, _argv):
        found.append(self)
        raise SystemExit

    monkeypatch.setattr(Command, "read", keep)
    with pytest.raises(SystemExit):
        import_module(f"revolve_assistant.cli.{name}").main([])
    sections = re.split(r"^## ", read("cli.md"), flags=re.M)
    section = next((each for each in sections if each.startswith(f"`revolve {name}")), "")
    assert section, f"`revolve {name}` has no section"
    flags = [flag for action in found[0]._actions for flag in action.option_strings]
    code = code_of(section)
    assert [flag for flag in flags if not re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", code)] == []


def test_no_flag_is_documented_that_does_not_exist(monkeypatch):
    known = {"--help", "-h", "--version", "-V", "--some-flag"}

    def keep(self, _argv):
        known.update(flag for action in self._actions for flag in action.option_strings)
        raise SystemExit

    monkeypatch.setattr(Command, "read", keep)
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            import_module(f"revolve_assistant.cli.{name}").main([])
    said = set(re.findall(r"(?<![\w-])--?[a-zA-Z0][\w-]*", code_of(read("cli.md"))))
    assert said - known - {"-print0"} == set()


def test_every_environment_variable_is_documented():
    source = "".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    variables = set(re.findall(r'environ(?:\.get\(|\[)"(REVOLVE_\w+)"', source))
    assert "REVOLVE_URL" in variables
    assert missing(sorted(variables) + list(POOL_SIZES), "environment.md") == []


@pytest.mark.skipif(sys.platform != "linux", reason="what waits elsewhere differs")
def test_the_tables_of_providers_are_what_the_traits_say():
    spec = spec_from_file_location("providers_table", Path(__file__).with_name("providers_table.py"))
    table = module_from_spec(spec)
    spec.loader.exec_module(table)
    page = table.PAGE.read_text(encoding="utf-8")
    assert page == table.written(page), "run scripts/providers-table"
    run = {name for pair in table.matrix() for name in pair}
    left = {one.name for one in table.provided()} - run - set(table.NOT_IN_THE_MATRIX)
    assert left == set(), "these run no matrix of tests"
    other = page.replace("| tested |", "| – |", 1)
    assert table.written(other) == page


# ---------------------------------------------------------------- pages run


def program(page: str) -> str:
    """The page's python blocks as one program, each line at its own number."""
    lines = page.splitlines()
    out = [""] * len(lines)
    inside = False
    for number, line in enumerate(lines):
        if line.startswith("```"):
            inside = not inside and line == "```python" and (number == 0 or lines[number - 1] != NOT_RUN)
        elif inside:
            out[number] = line
    return "\n".join(out) + "\n"


SERVERS = {  # the address that a page may name, the program that has to be there, and the server started in its place
    "127.0.0.1:4730": ("gearmand", servers.Gearmand),
    "127.0.0.1:11211": ("memcached", servers.Memcached),
}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_page_runs(path, tmp_path, need):
    text = program(path.read_text(encoding="utf-8"))
    with ExitStack() as stack:
        for address, (tool, server) in SERVERS.items():
            if address in text:
                need(tool)
                text = text.replace(address, "{}:{}".format(*stack.enter_context(server()).address))
        run_page(path, text, tmp_path)


def run_page(path: Path, text: str, tmp_path: Path) -> None:
    file = tmp_path / f"{path.stem.replace('-', '_')}_page.py"
    file.write_text(text, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("REVOLVE_", "PYTHON"))}
    environment["XDG_DATA_HOME"] = str(tmp_path)  # where the secret makes itself
    done = subprocess.run(
        [sys.executable, "-W", "error", file],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr


def test_a_block_that_is_not_run_is_python_all_the_same():
    for path in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
        for number, block in enumerate(blocks, 1):
            compile(block, f"{path.name}, block {number}", "exec")


# ---------------------------------------------------------------- links


def test_relative_links_lead_somewhere():
    links = []
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCS.rglob("*.md")]:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        links += [(path, target) for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    broken = [(path.name, to) for path, to in links if not (path.parent / to.partition("#")[0]).exists()]
    assert broken == []


def test_the_index_names_every_page():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if path.parent.name != "decisions"]
    assert [page for page in pages if page != "index.md" and f"({page})" not in index] == []


def test_the_index_of_decisions_is_complete_and_in_order():
    index = (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")
    pages = sorted(path.name for path in (DOCS / "decisions").glob("[0-9]*.md"))
    assert re.findall(r"\((\d{4}-[\w-]+\.md)\)", index) == pages
    for number, page in enumerate(pages, 1):
        text = (DOCS / "decisions" / page).read_text(encoding="utf-8")
        assert page.startswith(f"{number:04}-")
        assert text.startswith(f"# {number}. ")
        for part in ("**Context.**", "**Decision.**", "**Measured consequence.**", "**What would change our mind.**"):
            assert part in text
