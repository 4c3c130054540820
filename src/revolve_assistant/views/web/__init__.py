"""Tasks in a browser: a dashboard, and events for other people's pages. The extra `web` brings what it needs.

browser ◀── text/event-stream ── events_response / Live ◀── client's log of the task ◀── worker
    └────── POST stop, answer ──────▶ Live ──▶ task.cancel, task.send
browser ◀══▶ Pages ◀── Feed ◀── monitor, workers, queues: all tasks
"""

from __future__ import annotations

from ...errors import ProviderMissing

try:
    from .app import Live, events_response
    from .pages import Pages
except ImportError as error:
    if (error.name or "").partition(".")[0] != "starlette":
        raise
    raise ProviderMissing("revolve_assistant.views.web needs: pip install 'revolve-assistant[web]'") from error
from .tokens import Grant, check, token

__all__ = ["Grant", "Live", "Pages", "check", "events_response", "token"]
