"""`revolve top` as a program of its own on the whole terminal, on textual (the extra `top`).

    Feed ──▶ Source ──▶ tables: which rows a page has ──▶ Rows: those in sight, drawn ──▶ App ──▶ terminal
               └──▶ Client: cancel, retry, pause, each on a thread ◀── keys ────────────────┘

The screen pulls: twice a second it takes over what has changed and draws the rows in sight, so that what it costs does
not grow with what happens. It uses the terminal's own sixteen colours, and says nothing by colour alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...caller.client import Client

EXTRA = "pip install 'revolve-assistant[top]'"


def run(client: Client, every: float) -> int:
    """Show it until somebody quits; the exit code. Raises `Unsupported`, `Unreachable` before anything is drawn."""
    from .app import Top
    from .news import heard_as_news
    from .source import Source

    with Source(client, every) as source:
        app = Top(source)
        with heard_as_news(app.say):
            app.run()
        return app.return_code or 0
