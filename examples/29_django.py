"""Django: a task is handed over once the transaction is committed, never before; its progress goes to the page.

Needs: pip install 'revolve-assistant[web]' django uvicorn httpx. Here one program plays all parts, without a server.
"""

import threading

import django
import httpx
import uvicorn
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import connection, transaction
from django.http import JsonResponse
from django.urls import path
from starlette.applications import Starlette
from starlette.routing import Mount

from revolve_assistant import Client, track
from revolve_assistant.views.web import Live, token

client = Client(max_workers=1)  # with Client("redis://…") the rest stays as it is


def pack(order):
    return f"order {order} is packed: {sum(track(range(5), 'packing'))} things"


def order(request):
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders(what) VALUES (%s)", [request.GET["what"]])
            number, tasks = cursor.lastrowid, []
            transaction.on_commit(lambda: tasks.append(client.submit(pack, number)))
            if request.GET["what"] == "dragon":
                raise LookupError("we have none")
    except LookupError as error:
        return JsonResponse({"error": str(error)}, status=404)
    tasks[0].queued(5)  # 202 is true from here on; Unreachable is a 503
    return JsonResponse({"task": tasks[0].id, "token": token(client, tasks[0].id)}, status=202)


urlpatterns = [path("order", order)]
database = {"ENGINE": "django.db.backends.sqlite3", "NAME": "orders.db"}
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], DATABASES={"default": database})
django.setup()
with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE orders(what TEXT)")
live = Mount("/live", Live(client, show={"succeeded"}))
app = Starlette(routes=[live, Mount("/", get_asgi_application())])  # what an ASGI server runs
server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
socket = uvicorn.Config(None, port=0, log_level="critical").bind_socket()
threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True).start()
with client, httpx.Client(base_url="http://{}:{}".format(*socket.getsockname()), trust_env=False) as browser:
    print(browser.get("/order?what=dragon").text)
    answer = browser.get("/order?what=tea")
    told = browser.get("/live/events", params=answer.json()).text
    print(answer.status_code, '"progress"' in told, told.rpartition('"result": ')[2].strip("}\n"))
server.should_exit = True
