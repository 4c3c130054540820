"""Arguments of messages and events on their way: msgpack where it is type-exact, pickle for all else."""

from __future__ import annotations

from typing import Any

from ..running.running import Message, is_plain


def pack_args(args: tuple[Any, ...]) -> list[Any]:
    """What `unpack_args` gives back as the same tuple. Raises `NotCarriable`."""
    if is_plain(list(args)) and not _wide(args):
        return [False, list(args)]
    import pickle

    from .carry import pack
    from .share import by_value

    with by_value():
        payload, buffers = pack(args)
        return [True, pickle.dumps(args, 5) if buffers else payload]


def unpack_args(packed: list[Any]) -> tuple[Any, ...]:
    if packed[0]:
        import pickle

        value: tuple[Any, ...] = pickle.loads(packed[1])
        return value
    return tuple(packed[1])


def unpack_message(name: str, packed: list[Any]) -> Message | None:
    """A message to a task; None, and logged, if it cannot be rebuilt here."""
    try:
        return Message(name, unpack_args(packed))
    except Exception as error:  # its classes' own code
        import logging

        text = "message %r to a task cannot be rebuilt here: %s: %s"
        logging.getLogger("revolve_assistant").error(text, name, type(error).__name__, error)
        return None


def _wide(value: Any) -> bool:
    """Whether it holds what msgpack cannot: integers past 64 bits, lone surrogates."""
    import msgspec

    try:
        msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError):
        return True
    return False
