"""Connections on which little is said: they are pinged, and not given up while the server answers."""

from revolve_assistant.providers import lines
from revolve_assistant.providers.gearman import Messenger
from revolve_assistant.providers.url import Url
from revolve_assistant.testing import Door
from revolve_assistant.testing.servers import Gearmand


def test_a_reader_that_forgot_and_then_waits_keeps_its_connection(need, monkeypatch):
    """What is completed is not answered: the ping long after it must not count as asked at that time."""
    monkeypatch.setattr(lines, "HEARTBEAT", 2.0)  # more than the time-out, as it is by default
    need("gearmand")
    with Gearmand() as server, Door(server.port) as door:
        messenger = Messenger.from_url(Url.parse(f"gearman://127.0.0.1:{door.port}/idle?timeout=1"))
        messenger.open()
        try:
            messenger.write([("a", b"one")])
            (message,) = messenger.read({"a": b""}, limit=10, wait=5.0).messages
            messenger.forget("a", message.cursor)
            before = door.accepted
            assert not messenger.read({"a": message.cursor}, limit=10, wait=3.5).messages
            assert door.accepted == before
        finally:
            messenger.close()
