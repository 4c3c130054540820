"""What is wrong with an address, in sentences that say what to do; see `revolve doctor`.

A provider's module may have `diagnose(url) -> list[Finding]`, which connects and looks; it is bounded, changes nothing,
and raises nothing for what it finds. One without it is opened and closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from ..errors import AssistantError
from ..wire.secret import find, ring
from . import registry
from .checking import has
from .url import Url


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was found. `ok`: as it should be; `note`: good to know; `wrong`: needs somebody to act.

    `subject` says in a word or two what it is about, `data` holds its figures for programs.
    """

    level: Literal["ok", "note", "wrong"]
    subject: str
    text: str
    data: Mapping[str, Any] | None = None


def diagnose(address: str) -> list[Finding]:
    """Look at an address. Blocks as long as its provider's time-outs say. Raises nothing for what is wrong with it."""
    try:
        url = Url.parse(address)
        module = registry.find(url.scheme)
    except AssistantError as error:
        return [Finding("wrong", "address", str(error))]
    kinds = [kind for kind in ("Queue", "Engine", "Messenger") if has(module, kind)]
    carries = {"Queue": "tasks for workers", "Engine": "tasks", "Messenger": "messages"}
    found = [Finding("ok", "provider", f"{url.scheme} carries {' and '.join(carries[kind] for kind in kinds)}")]
    if "Queue" in kinds or kinds == ["Messenger"]:
        found.append(_secret(url))
    look = getattr(module, "diagnose", None)
    return found + (look(url) if look is not None else _open(url, kinds))


def _secret(url: Url) -> Finding:
    """Whether what travels can be signed. Makes no file."""
    try:
        held, place = find(None, url, make=False)
        if not held.secrets:
            return Finding("ok", "secret", "it will make itself: the address is on this machine")
        prints = ring(held, place).fingerprints
    except AssistantError as error:
        return Finding("wrong", "secret", str(error))
    return Finding("ok", "secret", f"key {prints[0]} from {place} signs what travels; workers must have it too")


def _open(url: Url, kinds: list[str]) -> list[Finding]:
    found = []
    for kind in kinds:
        try:
            made: Any = registry.messenger(url) if kind == "Messenger" else registry.engine(url)
            try:
                made.open()
            finally:
                made.close()
        except (AssistantError, OSError) as error:
            found.append(Finding("wrong", kind.lower(), str(error)))
        else:
            found.append(Finding("ok", kind.lower(), f"{url} opens"))
    return found
