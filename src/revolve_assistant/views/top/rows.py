"""A list of which only the rows in sight are made, so that ten thousand cost what twenty do."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from .tables import STYLES, Page, line, widths

HEAD = Style(bold=True, dim=True)
NONE = Style(dim=True)
DONE = Style(color="cyan")  # of a bar


class Rows(Widget, can_focus=True):
    """The rows of a page under its heads. The cursor holds on to a row, not to a place."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "leap(-1)", show=False),
        Binding("pagedown,space", "leap(1)", show=False),
        Binding("home,g", "move(-1000000)", show=False),
        Binding("end,G", "move(1000000)", show=False),
        Binding("enter", "open", show=False),
    ]

    class Opened(Message):
        """Somebody wants to see more of the row under the cursor."""

    class Searched(Message):
        """What is searched for has changed, or the typing of it has begun or ended."""

    def __init__(self) -> None:
        super().__init__()
        self.search = ""
        self.typing = False
        """Keys go into `search`. Here, and not in a field of its own, so that none is lost before it has the focus."""
        self._page: Page = Page()
        self._items: Sequence[Any] = ()
        self._at = 0
        self._top = 0
        self._keys: dict[Page, str] = {}  # what the cursor holds on to, by page
        self._now = 0.0

    def fill(self, page: Page, items: Sequence[Any]) -> None:
        """Show these; the cursor stays with its row, else at its place."""
        if page is not self._page:
            self._page, self._top, self._at = page, 0, 0
        self._items = items
        held = self._keys.get(page)
        if not (self._at < len(items) and page.key(items[self._at]) == held):
            found = next((at for at, item in enumerate(items) if page.key(item) == held), None)
            self._at = min(self._at, max(0, len(items) - 1)) if found is None else found
        self._now = time.time()
        self._keep_in_sight()
        self.refresh()

    @property
    def current(self) -> Any:
        """The row under the cursor, None: there is none."""
        return self._items[self._at] if self._at < len(self._items) else None

    @property
    def place(self) -> str:
        """`3/120`"""
        return f"{self._at + 1}/{len(self._items)}" if self._items else ""

    def action_move(self, by: int) -> None:
        """The cursor, so many rows down."""
        if self._items:
            self._at = min(max(0, self._at + by), len(self._items) - 1)
            self._keep_in_sight()
            self.refresh()

    def action_leap(self, screens: int) -> None:
        self.action_move(screens * max(1, self.size.height - 2))

    def action_open(self) -> None:
        if self.current is not None:
            self.post_message(self.Opened())

    def on_key(self, event: events.Key) -> None:
        if not self.typing:
            if event.key != "slash":
                return
            self.typing = True
        elif event.key in ("enter", "escape"):
            self.typing = False
            if event.key == "escape":
                self.search = ""
        elif event.key == "backspace":
            self.search = self.search[:-1]
        elif event.key == "ctrl+u":
            self.search = ""
        elif event.is_printable and event.character:
            self.search += event.character
        else:
            return  # arrows move, Ctrl-C quits
        event.stop()
        event.prevent_default()
        self.post_message(self.Searched())

    def on_paste(self, event: events.Paste) -> None:
        if self.typing:
            self.search += " ".join(event.text.split())
            self.post_message(self.Searched())

    def search_for(self, text: str) -> None:
        """Set it from elsewhere."""
        self.search, self.typing = text, False

    def on_mouse_scroll_down(self, _event: events.MouseScrollDown) -> None:
        self.action_move(3)

    def on_mouse_scroll_up(self, _event: events.MouseScrollUp) -> None:
        self.action_move(-3)

    def on_click(self, event: events.Click) -> None:
        at = self._top + event.y - 1
        if event.y and at < len(self._items):
            again = at == self._at
            self._at = at
            self._keep_in_sight()
            self.refresh()
            if again:
                self.action_open()

    def on_resize(self, _event: events.Resize) -> None:
        self._keep_in_sight()

    def _keep_in_sight(self) -> None:
        room = max(1, self.size.height - 1)
        self._top = max(0, min(self._top, self._at, len(self._items) - room))
        self._top = max(self._top, self._at - room + 1)
        if self.current is not None:
            self._keys[self._page] = self._page.key(self.current)

    def render_line(self, y: int) -> Strip:
        """One line: the heads, a row, or nothing."""
        page, width = self._page, self.size.width
        if not page.columns or width < 4:
            return Strip.blank(width)
        sizes = widths(page.columns, width - 2)
        at = self._top + y - 1
        if y == 0:
            return _strip("  " + line(page.columns, sizes, [column.head for column in page.columns]), HEAD, width)
        if not self._items:
            return _strip(f"  {page.none}", NONE, width) if y == 1 else Strip.blank(width)
        if at >= len(self._items):
            return Strip.blank(width)
        item = self._items[at]
        style = Style.parse(STYLES.get(page.state(item), ""))
        chosen = at == self._at
        text = line(page.columns, sizes, page.cells(item, self._now))
        return _strip(("> " if chosen else "  ") + text, style + Style(reverse=True) if chosen else style, width)


def _strip(text: str, style: Style, width: int) -> Strip:
    parts = [text] if style.reverse else re.split("(━+)", text)
    segments = [Segment(part, DONE if part.startswith("━") else style) for part in parts if part]
    return Strip(segments).adjust_cell_length(width, style if style.reverse else None)
