"""A crash costs the one task that crashed, and says what is known of it."""

import ctypes
import signal

from revolve_assistant import Client, TaskLost, emit


def crash():
    emit("stage", "reading address 0")
    return ctypes.string_at(0)  # a segmentation fault


def hoard():
    kept = []
    while True:
        kept.append(b"x" * 4_000_000)


def steady(number):
    return number * number


with Client(max_workers=2, memory_limit="256MiB") as client:  # of each worker process
    tasks = [client.submit(steady, number) for number in range(5)]
    for function in (crash, hoard):
        try:
            client.submit(function).result()
        except TaskLost as lost:
            print(f"{function.__name__}: lost, {signal.Signals(lost.signal).name}, last event: {lost.last_event}")
            if lost.memory_limit:
                print(f"  it used {lost.peak_memory >> 20} MiB of {lost.memory_limit >> 20} MiB")
            else:
                stack = lost.__notes__[0].splitlines()  # where it was, by faulthandler
                print("  died at", next(line.partition(", ")[2] for line in stack if line.endswith(" in crash")))
    print("the others:", [task.result() for task in tasks])
