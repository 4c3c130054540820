from __future__ import annotations

import os
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

THIRD_PARTY = Path(__file__).parent / "thirdparty"


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


def test_a_provider_by_somebody_else(tmp_path: Path) -> None:
    """Built and installed by pip, found through its entry point, and held to the same kit as ours."""
    place = tmp_path / "site"
    if find_spec("pip"):
        install = "-m pip install --quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check"
        python(*install.split(), "--target", str(place), str(THIRD_PARTY), timeout=300)
    else:  # as in an environment made by uv: unpack the wheel by hand
        code = "import backend, sys; print(backend.build_wheel(sys.argv[1]))"
        wheel = python("-c", code, str(tmp_path), path=THIRD_PARTY).strip()
        zipfile.ZipFile(tmp_path / wheel).extractall(place)
    (place / "test_toy.py").write_text((THIRD_PARTY / "conformance_toy.py").read_text())
    shown = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(place), "test_toy.py", path=place)
    assert " passed" in shown
    assert "skipped" not in shown
