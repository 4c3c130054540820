"""A port of a worker that answers HTTP, from threads that are this library's own: no reason for `fork://` to refuse."""

from __future__ import annotations

import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..errors import UsageError
from ..pool.threads import OurThread


class Port:
    """Serves from now until `close`. `number`: 0 takes a free one. Raises `UsageError` if it cannot be bound."""

    def __init__(self, what: str, host: str, number: int, handler: type[BaseHTTPRequestHandler]) -> None:
        name = f"revolve-{what}"

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

            def process_request(self, request: Any, client_address: Any) -> None:
                OurThread(self.process_request_thread, name, (request, client_address)).start()

        try:
            self._server = Server((host, number), handler)
        except (OSError, OverflowError) as error:
            raise UsageError(f"the {what} port {host}:{number} cannot be opened: {error}") from None
        self.port = int(self._server.server_address[1])
        self._thread = OurThread(self._server.serve_forever, name)
        self._thread.start()

    def close(self) -> None:
        """Accept no more. Blocks until the thread has ended."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
