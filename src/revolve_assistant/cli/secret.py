"""`revolve secret new|show`: make a secret to sign with, or tell which one is used, without showing it."""

from __future__ import annotations

import os
import sys

from .flags import Command


def main(argv: list[str]) -> int:
    """Print a fresh secret, or the fingerprints of ours. 1 when there is none yet, 2 when it cannot be used."""
    parser = Command(
        "secret",
        "Make a secret, or show which one is used for a URL: its fingerprint, never itself.",
        usage="revolve secret new\n       revolve secret show [URL …]",
        epilog="Set REVOLVE_SECRET, or REVOLVE_SECRET_FILE, to the same secret for callers and workers. "
        "One a line for several:\nthe first one signs, all are accepted.",
    )
    parser.add_argument(
        "what", metavar="new|show", choices=["new", "show"], help="new: print a fresh secret; show: print fingerprints"
    )
    parser.add_argument(
        "url", metavar="URL", nargs="*", default=[], help="show the secret for these; default: REVOLVE_URL"
    )
    args = parser.read(argv)
    if args.what == "new":
        if args.url:
            parser.error("`new` takes no URL")
        return _new()
    return _show(args.url)


def _new() -> int:
    from ..wire.secret import new

    print(new())
    if sys.stdout.isatty():
        print("Set REVOLVE_SECRET to it for callers and workers; it will not be shown again.", file=sys.stderr)
    return 0


def _show(words: list[str]) -> int:
    from ..providers.url import Url
    from ..wire.secret import find, ring

    default = os.environ.get("REVOLVE_URL")
    urls = [Url.parse(word) for word in words or ([default] if default else [])]
    held, source = find(None, *urls, make=False)
    if not held.secrets:
        print(f"revolve secret: none yet; {source} is made at first use", file=sys.stderr)
        return 1
    first, *others = ring(held, source).fingerprints
    print(f"from     {source}")
    print(f"signs    {first}")
    for name in others:
        print(f"accepts  {name}")
    return 0
