"""`revolve secret new|show`: make the secret that client and workers share, or say which one is in use."""

from __future__ import annotations

from .flags import Command


def main(argv: list[str]) -> int:
    """Print a fresh secret, or where the one in use comes from and its fingerprint, never the secret itself."""
    command = Command(
        "secret",
        "new: print a fresh secret. show: where the secret in use comes from, and its fingerprint.",
        epilog="Give client and workers the same one: REVOLVE_SECRET, or a file named by REVOLVE_SECRET_FILE with one\n"
        "secret a line, of which the first signs and all are accepted.",
    )
    command.add_argument("action", choices=("new", "show"), metavar="new|show")
    found = command.read(argv)
    from ..wire import secret

    if found.action == "new":
        print(secret.new())
        return 0
    from ..wire.seal import Keyring

    secrets, place = secret.find(None)
    for number, fingerprint in enumerate(Keyring(secrets).fingerprints):
        print(f"{fingerprint}  {'signs' if number == 0 else 'accepted'}  from {place}")
    return 0
