"""A coverage-guided fuzzer (atheris) for every reader of bytes that come from outside.

    pip install atheris
    python tests/fuzz/fuzz.py gearman -runs=1000000 [-seed=1] [further flags of libFuzzer]    # keeps ./corpus

Whatever the bytes are: no exception but those that the reader names, no hang, no memory beyond what was fed, and the
same answer however the stream is cut. A short run of each target is a test (`test_fuzz.py`).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports():
    from revolve_assistant.errors import ProtocolError, Untrusted, UsageError
    from revolve_assistant.protocols.beanstalkd import ConnectionState
    from revolve_assistant.protocols.beanstalkd import commands as beans
    from revolve_assistant.protocols.gearman import admin
    from revolve_assistant.protocols.gearman.admin import AdminState
    from revolve_assistant.protocols.gearman.client_state import ClientState, submission
    from revolve_assistant.protocols.gearman.packets import Decoder
    from revolve_assistant.protocols.gearman.worker_state import WorkerState
    from revolve_assistant.providers.beanstalkd import wrapping
    from revolve_assistant.providers.beanstalkd.firsts import Firsts
    from revolve_assistant.providers.memcached.codec import Parser
    from revolve_assistant.providers.url import Url
    from revolve_assistant.wire import control, envelope, frames
    from revolve_assistant.wire.seal import Keyring, Purpose

KEYS = Keyring(["the secret of the fuzzer"])


def _pieces(data: bytes) -> list[bytes]:
    """The rest of the data, cut where its first bytes say."""
    if not data:
        return []
    count, rest = data[0] % 8, data[1:]
    cuts = sorted(each * len(rest) // 255 for each in rest[:count])
    return [rest[start:end] for start, end in zip([0, *cuts], [*cuts, len(rest)], strict=True)]


def _read(pieces: Sequence[bytes], role: Any) -> tuple[list[Any], str]:
    decoder = Decoder(role, max_body=1 << 16)
    found: list[Any] = []
    try:
        for piece in pieces:
            found += decoder.feed(piece)
        decoder.end()
    except ProtocolError as error:
        return found, str(error)
    return found, ""


def gearman(data: bytes) -> None:
    """Decoders of both roles, cut anywhere; the client's, worker's and admin's states."""
    pieces = _pieces(data)
    whole = b"".join(pieces)
    for role in ("client", "server"):
        assert _read(pieces, role)[0] == _read([whole], role)[0], "a cut changes what was read"
    client, worker, admins = ClientState(max_body=1 << 16), WorkerState(limit=3, max_body=1 << 16), AdminState()
    for number in range(3):
        client.ask(submission(b"f", b"x", unique=b"%d" % number))
    worker.can_do("f")
    for ask in (admin.status(), admin.workers(), admin.version()):
        admins.ask(ask)
    for state in (client, worker, admins):
        try:
            for piece in pieces:
                for each in state.receive(piece):
                    if isinstance(state, WorkerState) and hasattr(each, "workload"):
                        state.complete(each, b"done")
                state.data_to_send()
        except ProtocolError:
            pass


def _answers(pieces: Sequence[bytes]) -> tuple[list[Any], bool]:
    state = ConnectionState(max_body=1 << 16)
    asked = (beans.put(b"x"), beans.reserve(3), beans.reserve(), beans.stats_job(1), beans.peek(1), beans.delete(1))
    for request in (*asked, beans.use("t"), beans.watch("t"), beans.kick(1), beans.list_tubes()):
        state.ask(request)
    found: list[Any] = []
    try:
        for piece in pieces:
            for _, answer in state.receive(piece):
                found.append(answer)
                beans.fields(answer.body)
                beans.items(answer.body)
        if state.error is None:
            state.end()
    except ProtocolError:
        return found, True
    return found, state.error is not None


def beanstalkd(data: bytes) -> None:
    """Answers of beanstalkd, cut anywhere, and what jobs may hold."""
    pieces = _pieces(data)
    whole = b"".join(pieces)
    assert _answers(pieces) == _answers([whole]), "a cut changes what was read"
    for read in (wrapping.read_task, wrapping.read_piece, wrapping.read_note):
        read(whole)
    Firsts(whole).counted(whole)


def memcached(data: bytes) -> None:
    """Answers of memcached, cut anywhere."""
    parser = Parser()
    try:
        for piece in _pieces(data):
            parser.feed(piece)
        parser.take(parser.ready)
    except ProtocolError:
        pass


def wire(data: bytes) -> None:
    """What is read after a seal has opened, and what is looked at before."""
    for read in (envelope.decode, frames.decode, control.decode, envelope.unwrap):
        try:
            read(data)
        except ProtocolError:
            pass
    joiner = frames.Joiner(1 << 16)
    for piece in _pieces(data):
        try:
            joiner.join(bytes([frames.PIECE]) + piece)
        except ProtocolError:
            pass
    try:
        KEYS.open(Purpose.TASK, "a/b", data)
    except Untrusted:
        pass
    else:
        raise AssertionError("a seal opened that nobody made")


def url(data: bytes) -> None:
    """Addresses, which come from people and their configuration."""
    try:
        text = data.decode()
        assert Url.parse(Url.parse(text).reveal()) == Url.parse(text)
    except (UnicodeDecodeError, UsageError):
        pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (gearman, beanstalkd, memcached, wire, url)
}
SEEDS = {
    "gearman": [
        b"\0" + b"\0RES" + struct.pack(">II", kind, len(body)) + body
        for kind, body in ((8, b"H:x:1"), (11, b"H:x:1\0f\0data"), (31, b"H:x:1\0f\0u\0data"), (10, b""), (6, b""),
                           (19, b"CODE\0text"), (13, b"H:x:1\0r"), (20, b"H:x:1\x001\x001\x000\x000"))
    ] + [b"\0status\r\nf\t1\t0\t2\n.\n"],
    "beanstalkd": [
        b"\0INSERTED 1\r\nRESERVED 2 3\r\nabc\r\nTIMED_OUT\r\nOK 9\r\n---\na: 1\n\r\nNOT_FOUND\r\n",
        b"\0cmd-release: 1\ncmd-bury: 2\njob-timeouts: 3\ncurrent-connections: 4\ntotal-connections: 5\nuptime: 6\n",
        b"\0DRAINING\r\nDEADLINE_SOON\r\nOUT_OF_MEMORY\r\n", b"\0BURIED 1\r\n",
        b"\0" + wrapping.task_of_parts("id", "n", (1, 2), 3, 4),
        b"\0" + wrapping.frame_jobs(b"m" * 8, b"w" * 8, 1, b"x", 99)[0],
        b"\0" + wrapping.write_note(wrapping.Note(1, "id", "q", 1, "why", 0.5)),
    ],
    "memcached": [b"\0HD s5 f7\r\n", b"\0VA 3 f0\r\nabc\r\n", b"\0SERVER_ERROR x\r\n"],
    "wire": [
        b"\0" + frames.encode("w.1", ["aa"], [("id", b"12345678", 1, [[1, 0, "n", 0.5, [1]]])]),
        control.encode("i.1", control.SEND, "id", b"12345678", "name", [False, [1]]),
        envelope.wrap("i.1", KEYS.seal(Purpose.EVENT, "a/b", b"x")),
    ],
    "url": [b"gearman://u:p@h:1,[::1]:2/a?x=1", b"file:///dir", b"sqlite:///x.db"],
}  # fmt: skip


def main() -> None:
    name, *flags = sys.argv[1:]
    corpus = Path("corpus") / name  # what was found to be worth keeping, for the next run; libFuzzer ends by _exit
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], "-timeout=10", "-rss_limit_mb=1024", *flags, str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
