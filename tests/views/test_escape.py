"""Nothing that a stranger wrote acts on the terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revolve_assistant.views.escape import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("plain text, Ünïcödé 🙂 中文 עברית", "plain text, Ünïcödé 🙂 中文 עברית"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("a\x00\x7f\x85", "a\\x00\\x7f\\x85"),
        ("a\tb\r\nc\n", "a\\tb\\r\\nc\\n"),
        ("user\u202etxt.exe", "user\\u202etxt.exe"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("\udcff", "\\udcff"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_keep_newlines() -> None:
    assert printable("a\tb\r\nc\rd\n\x1b[1m", keep_newlines=True) == "a\tb\nc\\rd\n\\x1b[1m"


@given(st.text(), st.booleans())
def test_no_control_character_comes_through(text: str, keep: bool) -> None:
    shown = printable(text, keep)
    rest = shown.replace("\n", "").replace("\t", "") if keep else shown
    assert not {unicodedata.category(char) for char in rest} & {"Cc", "Cs", "Zl", "Zp"}
    assert not set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069") & set(shown)
    shown.encode()
    assert printable(shown, keep) == shown
