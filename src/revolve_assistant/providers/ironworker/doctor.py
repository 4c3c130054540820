"""What is wrong with a project at IronWorker: asked for its code packages. Changes nothing, and shows no token."""

from __future__ import annotations

from ...errors import AssistantError
from ..diagnosis import Finding
from ..url import Url
from .engine import Engine


def diagnose(url: Url) -> list[Finding]:
    """See `providers.diagnosis`; blocks up to the URL's `timeout` for each of a few questions."""
    try:
        engine = Engine.from_url(url)
        engine.open()
    except AssistantError as error:
        return [Finding("wrong", "project", str(error))]
    try:
        text = f"IronWorker answers, takes the token, and has the code package {engine.code}"
        return [Finding("ok", "project", text)]
    finally:
        engine.close()
