"""Arguments of messages and events on their way: msgpack where it is type-exact, pickle for all else."""

from __future__ import annotations

from typing import Any

from ..running.running import is_plain


def pack_args(args: tuple[Any, ...]) -> list[Any]:
    """What `unpack_args` gives back as the same tuple. Raises `NotCarriable`."""
    if is_plain(list(args)) and not _wide(args):
        return [False, list(args)]
    import pickle

    from .carry import pack

    payload, buffers = pack(args)
    return [True, pickle.dumps(args, 5) if buffers else payload]


def unpack_args(packed: list[Any]) -> tuple[Any, ...]:
    if packed[0]:
        import pickle

        value: tuple[Any, ...] = pickle.loads(packed[1])
        return value
    return tuple(packed[1])


def _wide(value: Any) -> bool:
    """Whether it holds what msgpack cannot: integers past 64 bits, lone surrogates."""
    import msgspec

    try:
        msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError):
        return True
    return False
