"""What an error answer of Iron's means: the one place where its statuses become our errors.

401               ProviderError   somebody must change the token or the project
403               Denied          a reservation that ended; else a project or plan that does not allow it
404               Missing         no such queue, message or task
429               Overloaded      come again later
500 502 503 504   Unreachable     come again later
others            ProviderError   somebody must change something; ProtocolError where no Iron answers
"""

from __future__ import annotations

import json

from ...errors import Overloaded, ProtocolError, ProviderError, Unreachable
from .settings import Settings

AGAIN = frozenset({429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""
_SHOWN = 200  # characters of what the other side says


class Denied(ProviderError):
    """403: the reservation has ended, or the project may not do that."""


class Missing(ProviderError):
    """404: there is no such queue, message or task."""


def reason(body: bytes) -> str | None:
    """What the body of an error answer says; None: it is none of Iron's."""
    try:
        found = json.loads(body)
    except ValueError:
        return None
    text = found.get("msg") if isinstance(found, dict) else None
    return text if isinstance(text, str) else None


def error(settings: Settings, what: str, status: int, body: bytes) -> ProviderError:
    """What to raise for an answer with that status to the request `what` (method and path)."""
    name, where = settings.name, settings.origin
    said = reason(body)
    text = "".join(each if each.isprintable() else "·" for each in settings.token.hide(said or "")[:_SHOWN])
    tail = f": {text}" if text else ""
    if status == 401:
        return ProviderError(
            f"{name} at {where} refuses the token for project {settings.project_id}{tail}; check IRON_TOKEN and "
            "IRON_PROJECT_ID, or the file they come from"
        )
    if status == 429:
        return Overloaded(f"{name} at {where} asks for fewer requests{tail}")
    if status in AGAIN:
        return Unreachable(f"{name} at {where} answers {status}{tail}")
    if said is None and not 400 <= status < 500:
        return stranger(settings, f"it answers {status} to {what}")
    if status == 404:
        return Missing(f"{name} at {where} has no {what}{tail}")
    if status == 403:
        return Denied(f"{name} at {where} does not allow {what}{tail}")
    return ProviderError(f"{name} at {where} answers {status} to {what}{tail}")


def stranger(settings: Settings, why: str) -> ProtocolError:
    """What answers there is not Iron's."""
    text = settings.token.hide(why)[:_SHOWN]
    return ProtocolError(
        f"what answers at {settings.origin} is no {settings.name}: {text}; correct host, port and protocol"
    )
