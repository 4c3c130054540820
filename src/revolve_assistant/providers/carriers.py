"""The pair that a remote task travels on: what takes it there (a Queue, or an Engine that is elsewhere), and a
Messenger that brings events back.

Client and Worker choose them here alike, so that the same words on both sides mean the same place.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from msgspec.structs import replace

from ..engine import Engine, Queue
from ..errors import UsageError
from ..messenger import Messenger
from ..wire.named import NamedMessenger, public_address
from ..wire.seal import Keyring
from ..wire.secret import keyring
from . import registry
from .url import Url

_NAMED_BY_PATH = frozenset({"gearman", "memcached", "beanstalkd", "ironmq"})  # schemes whose path is the namespace
_NAMED_BY_OPTION = frozenset(
    {"redis", "rediss", "redis+unix", "redis+sentinel", "sqlite", "ironworker"}
)  # whose option `namespace` is it
_NAMESPACE = "assistant"


class Carriers(NamedTuple):
    """What a remote task travels on. `queue` is a Queue, or an Engine that runs tasks elsewhere. `place` names its
    address for people, without a password; `natural` is the messenger's as `wire.named` has it, "" for an object."""

    queue: Any
    messenger: Messenger
    keys: Keyring
    namespace: str
    place: str
    natural: str


def is_queue(url: Any) -> bool:
    """Whether this is a Queue, or an address of one. Imports the provider. Raises as `registry.find`."""
    if isinstance(url, Queue):
        return True
    if not isinstance(url, (str, Url)):
        return False
    found = getattr(registry.find(Url.parse(url).scheme), "Queue", None)
    return found is not None and not getattr(found, "__abstractmethods__", None)


def is_elsewhere(url: Any) -> bool:
    """Whether this is a Queue, or another Engine that runs tasks elsewhere, or an address of one. As `is_queue`."""
    if isinstance(url, Engine):
        return not url.traits.local
    if not isinstance(url, (str, Url)):
        return False
    if is_queue(url):
        return True
    found = getattr(registry.find(Url.parse(url).scheme), "Engine", None)
    abstract = found is None or getattr(found, "__abstractmethods__", None)
    return not abstract and found is not None and not found.traits.local


def choose(
    url: str | Url | Engine,
    messenger: str | Url | Messenger | NamedMessenger | None,
    secret: Any,
    namespace: str = _NAMESPACE,
    **options: Any,
) -> Carriers:
    """The carriers, not opened. Raises `UsageError`, `UnknownProvider`, `ProviderMissing`, `Unsupported`."""
    urls: list[Url] = []
    if isinstance(url, Engine):
        if options:
            raise UsageError(f"a queue object brings its own settings: leave {', '.join(options)} out")
        queue, address = url, None
    else:
        address, namespace = _named(Url.parse(url), namespace)
        urls.append(address)
        made = registry.engine(address, **options)
        if made.traits.local:
            raise UsageError(f"{address} is no queue")
        queue = made
    carrier = messenger if messenger is not None else os.environ.get("REVOLVE_MESSENGER") or None
    if carrier is None:
        natural = queue.traits.messenger
        if natural is None:
            raise UsageError(f"{address or queue} brings no messenger: say messenger=, such as 'memcached://127.0.0.1'")
        same = address is not None and registry.find(Url.parse(natural).scheme) is registry.find(address.scheme)
        carrier = address if same and address is not None else natural
    place = ""
    if isinstance(carrier, NamedMessenger):
        place, carrier = carrier.address, carrier.fresh()
    elif not isinstance(carrier, Messenger):
        there, _ = _named(Url.parse(carrier), namespace)
        urls.append(there)
        place, carrier = public_address(there), registry.messenger(there)
    return Carriers(queue, carrier, keyring(secret, *urls), namespace, str(address or queue), place)


def _named(address: Url, namespace: str) -> tuple[Url, str]:
    """An address that says its namespace where it has to, and the namespace that holds; its own goes first."""
    if address.scheme in _NAMED_BY_PATH:
        return address, address.path or namespace
    if address.scheme in _NAMED_BY_OPTION:
        namespace = address.options.get("namespace") or namespace
        if namespace != _NAMESPACE:
            address = address.with_options({"namespace": namespace})
    return address, namespace


def apart(address: Url, namespace: str) -> Url | None:
    """The same place in another namespace; None: the provider has none that could be told by an address."""
    if address.scheme in _NAMED_BY_PATH:
        return replace(address, path=namespace)
    if address.scheme in _NAMED_BY_OPTION:
        return address.with_options({"namespace": namespace})
    return None
