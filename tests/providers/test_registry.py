from __future__ import annotations

import os
import re
import subprocess
import sys
import types
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from revolve_assistant.engine import Queue as QueueContract
from revolve_assistant.errors import ProviderMissing, UnknownProvider, Unsupported, UsageError
from revolve_assistant.providers import memory, registry


def python(*arguments: str, path: Path | None = None, timeout: float = 120) -> str:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_finds_by_name_and_scheme() -> None:
    assert registry.find("memory") is memory
    assert registry.find("Memory") is memory
    assert isinstance(registry.engine("memory://x"), memory.Queue)
    assert isinstance(registry.messenger("memory://x"), memory.Messenger)


def test_built_ins_never_list_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entry_points", lambda: pytest.fail("entry points were listed"))
    registry.find("memory")
    registry.messenger("memory://")


def test_unknown_names() -> None:
    with pytest.raises(UnknownProvider, match=r"no provider 'memry'; did you mean 'memory'\? \(known: .*memory.*\)"):
        registry.find("memry")
    with pytest.raises(LookupError):
        registry.engine("rediz://h")
    with pytest.raises(UsageError):
        registry.engine("redis")


def provide(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, text: str) -> None:
    """Make `name` a built-in provider whose module holds this text."""
    module = f"made_up_{folder.name.replace('-', '_')}_{name}"
    (folder / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(registry._BUILT_IN, name, module)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+unix", "redis+sentinel"])
def test_missing_library_names_the_extra(scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    provide(monkeypatch, tmp_path, "redis", 'REQUIRES = "redis"\nimport no_such_redis\n')
    with pytest.raises(ProviderMissing) as caught:
        registry.find(scheme)
    assert str(caught.value) == "redis needs: pip install 'revolve-assistant[redis]'"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_missing_library_found_out_late_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    late = "class Messenger:\n  @classmethod\n  def from_url(cls, url): import no_such_client\n"
    provide(monkeypatch, tmp_path, "memcached", f'REQUIRES = "memcached-fast"\n{late}')
    with pytest.raises(ProviderMissing, match=r"^memcached needs: pip install 'revolve-assistant\[memcached-fast\]'$"):
        registry.messenger("memcached://h")


def test_library_that_is_too_old_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    provide(monkeypatch, tmp_path, "ironmq", "from os import no_such_name\n")
    with pytest.raises(ProviderMissing, match=r"revolve-assistant\[ironmq\]' \(cannot import name 'no_such_name'"):
        registry.find("ironmq")


def test_a_fault_of_ours_is_not_a_missing_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    provide(monkeypatch, tmp_path, "gearman", "import revolve_assistant.no_such_module\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        registry.find("gearman")


def test_a_provider_of_a_later_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._BUILT_IN, "nats", "revolve_assistant.providers.nats")
    with pytest.raises(UnknownProvider, match="'nats' is not part of this release"):
        registry.find("nats")
    assert "nats" not in registry.known()


def test_a_contract_is_no_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_contracts")
    module.Queue = QueueContract  # type: ignore[attr-defined]
    monkeypatch.setattr(registry, "find", lambda name: module)
    with pytest.raises(Unsupported, match="x does not carry tasks: it has no Queue or Engine"):
        registry.engine("x://")


def test_import_is_cheap() -> None:
    code = (
        "import sys; import revolve_assistant.providers.registry;"
        "print(sorted({'asyncio', 'importlib.metadata', 'email', 'difflib', 'urllib.parse', 'ssl',"
        " 'revolve_assistant.providers.memory', 'revolve_assistant.providers.url'} & set(sys.modules)))"
    )
    assert python("-c", code).strip() == "[]"


# ---------------------------------------------------------------- a provider by somebody else

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "write-a-provider.md"
NEEDY = {  # a provider whose library is not there
    "pyproject.toml": '[project.entry-points."revolve_assistant.providers"]\nneedy = "revolve_toy.needy"',
    "revolve_toy/needy.py": "import no_such_library_at_all\n",
}
FOUND = """
import pytest
from revolve_assistant.errors import ProviderMissing, UnknownProvider, UsageError
from revolve_assistant.providers import registry

assert {"toy", "needy", "memory"} <= set(registry.known())
assert registry.find("TOY").__name__ == "revolve_toy"
with pytest.raises(ProviderMissing, match="needy cannot be loaded: No module named 'no_such_library_at_all'"):
    registry.find("needy")
with pytest.raises(UnknownProvider, match=r"no provider 'toi'; did you mean 'toy'\\?"):
    registry.find("toi")
with pytest.raises(UsageError, match="lese"):
    registry.engine("toy://x?lese=3")
"""


def files_of(page: str) -> dict[str, str]:
    """The files that a page shows: path and text."""
    marked = r"^<!-- file: (\S+) -->\n(?:<!-- not run -->\n)?```\w+\n(.*?)^```$"
    return dict(re.findall(marked, page, re.M | re.S))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the package that the page shows, installed by pip into its `site`."""
    folder = tmp_path_factory.mktemp("revolve-toy")
    files = files_of(PAGE.read_text(encoding="utf-8"))
    entries, mark = NEEDY["pyproject.toml"].split("\n")
    assert entries in files["pyproject.toml"]
    files["pyproject.toml"] = files["pyproject.toml"].replace(entries, f"{entries}\n{mark}")
    files["revolve_toy/needy.py"] = NEEDY["revolve_toy/needy.py"]
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    site = folder / "site"
    if find_spec("pip"):
        install = "-m pip install --quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check"
        python(*install.split(), "--target", str(site), str(folder), timeout=300)
    else:  # as in an environment made by uv: unpack the wheel by hand
        python("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist"), path=folder)
        (wheel,) = (folder / "dist").glob("*.whl")
        zipfile.ZipFile(wheel).extractall(site)
    return folder


def test_it_is_found_through_its_entry_point(toy: Path) -> None:
    python("-c", FOUND, path=toy / "site")


@pytest.mark.timeout(180)
def test_it_is_held_to_the_same_kit_as_ours_with_pytest_and_without(toy: Path) -> None:
    def run(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(toy / "site")},
            cwd=toy,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    tests = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(toy), "tests")
    doctor = run("-m", "revolve_assistant.cli", "doctor", "--check", "toy://here")
    shown = tests.communicate(timeout=170)[0]
    assert tests.returncode == 0, shown
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped|failed)", shown)}
    told = doctor.communicate(timeout=170)[0]
    assert doctor.returncode == 0, told
    sums = re.findall(r"^(queue|messenger): (\d+) ok, (\d+) skipped, 0 failed, in \d+ s$", told, re.M)
    assert [name for name, _, _ in sums] == ["queue", "messenger"]
    assert sum(int(ok) for _, ok, _ in sums) == counts["passed"]
    assert sum(int(skipped) for _, _, skipped in sums) == counts["skipped"]
    for name, ok, skipped in sums:
        assert f"{name}: {ok} ok, {skipped} skipped, 0 failed" in PAGE.read_text(encoding="utf-8"), "the page shows it"


def test_it_carries_tasks_and_what_they_say(toy: Path) -> None:
    shown = python("-W", "error", str(toy / "use.py"), path=toy / "site")
    assert shown == "['started', 'succeeded'] 1000\n1000\n"
