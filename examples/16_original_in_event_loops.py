"""A client that is driven by hand, inside the event loops of asyncio and trio: `read` never blocks."""

import asyncio

import trio

from revolve_assistant import Make

make = Make()
messenger = make.messenger("memory://inbox")


def work(task):
    for number in range(3):
        task.write_to(messenger, "output", number)
    return "done"


def handed_over(client):
    heard = []
    task = make.task({"provider": "process", "callback": work})
    task.add_listener("output", heard.append)
    client.handle(task)
    return task, heard


async def in_asyncio():
    with make.client("process://") as client:
        task, heard = handed_over(client)
        while not client.has_completed(task):
            client.read(messenger)
            await asyncio.sleep(0.01)
        print("asyncio:", heard, task.result())


async def in_trio():
    with make.client("process://") as client:
        task, heard = handed_over(client)
        while not client.has_completed(task):
            client.read(messenger)
            await trio.sleep(0.01)
        print("trio:", heard, task.result())


asyncio.run(in_asyncio())
trio.run(in_trio)
