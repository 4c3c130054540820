"""`Make`: the factory of the original library: builds messengers, tasks, clients and workers from configurations.

    make.client({"provider": "gearman", "gearman": {"namespace": "assistant", "servers": [("127.0.0.1", 4730)]}})
    make.client("gearman://127.0.0.1:4730/assistant")          # an address says the same in one line

A configuration is turned into an address, and that into the object, so both spellings build the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..providers import registry
from ..providers.url import Url, nearest
from ..wire.named import NamedMessenger, public_address
from .options import PLAIN, Options, merge, options_of

if TYPE_CHECKING:
    from ..worker.worker import Worker
    from .driven import DrivenClient, HandedTask

Config = str | Mapping[str, Any]

POOLS = ("process", "thread", "fork", "inline")
_SERVERS = ("servers", "hosts", "server", "host")
_KINDS = ("messenger", "task", "worker", "client")


class Make:
    """Builds the objects of the original's form. Thread-safe.

    Providers: `gearman`, `memcached`, `filesystem`, `beanstalkd`, `redis`, … and `process`, `thread`, `fork`, `memory`.
    `swap(name, factory)` puts another provider in the place of one. Every method raises `UsageError` for a
    configuration that is wrong, `UnknownProvider`, `ProviderMissing`, and does no I/O.
    """

    def __init__(self) -> None:
        self._swapped: dict[str, Callable[..., Any]] = {}

    def swap(self, name: str, factory: Callable[..., Any]) -> Make:
        """Have `factory(kind, settings)` build what provider `name` is asked for; returns this Make.

        `kind` is `messenger`, `task`, `worker` or `client`, `settings` the provider's part of the configuration. It
        returns the object, or an address or configuration to build in its place.
        """
        if not callable(factory):
            raise UsageError(f"swap({name!r}, …) takes a callable (kind, settings) -> object, not {factory!r:.100}")
        self._swapped[name] = factory
        return self

    def messenger(self, config: Config) -> NamedMessenger:
        """A messenger to capture in callbacks, to write to from tasks, and to read with `client.read(messenger)`."""
        swapped = self._swap("messenger", config)
        if isinstance(swapped, NamedMessenger):
            return swapped
        return messenger_of(swapped)

    def task(
        self, config: Mapping[str, Any] | None = None, /, callback: Callable[[Any], Any] | None = None, **options: Any
    ) -> HandedTask:
        """A task that is not handed over yet: `callback(task)` will be called with the `Running`, somewhere else.

        The configuration is `{"provider": …, "callback": …}`, and may hold the task's options: `retries`, `timeout` ….
        """
        from .driven import HandedTask

        words = dict(config or {})
        provider = words.pop("provider", None)
        callback = words.pop("callback", callback)
        words = {**words, **options}
        if callback is None or not callable(callback):
            raise UsageError(f"a task needs a callback that can be called with the running task, not {callback!r:.100}")
        if provider is not None:
            factory = self._swapped.get(provider)
            if factory is not None:
                made = factory("task", {"callback": callback, **words})
                if isinstance(made, HandedTask):
                    return made
            elif provider not in POOLS:
                registry.find(provider)
            settings = words.pop(str(provider), None)
            if isinstance(settings, Mapping):
                words = {
                    **words,
                    **{name: value for name, value in settings.items() if name in Options.__struct_fields__},
                }
        chosen = merge(options_of(callback) or PLAIN, **words)
        return HandedTask(provider, callback, chosen)

    def client(self, config: Config, **options: Any) -> DrivenClient:
        """A client that is driven by hand: `handle(task)`, `read(messenger)`, `has_completed(task)`."""
        from .driven import DrivenClient

        swapped = self._swap("client", config)
        if isinstance(swapped, DrivenClient):
            return swapped
        name, url, settings = address_of(swapped, "client")
        messenger = settings.pop("messenger", None)
        if messenger is not None and not isinstance(messenger, NamedMessenger):
            messenger = self.messenger(messenger)
        return DrivenClient(name, url, messenger=messenger, **settings, **options)

    def worker(self, config: Config, **options: Any) -> Worker:
        """A worker: `run()` serves until SIGTERM or SIGINT. Options as of `Worker`, in the configuration or here."""
        from ..worker.worker import Worker

        swapped = self._swap("worker", config)
        if isinstance(swapped, Worker):
            return swapped
        name, url, settings = address_of(swapped, "worker")
        if name in POOLS:
            raise UsageError(f"{name} runs tasks in the client's own process and its children: it needs no worker")
        settings.update(options)
        for word in ("messenger", "messengers"):
            if word in settings and not isinstance(settings[word], str):
                given = settings[word]
                many = given if isinstance(given, (list, tuple)) else [given]
                made = [each if isinstance(each, (str, NamedMessenger)) else self.messenger(each) for each in many]
                settings[word] = made if word == "messengers" else made[0]
        return Worker(url, **settings)

    def _swap(self, kind: str, config: Config) -> Any:
        """The configuration itself, or what a swapped provider makes of it."""
        name = Url.parse(config).scheme if isinstance(config, str) and "://" in config else None
        if isinstance(config, Mapping):
            name = config.get("provider")
        factory = self._swapped.get(str(name))
        if factory is None:
            return config
        settings = config.get(str(name), {}) if isinstance(config, Mapping) else {"url": config}
        return factory(kind, settings)


def messenger_of(config: Config) -> NamedMessenger:
    """The messenger that a configuration or address names. Raises as `Make`."""
    name, url, settings = address_of(config, "messenger")
    settings.pop("secret", None)  # what signs is the client's and the worker's affair
    if settings:
        raise UsageError(f"messenger {name}: unknown setting {next(iter(settings))!r}")
    found = getattr(registry.find(name), "Messenger", None)
    if found is None or getattr(found, "__abstractmethods__", None):
        from ..errors import Unsupported

        raise Unsupported(f"{name} carries no messages: it has no Messenger")
    return NamedMessenger(name, public_address(url), lambda: registry.messenger(url))


def address_of(config: Config, kind: str) -> tuple[str, Url, dict[str, Any]]:
    """`(provider, address, further settings)` of a configuration. Raises `UsageError`, which shows no password."""
    if isinstance(config, str):
        url = Url.parse(config if "://" in config else f"{config}://")
        return url.scheme, url, {}
    if not isinstance(config, Mapping):
        raise UsageError(f"make.{kind}() takes a configuration or an address, not {type(config).__name__}")
    provider = config.get("provider")
    if not isinstance(provider, str) or not provider:
        raise UsageError(f'make.{kind}() needs a provider: {{"provider": "gearman", "gearman": {{…}}}}')
    settings = config.get(provider, {})
    if not isinstance(settings, Mapping):
        raise UsageError(f"make.{kind}(): the settings of {provider} must be a mapping, not {type(settings).__name__}")
    for word in config:
        if word not in ("provider", provider, "messenger", "messengers", "secret"):
            raise UsageError(f"make.{kind}(): unknown setting {word!r}{nearest(str(word), {'provider', provider})}")
    rest = {word: value for word, value in config.items() if word not in ("provider", provider)}
    registry.find(provider)
    url, more = _url(provider, dict(settings), kind)
    return provider, url, {**more, **rest}


_OURS = {  # settings that are not the provider's, by what is made
    "client": {"secret", "max_pending", "patience", "messenger"},
    "worker": {
        *("secret", "concurrency", "pool", "queues", "expose", "initializer", "initargs", "grace"),
        *("unknown_after", "max_tasks_per_child", "memory_limit", "messenger", "messengers"),
    },
    "messenger": {"secret"},
}


def _url(provider: str, settings: dict[str, Any], kind: str) -> tuple[Url, dict[str, Any]]:
    ours = {word: settings.pop(word) for word in list(settings) if word in _OURS.get(kind, ())}
    if "url" in settings:
        return Url.parse(settings["url"]), ours
    hosts: tuple[tuple[str, int | None], ...] = ()
    for word in _SERVERS:
        if word in settings:
            hosts = _hosts(provider, settings.pop(word))
            break
    port = settings.pop("port", None)
    if port is not None:
        hosts = tuple((host, own or int(port)) for host, own in hosts or (("127.0.0.1", None),))
    path = ""
    for word in ("namespace", "path", "directory", "folder", "name"):
        if word in settings:
            path = str(settings.pop(word))
            break
    if provider in ("filesystem", "file") and path and not path.startswith("/"):
        import os

        path = os.path.abspath(path)
    user, password = settings.pop("user", None), settings.pop("password", None)
    passed = {"max_workers", "initializer", "initargs"} if provider in POOLS else set()
    ours.update({word: settings.pop(word) for word in list(settings) if word in passed})
    url = Url(
        scheme=provider,
        user=user,
        password=password,
        hosts=hosts,
        path=path,
        options={str(word): _plain(value) for word, value in settings.items()},
    )
    return url, ours


def _plain(value: Any) -> str:
    return ("1" if value else "0") if isinstance(value, bool) else str(value)


def _hosts(provider: str, servers: Any) -> tuple[tuple[str, int | None], ...]:
    """`[("127.0.0.1", 4730), "other:4730", {"host": …, "port": …}]`, or one of these alone."""
    lone = isinstance(servers, (str, Mapping)) or (
        isinstance(servers, tuple) and len(servers) == 2 and isinstance(servers[1], int)
    )
    many: Sequence[Any] = [servers] if lone else list(servers)
    found: list[tuple[str, int | None]] = []
    for server in many:
        if isinstance(server, str):
            found += Url.parse(f"{provider}://{server}").hosts
        elif isinstance(server, Mapping):
            found.append((str(server.get("host", "127.0.0.1")), server.get("port")))
        elif isinstance(server, (tuple, list)) and 1 <= len(server) <= 2:
            found.append((str(server[0]), int(server[1]) if len(server) > 1 and server[1] is not None else None))
        else:
            raise UsageError(f"{provider}: servers must be a list of (host, port), not {server!r:.100}")
    return tuple(found)
