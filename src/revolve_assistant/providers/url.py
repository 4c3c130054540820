"""Addresses of engines and messengers: `scheme://[user[:password]@]host[:port][,host2…]/path?option=value`.

The path starts after the one slash that ends the hosts, so `gearman://host/assistant` has the path `assistant`,
`sqlite:///relative` is relative and `sqlite:////absolute` absolute. Where a path can only be absolute (`file`,
`filesystem`, and every `…+unix`) the slash belongs to it: `file:///dir` has the path `/dir`.

A password is in `Url.password` and in `Url.reveal()`, and nowhere else: not in `repr`, `str` or an error. For that
reason no error quotes anything that stands before the path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, overload

import msgspec

from ..errors import UsageError

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]*\Z")
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_SECRET = re.compile(r"(pass(word|wd|phrase)?|secret|token|(api|access|private|secret)_?key|credentials?)\Z", re.I)
_TRUE = frozenset({"", "1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class Url(msgspec.Struct, frozen=True):
    """A parsed address. Immutable (do not write into `options`), so any thread may share it."""

    scheme: str
    user: str | None = None
    password: str | None = None
    hosts: tuple[tuple[str, int | None], ...] = ()
    path: str = ""
    options: Mapping[str, str] = {}

    @classmethod
    def parse(cls, text: str | Url) -> Url:
        """Read an address; a `Url` is returned as it is. Raises `UsageError`, which never quotes a password."""
        if isinstance(text, Url):
            return text
        scheme, mark, rest = text.partition("://")
        if not mark or not _SCHEME.match(scheme):
            if _SCHEME.match(text):
                raise UsageError(f"{text!r} is no URL: write '{text.lower()}://'")
            raise UsageError("no URL: it starts with a scheme, as in 'redis://localhost' or 'sqlite:///file.db'")
        scheme = scheme.lower()
        if _CONTROL.search(rest):
            _reject(scheme, "holds a space or control character; write it percent-encoded")
        if "#" in rest:
            _reject(scheme, "holds a '#'; write it as %23")
        rest, _, query = rest.partition("?")
        authority, slash, raw_path = rest.partition("/")
        credentials, _, places = authority.rpartition("@")
        if ":" in authority and "@" in raw_path + query:
            # Most likely an unescaped '/' or '?' inside a password, of which we would otherwise print a part.
            _reject(scheme, "has an '@' after its hosts; write it as %40, and '/' or '?' in a password as %2F or %3F")
        user, colon, password = credentials.partition(":")
        if slash and _always_absolute(scheme):
            raw_path = "/" + raw_path
        return cls(
            scheme=scheme,
            user=_decode(scheme, user) if user else None,
            password=_decode(scheme, password) if colon else None,
            hosts=tuple(_host(scheme, place) for place in places.split(",")) if places else (),
            path=_decode(scheme, raw_path),
            options=_options(scheme, query),
        )

    @property
    def host(self) -> str:
        """The first host, or ""."""
        return self.hosts[0][0] if self.hosts else ""

    def addresses(self, port: int, host: str = "127.0.0.1") -> list[tuple[str, int]]:
        """Every `(host, port)`, with these defaults where the address names none."""
        return [(name, own or port) for name, own in self.hosts] or [(host, port)]

    def reveal(self) -> str:
        """The whole address, the password included: for handing on, never for printing. Parses to an equal `Url`."""
        return self._text(hide=False)

    def __str__(self) -> str:
        return self._text(hide=True)

    def __repr__(self) -> str:
        return f"Url({self._text(hide=True)!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("address", self._text(hide=True))]

    def _text(self, hide: bool) -> str:
        from urllib.parse import quote  # 4 ms of the start of those who print no address

        parts = [self.scheme, "://"]
        if self.user is not None or self.password is not None:
            parts.append(quote(self.user or "", safe=""))
            if self.password is not None:
                parts.append(":" + ("***" if hide else quote(self.password, safe="")))
            parts.append("@")
        parts.append(",".join(_place(host, port) for host, port in self.hosts))
        if self.path:
            keeps_slash = _always_absolute(self.scheme) and self.path.startswith("/")
            parts.append(("" if keeps_slash else "/") + quote(self.path, safe="/:,+=~"))
        if self.options:
            pairs = (
                f"{quote(name, safe='')}={'***' if hide and _SECRET.search(name) else quote(value, safe='/:,+')}"
                for name, value in self.options.items()
            )
            parts.append("?" + "&".join(pairs))
        return "".join(parts)

    # ---- options

    def with_options(self, options: Mapping[str, object]) -> Url:
        """A copy with keyword options laid over its own; None leaves an option as the address has it."""
        given = {name: _plain(value) for name, value in options.items() if value is not None}
        return msgspec.structs.replace(self, options={**self.options, **given}) if given else self

    def only(self, *known: str) -> Url:
        """This `Url`, or `UsageError` for an option that is not among `known`, naming the nearest that is."""
        for name in self.options:
            if name not in known:
                raise UsageError(f"{self.scheme} has no option {name!r}{nearest(name, known)}")
        return self

    @overload
    def text(self, name: str, default: str, *, choices: Sequence[str] = ()) -> str: ...
    @overload
    def text(self, name: str, default: None = None, *, choices: Sequence[str] = ()) -> str | None: ...
    def text(self, name: str, default: str | None = None, *, choices: Sequence[str] = ()) -> str | None:
        """Option `name` as it stands, or `default`. Raises `UsageError` if it is not among `choices`."""
        value = self.options.get(name)
        if value is None:
            return default
        if choices and value not in choices:
            self._wrong(name, value, f"one of {', '.join(choices)}{nearest(value, choices, listing=False)}")
        return value

    def number(self, name: str, default: float, *, least: float = 0.0, most: float = math.inf) -> float:
        """Option `name` as a finite float (seconds, wherever it is a time) in `least`…`most`. Raises `UsageError`."""
        value = self.options.get(name)
        if value is None:
            return default
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and least <= number <= most):
            self._wrong(name, value, f"a number{_range(least, most)}")
        return number

    def whole(self, name: str, default: int, *, least: int = 0, most: int | None = None) -> int:
        """Option `name` as an int in `least`…`most`. Raises `UsageError`."""
        value = self.options.get(name)
        if value is None:
            return default
        if not re.fullmatch(r"-?[0-9]{1,18}", value) or int(value) < least or (most is not None and int(value) > most):
            self._wrong(name, value, f"a whole number{_range(least, math.inf if most is None else most)}")
        return int(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """Option `name` as a bool: 1/true/yes/on (or just `?name`), 0/false/no/off. Raises `UsageError`."""
        value = self.options.get(name)
        if value is None:
            return default
        if value.lower() in _TRUE:
            return True
        if value.lower() not in _FALSE:
            self._wrong(name, value, "true or false")
        return False

    def _wrong(self, name: str, value: str, wanted: str) -> NoReturn:
        shown = "***" if _SECRET.search(name) else repr(value if len(value) <= 80 else value[:79] + "…")
        raise UsageError(f"{self.scheme}: option {name}={shown} must be {wanted}")


def nearest(name: str, known: Iterable[str], *, listing: bool = True) -> str:
    """The tail of an error about an unknown name: `; did you mean 'redis'? (known: …)`."""
    from difflib import get_close_matches

    known = sorted(known)
    close = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    tail = f"; did you mean {close[0]!r}?" if close else ""
    if listing:
        tail += f" (known: {', '.join(known)})" if known else " (it has none)"
    return tail


def _always_absolute(scheme: str) -> bool:
    return scheme in ("file", "filesystem") or scheme.endswith("+unix")


def _reject(scheme: str, why: str) -> NoReturn:
    raise UsageError(f"the {scheme}:// URL {why}")


def _decode(scheme: str, text: str) -> str:
    if re.search(r"%(?![0-9a-fA-F]{2})", text):
        _reject(scheme, "holds a '%' that starts no percent-encoding; write it as %25")
    if "%" not in text and text.isascii():
        return text
    from urllib.parse import unquote_to_bytes

    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        pass
    _reject(scheme, "holds a percent-encoding that is not UTF-8")


def _host(scheme: str, text: str) -> tuple[str, int | None]:
    way_out = "; '/', '?', '@' and ':' in a password must be percent-encoded"
    if text.startswith("["):
        host, bracket, tail = text[1:].partition("]")
        if not bracket or ":" not in host or (tail and not tail.startswith(":")):
            _reject(scheme, "has an IPv6 host that does not look like [::1] or [::1]:port" + way_out)
    else:
        host, colon, port = text.partition(":")
        host, tail = _decode(scheme, host), colon + port
    if not host:
        _reject(scheme, "lacks the name of a host" + way_out)
    if not tail:
        return host, None
    if not re.fullmatch(r":[0-9]{1,5}", tail) or not 1 <= int(tail[1:]) <= 65535:
        _reject(scheme, "has a port that is no number from 1 to 65535" + way_out)
    return host, int(tail[1:])


def _place(host: str, port: int | None) -> str:
    from urllib.parse import quote

    # Only an IPv6 literal may keep its colons; a name that holds one is quoted like the rest.
    shown = f"[{host}]" if re.fullmatch(r"[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(%[\w.-]+)?", host) else quote(host, safe="")
    return shown if port is None else f"{shown}:{port}"


def _options(scheme: str, query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in query.split("&"):
        if part:
            name, _, value = part.partition("=")
            name = _decode(scheme, name)
            if name in found:
                _reject(scheme, f"has the option {name!r} twice")
            found[name] = _decode(scheme, value)
    return found


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)


def _range(least: float, most: float) -> str:
    if math.isinf(most):
        return f", {least:g} or more"
    return f" from {least:g} to {most:g}"
