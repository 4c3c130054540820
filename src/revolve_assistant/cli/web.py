"""`revolve web`: all tasks, workers and queues of a deployment in the browser, live."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import Unsupported
from .flags import Command, count, say
from .reach import add_flags, interrupts, open_client

if TYPE_CHECKING:
    import argparse

    from ..caller.client import Client

EPILOG = """\
It listens on this machine alone. With another --host it needs a token, which is said once in the address
(http://host:8787/?token=…), or typed into the page. Arguments, results, errors and what tasks say by names of
their own are hidden unless --show allows them.

exit codes: 0, 1 no server answers, or the port is taken, 2 the call was wrong, 128 + the signal."""


def main(argv: list[str]) -> int:
    """Serve until a signal."""
    command = Command("web", "Show all tasks, workers and queues in the browser, live.",
                      usage="revolve web [flags] [URL]", epilog=EPILOG)  # fmt: skip
    command.add_argument("place", metavar="URL", nargs="?", help="the queue (default: --url, REVOLVE_URL)")
    command.flag("--host", default="127.0.0.1", metavar="NAME", help="the address to listen at (default: 127.0.0.1)")
    command.flag("--port", type=count, default=8787, metavar="N", help="the port, 0: a free one (default: 8787)")
    command.flag("--token", metavar="TEXT", help="what a browser has to say; better said in REVOLVE_WEB_TOKEN")
    command.flag("--show", metavar="WHAT", default="",
                 help="what else to show: arguments,results,errors,events or all")  # fmt: skip
    command.flag("--allow-host", action="append", default=[], metavar="NAME",
                 help="a name by which browsers may call this server, again for more")  # fmt: skip
    command.flag("--open", action="store_true", help="open it in a browser")
    add_flags(command)
    found = command.read(argv)
    if found.place:
        found.url = found.place
    return serve(found, found.allow_host)


def _meet(client: Client) -> None:
    """No server, no pages. Raises `Unreachable`, `Unsupported`."""
    engine = client._engine
    if engine.traits.manages:
        client.counts()
    elif not engine.messenger.traits.fanout:
        raise Unsupported(
            f"{engine.place} cannot be looked into, and what its tasks say reaches their callers alone: have workers "
            "and this program use a messenger that many can read, such as --messenger redis://… or memcached://…"
        )


def serve(found: argparse.Namespace, hosts: Sequence[str]) -> int:
    """Serve the pages of the queue that the flags name, until a signal. Raises as `Serving`."""
    with open_client(found) as client:
        from ..views.web.serving import Serving

        _meet(client)
        serving = Serving(client, found.host, found.port, show=found.show, token=found.token or None, hosts=hosts)
        say(f"revolve web: {client._engine.place}, namespace {client.namespace}: {serving.url} (Ctrl-C ends it)")
        try:
            with interrupts():
                serving.start()
                if found.open:
                    import webbrowser

                    webbrowser.open(serving.url)
                while serving.alive:
                    serving.wait(3600.0)
                return 1
        except KeyboardInterrupt as stop:
            return 128 + (stop.args[0] if stop.args else 2)
        finally:
            serving.close()
            sys.stderr.flush()
