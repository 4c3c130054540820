"""Which request is what: method and path of the documentation, to what the stand-in does and answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, unquote

from .queues import Problem

if TYPE_CHECKING:
    from .server import IronServer

STATUSES = ("queued", "preparing", "running", "complete", "error", "cancelled", "killed", "timeout")


class Asked(NamedTuple):
    """A request. `json` is its body, {} where there is none."""

    names: tuple[str, ...]  # the variable parts of its path
    query: dict[str, str]
    json: dict[str, Any]
    body: bytes
    content_type: str
    gone: Callable[[], bool]  # whoever asked has hung up

    def number(self, name: str, default: int, most: int) -> int:
        text = self.query.get(name, str(default))
        if not text.isdigit() or int(text) > most:
            raise Problem(400, f"{name} must be from 0 to {most}")
        return int(text)


class Answer(NamedTuple):
    status: int
    body: Any  # JSON, or bytes of text


Handler = Callable[["IronServer", Asked], Answer]
_ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []


def route(method: str, path: str) -> Callable[[Handler], Handler]:
    """`{}` stands for one part of the path."""
    pattern = re.compile(path.replace("{}", "([^/]+)") + r"\Z")

    def add(handler: Handler) -> Handler:
        _ROUTES.append((method, pattern, handler))
        return handler

    return add


def serve(
    server: IronServer, method: str, target: str, content_type: str, body: bytes, gone: Callable[[], bool]
) -> Answer:
    """What is answered. Raises `Problem`."""
    path, _, query = target.partition("?")
    known = False
    for each, pattern, handler in _ROUTES:
        found = pattern.match(path)
        if found is None:
            continue
        known = True
        if each == method:
            words = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
            plain = content_type.partition(";")[0].strip().lower()
            names = tuple(map(unquote, found.groups()))
            return handler(server, Asked(names, words, _json(body, plain, path), body, content_type, gone))
    raise Problem(405 if known else 404, "Method not allowed" if known else "Not found")


def _json(body: bytes, content_type: str, path: str) -> dict[str, Any]:
    if not body or path.endswith("/webhook") or content_type == "multipart/form-data":
        return {}
    if content_type != "application/json":
        raise Problem(406, "Content-Type must be application/json")
    try:
        found = json.loads(body)
    except ValueError:
        raise Problem(400, "Request body is not valid JSON") from None
    if not isinstance(found, dict):
        raise Problem(400, "Request body must be a JSON object")
    return found


def _whole(asked: Asked, name: str, most: int, default: int = 0) -> int:
    value = asked.json.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or not 0 <= value <= most:
        raise Problem(400, f"{name} must be from 0 to {most}")
    return value


def _list(asked: Asked, name: str) -> list[dict[str, Any]]:
    found = asked.json.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(each, dict) for each in found):
        raise Problem(406, f"Required field {name} is missing")
    return found


# --- IronMQ


@route("GET", "/3/queues")
def _queues(server: IronServer, asked: Asked) -> Answer:
    per_page = asked.number("per_page", 30, 100)
    names = server.queues.names(asked.query.get("prefix", ""), asked.query.get("previous", ""), per_page)
    return Answer(200, {"queues": [{"name": name} for name in names]})


@route("PUT", "/3/queues/{}")
def _put(server: IronServer, asked: Asked) -> Answer:
    return Answer(200, {"queue": server.queues.put(asked.names[0], asked.json.get("queue") or {}, patch=False)})


@route("PATCH", "/3/queues/{}")
def _patch(server: IronServer, asked: Asked) -> Answer:
    return Answer(200, {"queue": server.queues.put(asked.names[0], asked.json.get("queue") or {}, patch=True)})


@route("GET", "/3/queues/{}")
def _info(server: IronServer, asked: Asked) -> Answer:
    return Answer(200, {"queue": {"project_id": server.project, **server.queues.info(asked.names[0])}})


@route("DELETE", "/3/queues/{}")
def _drop(server: IronServer, asked: Asked) -> Answer:
    server.queues.drop(asked.names[0])
    return Answer(200, {"msg": "Deleted"})


@route("POST", "/3/queues/{}/messages")
def _post(server: IronServer, asked: Asked) -> Answer:
    messages = _list(asked, "messages")
    if len(messages) > 100:
        raise Problem(400, "At most 100 messages can be posted at once")
    if len(asked.body) > server.limit:
        raise Problem(403, f"The size of the request is over the plan's limit of {server.limit} bytes")
    return Answer(201, {"ids": server.queues.post(asked.names[0], messages), "msg": "Messages put on queue."})


@route("POST", "/3/queues/{}/webhook")
def _webhook(server: IronServer, asked: Asked) -> Answer:
    ids = server.queues.post(asked.names[0], [{"body": asked.body.decode("utf-8", "replace")}])
    return Answer(201, {"id": ids[0], "msg": "Message put on queue."})


@route("GET", "/3/queues/{}/messages")
def _peek(server: IronServer, asked: Asked) -> Answer:
    return Answer(200, {"messages": server.queues.peek(asked.names[0], asked.number("n", 1, 100))})


@route("DELETE", "/3/queues/{}/messages")
def _delete_many(server: IronServer, asked: Asked) -> Answer:
    wanted = asked.json.get("ids")
    if not wanted:  # as IronMQ has it, also of an empty list
        server.queues.clear(asked.names[0])
        return Answer(200, {"msg": "Cleared"})
    if not isinstance(wanted, list) or len(wanted) > 100 or not all(isinstance(each, dict) for each in wanted):
        raise Problem(400, "ids must be a list of at most 100 messages")
    server.queues.delete(asked.names[0], [(str(each.get("id")), each.get("reservation_id")) for each in wanted])
    return Answer(200, {"msg": "Deleted"})


@route("GET", "/3/queues/{}/messages/{}")
def _message(server: IronServer, asked: Asked) -> Answer:
    return Answer(200, {"message": server.queues.find(*asked.names)})


@route("DELETE", "/3/queues/{}/messages/{}")
def _delete(server: IronServer, asked: Asked) -> Answer:
    queue, id = asked.names
    server.queues.delete(queue, [(id, asked.json.get("reservation_id"))])
    return Answer(200, {"msg": "Deleted"})


@route("POST", "/3/queues/{}/reservations")
def _reserve(server: IronServer, asked: Asked) -> Answer:
    n, wait = _whole(asked, "n", 100, 1), _whole(asked, "wait", 30)
    timeout = _whole(asked, "timeout", 86_400) or None
    delete = asked.json.get("delete") is True
    return Answer(200, {"messages": server.queues.reserve(asked.names[0], n, timeout, wait, delete, asked.gone)})


@route("POST", "/3/queues/{}/messages/{}/touch")
def _touch(server: IronServer, asked: Asked) -> Answer:
    queue, id = asked.names
    timeout = _whole(asked, "timeout", 86_400) or None
    reservation = server.queues.touch(queue, id, asked.json.get("reservation_id"), timeout)
    return Answer(200, {"reservation_id": reservation, "msg": "Touched"})


@route("POST", "/3/queues/{}/messages/{}/release")
def _release(server: IronServer, asked: Asked) -> Answer:
    queue, id = asked.names
    server.queues.release(queue, id, asked.json.get("reservation_id"), _whole(asked, "delay", 604_800))
    return Answer(200, {"msg": "Released"})


@route("POST", "/3/queues/{}/subscribers")
def _add(server: IronServer, asked: Asked) -> Answer:
    new = {str(each.get("name")): each for each in _list(asked, "subscribers")}
    server.queues.subscribers(asked.names[0], lambda known: {**known, **new})
    return Answer(200, {"msg": "Updated"})


@route("PUT", "/3/queues/{}/subscribers")
def _replace(server: IronServer, asked: Asked) -> Answer:
    new = {str(each.get("name")): each for each in _list(asked, "subscribers")}
    server.queues.subscribers(asked.names[0], lambda known: new)
    return Answer(200, {"msg": "Updated"})


@route("DELETE", "/3/queues/{}/subscribers")
def _remove(server: IronServer, asked: Asked) -> Answer:
    gone = {str(each.get("name")) for each in _list(asked, "subscribers")}
    server.queues.subscribers(
        asked.names[0], lambda known: {name: each for name, each in known.items() if name not in gone}
    )
    return Answer(200, {"msg": "Updated"})


# --- IronWorker


@route("POST", "/2/tasks")
def _queue(server: IronServer, asked: Asked) -> Answer:
    ids = server.tasks.queue(_list(asked, "tasks"))
    return Answer(200, {"msg": "Queued up", "tasks": [{"id": id} for id in ids]})


@route("POST", "/2/tasks/webhook")
def _queue_webhook(server: IronServer, asked: Asked) -> Answer:
    wanted = {"code_name": asked.query.get("code_name"), "payload": asked.body.decode("utf-8", "replace")}
    return Answer(200, {"id": server.tasks.queue([wanted])[0], "msg": "Queued up."})


@route("GET", "/2/tasks")
def _tasks(server: IronServer, asked: Asked) -> Answer:
    statuses = [each for each in STATUSES if asked.query.get(each) == "1"]
    page, per_page = asked.number("page", 0, 1 << 30), asked.number("per_page", 30, 100)
    return Answer(200, {"tasks": server.tasks.listed(page, per_page, asked.query.get("code_name", ""), statuses)})


@route("GET", "/2/tasks/{}")
def _task(server: IronServer, asked: Asked) -> Answer:
    return Answer(200, server.tasks.get(asked.names[0]).shown(server.project))


@route("GET", "/2/tasks/{}/log")
def _log(server: IronServer, asked: Asked) -> Answer:
    return Answer(200, server.tasks.log(asked.names[0], stdout=False))


@route("GET", "/2/tasks/{}/outlog")
def _outlog(server: IronServer, asked: Asked) -> Answer:
    return Answer(200, server.tasks.log(asked.names[0], stdout=True))


@route("POST", "/2/tasks/{}/cancel")
def _cancel(server: IronServer, asked: Asked) -> Answer:
    server.tasks.cancel(asked.names[0])
    return Answer(200, {"msg": "Cancelled"})


@route("POST", "/2/tasks/{}/progress")
def _progress(server: IronServer, asked: Asked) -> Answer:
    server.tasks.progress(asked.names[0], asked.json.get("percent"), asked.json.get("msg"))
    return Answer(200, {"msg": "Progress set"})


@route("POST", "/2/tasks/{}/retry")
def _retry(server: IronServer, asked: Asked) -> Answer:
    old = server.tasks.get(asked.names[0])
    wanted = {"code_name": old.code.name, "payload": old.payload, "priority": old.priority, "timeout": old.timeout}
    wanted |= {"label": old.label, "cluster": old.cluster, "delay": _whole(asked, "delay", 604_800)}
    return Answer(200, {"msg": "Queued up", "tasks": [{"id": server.tasks.queue([wanted])[0]}]})


@route("GET", "/2/codes")
def _codes(server: IronServer, asked: Asked) -> Answer:
    page, per_page = asked.number("page", 0, 1 << 30), asked.number("per_page", 30, 100)
    return Answer(200, {"codes": server.tasks.codes()[page * per_page : (page + 1) * per_page]})


@route("POST", "/2/codes")
def _upload(server: IronServer, asked: Asked) -> Answer:
    """It becomes known; what is run for it the test says (`IronServer.code`)."""
    data = asked.json or _form(asked.body)
    if not isinstance(data.get("name"), str):
        raise Problem(406, "Required field name is missing")
    code = server.tasks.code(data["name"], (), {}, None)
    return Answer(200, {"msg": "Upload successful.", **code.shown(server.project)})


@route("GET", "/2/codes/{}")
def _code(server: IronServer, asked: Asked) -> Answer:
    return Answer(200, server.tasks.code_of(asked.names[0]).shown(server.project))


@route("DELETE", "/2/codes/{}")
def _drop_code(server: IronServer, asked: Asked) -> Answer:
    server.tasks.drop_code(asked.names[0])
    return Answer(200, {"msg": "Deleted"})


@route("GET", "/2/codes/{}/revisions")
def _revisions(server: IronServer, asked: Asked) -> Answer:
    code = server.tasks.code_of(asked.names[0]).shown(server.project)
    return Answer(200, {"revisions": [{**code, "rev": number} for number in range(1, code["rev"] + 1)]})


@route("GET", "/2/schedules")
def _schedules(server: IronServer, asked: Asked) -> Answer:
    return Answer(200, {"schedules": server.tasks.schedules()})


@route("POST", "/2/schedules")
def _schedule(server: IronServer, asked: Asked) -> Answer:
    ids = server.tasks.schedule(_list(asked, "schedules"))
    return Answer(200, {"msg": "Scheduled", "schedules": [{"id": id} for id in ids]})


@route("GET", "/2/schedules/{}")
def _scheduled(server: IronServer, asked: Asked) -> Answer:
    return Answer(200, server.tasks.schedule_of(asked.names[0]))


@route("POST", "/2/schedules/{}/cancel")
def _unschedule(server: IronServer, asked: Asked) -> Answer:
    server.tasks.cancel_schedule(asked.names[0])
    return Answer(200, {"msg": "Cancelled"})


def _form(body: bytes) -> dict[str, Any]:
    """The JSON of the field `data` of a multipart form."""
    found = re.search(rb'name="data"\r?\n(?:[^\r\n]+\r?\n)*\r?\n(.*?)\r?\n--', body, re.S)
    try:
        data = json.loads(found[1]) if found else {}
    except ValueError:
        data = {}
    return data if isinstance(data, dict) else {}
