from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from revolve_assistant.errors import UsageError
from revolve_assistant.testing import Door


class Echo:
    """A server that sends back what it gets, and remembers it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.got = bytearray()
        self.reads: list[int] = []
        self.ends: list[str] = []
        self.changed = threading.Condition()
        self.closing = False
        self.open: list[socket.socket] = []
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self) -> None:
        while True:
            link, _ = self.listener.accept()
            if self.closing:
                link.close()
                return
            self.open.append(link)
            self.threads.append(threading.Thread(target=self.serve, args=[link], daemon=True))
            self.threads[-1].start()

    def serve(self, link: socket.socket) -> None:
        end = "end"
        with link:
            try:
                while data := link.recv(65536):
                    with self.changed:
                        self.got += data
                        self.reads.append(len(data))
                        self.changed.notify_all()
                    link.sendall(data)
            except OSError as error:
                end = type(error).__name__
        with self.changed:
            self.ends.append(end)
            self.changed.notify_all()

    def wait_end(self) -> str:
        with self.changed:
            assert self.changed.wait_for(lambda: self.ends, 10)
            return self.ends[0]

    def close(self) -> None:
        if self.listener.fileno() >= 0:
            self.closing = True
            socket.create_connection(("127.0.0.1", self.port)).close()  # so that accept returns, on every system
            self.threads[0].join(10)
            self.listener.close()
        for link in self.open:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(10)


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def door(echo: Echo) -> Iterator[Door]:
    with Door(echo.port) as door:
        yield door


def connect(door: Door) -> socket.socket:
    return socket.create_connection((door.host, door.port), timeout=10)


def receive(link: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        data = link.recv(65536)
        if not data:
            break
        found += data
    return bytes(found)


def test_carries_both_ways_and_ends_cleanly(door: Door, echo: Echo) -> None:
    payload = os.urandom(3_000_000)
    with connect(door) as link:

        def send() -> None:
            link.sendall(payload)
            link.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        assert receive(link, len(payload)) == payload
        assert link.recv(1) == b""
        sender.join()
    assert echo.wait_end() == "end"
    assert door.wait_for(lambda door: door.connections == 0)
    assert door.accepted == 1
    assert door.carried("to_server") == door.carried("to_client") == len(payload)


def test_shut_refuses_and_open_lets_in(door: Door) -> None:
    with connect(door) as before:
        door.shut()
        with pytest.raises(ConnectionRefusedError):
            connect(door)
        before.sendall(b"still here")
        assert receive(before, 10) == b"still here"
        door.open()
        with connect(door) as after:
            after.sendall(b"hello")
            assert receive(after, 5) == b"hello"


def test_no_server_resets(echo: Echo) -> None:
    echo.close()
    with Door(echo.port) as door, pytest.raises(ConnectionResetError), connect(door) as link:
        link.recv(1)


def test_cut_resets_both_sides(door: Door, echo: Echo) -> None:
    with connect(door) as link:
        link.sendall(b"x")
        assert receive(link, 1) == b"x"
        assert door.cut() == 1
        assert door.cut() == 0
        with pytest.raises(ConnectionResetError):
            link.recv(1)
    assert echo.wait_end() == "ConnectionResetError"


def test_cut_after_bytes_to_the_client(door: Door) -> None:
    with connect(door) as link:
        link.sendall(b"warm")
        assert receive(link, 4) == b"warm"
        door.cut_after(7, "to_client")
        link.sendall(b"0123456789")
        assert receive(link, 7) == b"0123456"
        with pytest.raises(ConnectionResetError):
            link.recv(1)
    with connect(door) as link:  # once only
        link.sendall(b"0123456789")
        assert receive(link, 10) == b"0123456789"


def test_cut_after_bytes_to_the_server(door: Door, echo: Echo) -> None:
    door.cut_after(3, "to_server")
    with connect(door) as link:
        link.sendall(b"abcdef")
        assert echo.wait_end() == "ConnectionResetError"
    assert echo.got == b"abc"


def test_swallow_is_silence_until_healed(door: Door, echo: Echo) -> None:
    with connect(door) as link:
        link.sendall(b"a")
        assert receive(link, 1) == b"a"
        door.swallow()
        link.sendall(b"lost")
        link.settimeout(0.2)
        with pytest.raises(TimeoutError):
            link.recv(1)
        door.heal()
        link.settimeout(10)
        link.sendall(b"b")
        assert receive(link, 1) == b"b"
    assert echo.wait_end() == "end"
    assert echo.got == b"ab"


def test_swallow_hides_the_end(door: Door, echo: Echo) -> None:
    with connect(door) as link:
        link.sendall(b"a")
        assert receive(link, 1) == b"a"
        door.swallow("to_server")
    with echo.changed:
        assert not echo.changed.wait_for(lambda: echo.ends, 0.2)
    door.cut()
    assert echo.wait_end() == "ConnectionResetError"


def test_delay(door: Door) -> None:
    door.delay(0.15)
    with connect(door) as link:
        began = time.monotonic()
        link.sendall(b"ping")
        assert receive(link, 4) == b"ping"
        assert 0.3 <= time.monotonic() - began < 5


def test_throttle(door: Door) -> None:
    door.throttle(100_000, "to_client")
    with connect(door) as link:
        began = time.monotonic()
        link.sendall(bytes(50_000))
        assert receive(link, 50_000) == bytes(50_000)
        assert 0.35 <= time.monotonic() - began < 5


def test_slices(door: Door, echo: Echo) -> None:
    door.slice(1, "to_server", pause=0.002)
    with connect(door) as link:
        payload = bytes(range(200))
        link.sendall(payload)
        assert receive(link, 200) == payload
    assert len(echo.reads) > 100  # the receiver may be late for some


@pytest.mark.parametrize("index", [0, 5, 9])
def test_corrupts_one_byte(door: Door, index: int) -> None:
    with connect(door) as link:
        link.sendall(b"warm")
        assert receive(link, 4) == b"warm"
        door.corrupt(index, "to_client")
        link.sendall(bytes(10))
        expected = bytearray(10)
        expected[index] = 0xFF
        assert receive(link, 10) == expected
        link.sendall(bytes(10))
        assert receive(link, 10) == bytes(10)


def test_a_receiver_that_does_not_read_stops_the_sender(door: Door) -> None:
    """Memory stays bounded."""
    with connect(door) as link:
        link.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 200_000_000:
                sent += link.send(bytes(1_000_000))
        assert sent < 100_000_000
        link.settimeout(10)
        assert len(receive(link, sent)) == sent


def test_leaves_nothing_behind(echo: Echo) -> None:
    def descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    threads, files = threading.active_count(), descriptors()
    for _ in range(5):
        door = Door(echo.port)
        links = [connect(door) for _ in range(3)]
        assert door.wait_for(lambda door: door.connections == 3)
        door.close()
        door.close()
        for link in links:
            with pytest.raises(ConnectionResetError):
                link.recv(1)
            link.close()
        with pytest.raises(ConnectionRefusedError):
            connect(door)
        with pytest.raises(UsageError):
            door.cut()
    with echo.changed:
        assert echo.changed.wait_for(lambda: len(echo.ends) == 15, 10)
    for thread in echo.threads[1:]:
        thread.join(10)
    echo.open.clear()
    assert descriptors() == files
    assert threading.active_count() == threads


def test_this_machine_only() -> None:
    with pytest.raises(UsageError, match="this machine only"):
        Door(80, "192.0.2.1")
