"""cancel() asks first and insists later: a flag, an exception, SIGTERM, SIGKILL."""

import time

from revolve_assistant import Client, TaskCancelled, current_task, emit


def polite():  # looks at the flag and leaves in good order
    found = 0
    while not current_task().cancel_requested:
        found += sum(1 for number in range(1000) if number % 7 == 0)
    emit("leaving", found > 0)


def deaf():  # does not look: the exception CancelSignal is raised in it
    try:
        time.sleep(60)
    finally:
        emit("cleaned up")


def stubborn():  # swallows even that: its process is ended
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass


with Client(ladder=(0.2, 0.5, 0.5)) as client:  # seconds from rung to rung; the default is 0.5, 5, 2
    for function in (polite, deaf, stubborn):
        task = client.submit(function)
        next(task.events("started"))
        task.cancel()  # returns at once
        try:
            task.result()
        except TaskCancelled as cancelled:
            said = [event.name for event in task.events()]
            print(f"{function.__name__} was stopped by: {cancelled.rung}; events: {', '.join(said)}")
