"""What `import revolve_assistant` offers, and what it costs."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import revolve_assistant

CALLER = {"Client", "Task", "Worker", "Make", "Options", "defaults"}
CALLABLE = {"emit", "track", "report", "ask", "current_task", "Running", "reporting", "Retry", "CancelSignal"}
EVENTS = {"Event", "Progress"}
CONTRACTS = {"Traits", "Messenger", "Engine", "Queue", "Parcel", "Lease", "Outcome"}
ERRORS = {
    "AssistantError",
    *("UsageError", "UnknownProvider", "Unsupported", "ClientClosed", "NotCarriable"),
    *("ProviderError", "ProviderMissing", "Unreachable", "Overloaded", "ProtocolError"),
    *("TaskError", "RemoteError", "TaskTimeout", "TaskStalled", "TaskLost", "TaskRestarted", "UnknownTask"),
    *("TaskCancelled", "Untrusted"),
}
PUBLIC = CALLER | CALLABLE | EVENTS | CONTRACTS | ERRORS


def test_exports_are_these_and_no_others() -> None:
    assert set(revolve_assistant.__all__) == PUBLIC | {"__version__"}
    assert dir(revolve_assistant) == sorted(revolve_assistant.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_name_can_be_imported(name: str) -> None:
    assert getattr(revolve_assistant, name).__name__ == name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        revolve_assistant.Clinet  # noqa: B018


def test_type_checkers_see_the_same_names_at_the_same_homes() -> None:
    tree = ast.parse(Path(revolve_assistant.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == revolve_assistant._HOME


@pytest.mark.parametrize("name", sorted(ERRORS - {"AssistantError"}))
def test_errors_are_assistant_errors_with_a_first_line(name: str) -> None:
    error = getattr(revolve_assistant, name)
    assert issubclass(error, revolve_assistant.AssistantError)
    assert error.__doc__


def modules_loaded_by(statement: str) -> set[str]:
    code = f"import sys; before = set(sys.modules)\n{statement}\nprint(*set(sys.modules) - before)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True, timeout=30).split())


HEAVY = {"asyncio", "cloudpickle", "concurrent.futures", "logging", "multiprocessing", "numpy", "rich", "trio"}
LIBRARIES = {"greenstalk", "httpx", "pylibmc", "pymemcache", "redis", "sqlite3", "watchfiles"}


def test_import_loads_only_itself() -> None:
    loaded = modules_loaded_by("import revolve_assistant")
    assert not loaded & (HEAVY | LIBRARIES)
    assert {name for name in loaded if name.startswith("revolve_assistant")} == {"revolve_assistant"}


def test_what_a_callable_uses_loads_nothing_of_the_caller() -> None:
    loaded = modules_loaded_by("from revolve_assistant import emit, track, report, ask, current_task")
    assert not loaded & {"asyncio", "cloudpickle", "numpy", "rich", "trio"}
    assert not loaded & LIBRARIES
    assert not {name for name in loaded if name.startswith(("revolve_assistant.caller.", "revolve_assistant.pool."))}


def test_version_is_the_distributions() -> None:
    assert revolve_assistant.__version__ == importlib.metadata.version("revolve-assistant")


def test_types_are_shipped() -> None:
    assert Path(revolve_assistant.__file__).with_name("py.typed").exists()
