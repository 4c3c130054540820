"""What spans and their attributes are called: the semantic conventions for messaging, and a few of our own."""

from __future__ import annotations

from typing import Any

SYSTEM = "revolve_assistant"


def attributes(operation: str, kind: str, id: str, name: str, queue: str) -> dict[str, Any]:
    """Of any span about a task. `name` is `module:qualname`."""
    found = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.destination.name": queue,
        "messaging.message.id": id,
        "code.function.name": name.replace(":", ".", 1),
    }
    if kind:
        found["messaging.operation.type"] = kind
    return found
