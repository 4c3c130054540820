"""Talk with a task while it runs: it asks, you answer; you send, it listens."""

from revolve_assistant import Client, ask, current_task, emit

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom"


def replace_words(text):
    old = ask("Which word shall I replace?")  # sends `question`, waits for the answer
    new = ask(f"What shall stand for {old!r}?")
    text = text.replace(old, new)
    emit("output", text)
    changes = 1
    while (message := current_task().receive()).name != "done":  # whatever else is sent to it
        old, new = message.args
        text = text.replace(old, new)
        changes += 1
        emit("output", text)
    return changes


answers = iter(["best", "longest"])

with Client() as client:
    task = client.submit(replace_words, TEXT)

    def on_question(number, text):
        answer = next(answers)
        print(f"{text} {answer}")
        task.send("answer", answer)

    task.add_listener("question", on_question)
    task.add_listener("output", print)
    task.send("replace", "wisdom", "patience")  # kept until the task takes it
    task.send("done")
    print("changes:", task.result())
