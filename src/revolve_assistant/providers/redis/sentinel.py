"""Which server is the primary of a service just now: what the sentinels say."""

from __future__ import annotations

import time

from hiredis import ReplyError

from ...errors import ProviderError, Unreachable
from . import answers
from .address import Place
from .connection import Connection, Server


class Sentinel(Connection):
    """A connection to a sentinel, which is greeted otherwise than a server."""

    def _greet(self, deadline: float) -> Server:
        place = self.place
        if place.password is not None:
            self.send([(b"AUTH", *((place.user,) if place.user else ()), place.password)])
            answer = self.take(deadline)
            if isinstance(answer, ReplyError):
                raise answers.error(str(answer), self.where)
        return Server("sentinel", (), "sentinel", "sentinel", 0, False)


def primary(place: Place, deadline: float) -> tuple[str, int]:
    """Host and port, from the first sentinel that knows. Blocks until `deadline` (monotonic) at most.

    Raises `Unreachable`, naming each sentinel's trouble, or `ProviderError` if all of them answer and know no such
    service.
    """
    troubles: list[str] = []
    strangers = 0
    for at, (host, port) in enumerate(place.hosts):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        own = Place(
            ((host, port),),
            user=place.sentinel_user,
            password=place.sentinel_password,
            tls=place.tls,
            timeout=max(0.05, left / (len(place.hosts) - at)),  # each has its share, so that a dead one costs no more
        )
        link = Sentinel(own)
        try:
            (answer,) = link.exchange([(b"SENTINEL", b"get-master-addr-by-name", place.service)])
        except ProviderError as error:
            troubles.append(str(error))
            continue
        finally:
            link.close()
        if isinstance(answer, ReplyError) and answers.code(str(answer)) == "NOAUTH":
            troubles.append(f"the sentinel at {link.where} wants a password: sentinel_password=…")
        elif isinstance(answer, ReplyError) or not answer:
            strangers += 1
            troubles.append(f"the sentinel at {link.where} knows no service {place.service!r}")
        else:
            return answer[0].decode(), int(answer[1])
    text = f"no sentinel of {place.service!r} helps: {'; '.join(troubles) or 'none answered in time'}"
    raise ProviderError(text) if strangers == len(place.hosts) else Unreachable(text)
