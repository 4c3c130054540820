"""A Django view submits a task once its transaction is committed; the page then hears how far it is.

Needs: pip install 'revolve-assistant[web]' django httpx."""

import asyncio
import sqlite3

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


def bill(number):
    """Runs in a worker, which finds the order, because it is committed."""
    shop = sqlite3.connect("shop.db")
    [(items,)] = shop.execute("SELECT items FROM orders WHERE number = ?", (number,))
    shop.close()
    return sum(track(range(items), "billing"))


def order(request, number):
    tasks = []
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES (%s, 3)", [number])
            transaction.on_commit(lambda: tasks.append(client.submit(bill, number)))
            assert "refused" not in request.GET, "the card was refused"
    except AssertionError as error:
        return JsonResponse({"error": str(error), "tasks": len(tasks)}, status=402)
    return JsonResponse({"task": tasks[0].id, "token": token(client, tasks[0].id)}, status=202)


async def shop(application):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://localhost") as browser:
        print((await browser.post("/orders/1?refused")).json())
        taken = await browser.post("/orders/2")
        told = await browser.get("/live/events", params=taken.json())
    print(taken.status_code, told.text.strip().splitlines()[-1])


urlpatterns = [path("orders/<int:number>", order)]
database = {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.db"}
settings.configure(ALLOWED_HOSTS=["localhost"], ROOT_URLCONF=__name__, DATABASES={"default": database})
django.setup()
with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE orders (number INTEGER PRIMARY KEY, items INTEGER)")
connection.close()
with Client(max_workers=1) as client:  # in a project of yours it stands in a module, and what follows in asgi.py
    routes = [Mount("/live", Live(client, show={"succeeded"})), Mount("/", get_asgi_application())]
    asyncio.run(shop(Starlette(routes=routes)))
