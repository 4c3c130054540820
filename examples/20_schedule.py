"""Run a function again and again: any worker minds the times, and each run is a task that can be heard."""

import time

from revolve_assistant import Client, Worker, track


def check(service):
    for _ in track(["reach", "ask", "compare"], service):
        time.sleep(0.01)
    return f"{service} is well"


place = "memory://example"  # in real life redis://…, and workers elsewhere: revolve worker redis://…
workers = [Worker(place, concurrency=2, pool="thread").start() for _ in range(2)]
with Client(place) as client:
    key = client.schedule(check, ("shop",), every=0.4)
    client.schedule(check, ("mail",), every=3600, key="mail")
    seen = []
    while len(seen) < 3:
        (schedule,) = [each for each in client.schedules() if each.key == key]
        if schedule.last and schedule.last not in seen:
            seen.append(schedule.last)
            print(schedule.times, "->", client.attach(schedule.last).result())
        time.sleep(0.05)
    print("scheduled no more:", client.unschedule(key), [each.key for each in client.schedules()])
for worker in workers:
    worker.stop()
