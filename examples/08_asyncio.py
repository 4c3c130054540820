"""The same client in asyncio: nothing blocks the loop. (In trio it is the same code.)"""

import asyncio
import zlib

from revolve_assistant import Client, track


def squeeze(text, times):  # a plain function, in a process
    data = text.encode() * 20_000
    for _ in track(range(times), "squeezing"):
        size = len(zlib.compress(data, 9))
    return f"{len(data):,} bytes are {size:,} compressed"


async def echo(text):  # a coroutine: many of them share one process
    await asyncio.sleep(0.01)
    return text.upper()


async def watch(task):
    async for event in task.events("progress"):  # and the end, which always comes last
        print(event.name, *event.args)


async def main():
    async with Client() as client:
        task = client.submit(squeeze, "the quick brown fox ", 8)
        watcher = asyncio.create_task(watch(task))
        echoes = [client.submit(echo, word) for word in ("one", "two", "three")]
        print(await asyncio.gather(*echoes))
        print(await task)
        await watcher


asyncio.run(main())
