"""Nobody, or somebody else, where a memcached should be."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from revolve_assistant.errors import ProtocolError, Unreachable, UsageError
from revolve_assistant.providers import registry
from revolve_assistant.testing.servers import Gearmand, Memcached, free_port


def test_no_server_at_all_is_named():
    port = free_port()
    with pytest.raises(Unreachable, match=f"memcached at 127.0.0.1:{port}: connection refused"):
        registry.messenger(f"memcached://127.0.0.1:{port}/n").open()
    with pytest.raises(Unreachable, match=r"memcached at nowhere\.invalid:11211: the host is not known"):
        registry.messenger("memcached://nowhere.invalid/n").open()


def test_the_first_address_that_accepts_is_taken(need, monkeypatch):
    need("memcached")
    real = socket.getaddrinfo

    def both(host, port, **options):
        v6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))
        return [v6, *real("127.0.0.1", port, **options)]

    with Memcached() as server:
        monkeypatch.setattr(socket, "getaddrinfo", both)
        messenger = registry.messenger(f"memcached://localhost:{server.port}/n")
        messenger.open()
        messenger.close()


def test_a_gearmand_on_the_port_is_no_memcached(need):
    need("gearmand")
    with (
        Gearmand() as other,
        pytest.raises(ProtocolError, match=f"what answers at 127.0.0.1:{other.port} is not memcac"),
    ):
        registry.messenger(f"memcached://127.0.0.1:{other.port}/n").open()


@contextlib.contextmanager
def stranger(answer: bytes | None) -> Iterator[int]:
    """A server that says this to whatever it is asked; None: it says nothing, b"": it hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    one, _ = listener.accept()
                    with one:
                        one.settimeout(10)
                        while answer is None and not done.is_set() and one.recv(1000):
                            pass
                        while answer and one.recv(1000):
                            one.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        done.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n", ProtocolError, "not memcached: an answer reads b'HTTP/1.1"),
        (b"-ERR unknown command 'version'\r\n", ProtocolError, "not memcached"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ProtocolError, "not memcached"),
        (b"\x15\x03\x01\x00\x02\x02", ProtocolError, "not memcached"),  # a TLS alert
        (b"\0" * 5000, ProtocolError, "not memcached"),
        (b"VERSION 1.6.18\r\nVERSION 1.6.18\r\n", ProtocolError, "more answers than questions"),
        (b"VERSION 1.5.22\r\n", UsageError, r"is 1\.5\.22; 1\.6 or later is needed"),
        (b"", Unreachable, "is it memcached"),
        (None, Unreachable, "does not answer within 0.3 s; is it memcached"),
    ],
)
def test_what_else_may_answer(answer, error, words):
    with stranger(answer) as port, pytest.raises(error, match=words):
        registry.messenger(f"memcached://127.0.0.1:{port}/n?timeout=0.3").open()
