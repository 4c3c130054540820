"""The same inside a desktop program: a timer of Tk reads, the window stays alive, the bar moves."""

import tkinter
from tkinter import ttk

from revolve_assistant import Make, report

make = Make()
window = tkinter.Tk()
window.title("Revolve Assistant")
bar = ttk.Progressbar(window, length=300)
bar.pack(padx=20, pady=20)
moves = []


def work(task):
    for number in range(1, 21):
        sum(range(200_000))
        report(number / 20)
    return "finished"


def move(progress):
    bar["value"] = 100 * progress.fraction
    moves.append(progress.fraction)


client = make.client("process://")
task = make.task({"provider": "process", "callback": work})
task.add_listener("progress", move)
task.add_listener("succeeded", lambda value: window.after_idle(window.destroy))
client.handle(task)


def tick():
    client.read()
    if not client.has_completed(task):
        window.after(20, tick)


tick()
window.mainloop()
print("the bar moved to", f"{moves[-1]:.0%};", task.result())
client.shutdown()
