"""A Django view submits a task once its transaction is committed; the page then hears how far it is.

Needs: pip install 'revolve-assistant[web]' django httpx. One file plays project, application, worker and browser.
"""

import asyncio
import json
import sqlite3
import tempfile

import django
import httpx
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import connection, transaction
from django.http import JsonResponse
from django.urls import path
from starlette.applications import Starlette
from starlette.routing import Mount

from revolve_assistant import Client, track
from revolve_assistant.views.web import Live, token


def bill(database, number):
    """Runs in a worker, which can read the order only because it is committed."""
    with sqlite3.connect(database) as shop:
        (items,) = shop.execute("SELECT items FROM orders WHERE number = ?", (number,)).fetchone()
    shop.close()
    for _ in track(range(items), "billing"):
        pass
    return f"order {number}: {items} items billed"


def order(request, number):
    tasks = []
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO orders VALUES (%s, 3)", [number])
            database = settings.DATABASES["default"]["NAME"]
            transaction.on_commit(lambda: tasks.append(client.submit(bill, database, number)))
            if "refused" in request.GET:
                raise ValueError("the card was refused")
    except ValueError as error:
        return JsonResponse({"error": str(error), "tasks": len(tasks)}, status=402)
    return JsonResponse({"task": tasks[0].id, "token": token(client, tasks[0].id)}, status=202)


urlpatterns = [path("orders/<int:number>", order)]


async def shop(application):
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as browser:
        refused = await browser.post("/orders/1?refused")
        print(refused.status_code, refused.json())
        taken = await browser.post("/orders/2")
        told = await browser.get("/live/events", params=taken.json())
        lines = [json.loads(line[6:]) for line in told.text.splitlines() if line.startswith("data: ")]
        print(taken.status_code, lines[-1]["event"], lines[-1]["result"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, Client(max_workers=1) as client:
        settings.configure(
            ALLOWED_HOSTS=["shop.example"],
            ROOT_URLCONF=__name__,
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{folder}/shop.db"}},
        )
        django.setup()
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE orders (number INTEGER PRIMARY KEY, items INTEGER)")
        connection.close()
        # In a project of yours this stands in asgi.py, and `client` in a module of the application.
        routes = [Mount("/live", Live(client, show={"succeeded"})), Mount("/", get_asgi_application())]
        asyncio.run(shop(Starlette(routes=routes)))
