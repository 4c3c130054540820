"""Try again after an error, and decide in the task when."""

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from revolve_assistant import Client, Retry, current_task, defaults


@defaults(retries=3, timeout=30.0)  # the function stays a plain function
def book(path):
    with closing(sqlite3.connect(path, timeout=0.05, isolation_level=None)) as connection:
        try:
            connection.execute("insert into bookings values (?)", (current_task().attempt,))
        except sqlite3.OperationalError as error:
            raise Retry(f"{error}", after=0.2) from error  # seconds
    return current_task().attempt


with tempfile.TemporaryDirectory() as folder, Client() as client:
    path = Path(folder) / "bookings.db"
    blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    blocker.execute("create table bookings (attempt int)")
    blocker.execute("begin exclusive")  # nobody else may write now

    task = client.submit(book, path)
    # lets go when the task says that it will try again
    task.add_one_time_listener("retrying", lambda reason, delay: blocker.execute("rollback"))
    task.add_listener("retrying", lambda reason, delay: print(f"again in {delay} s: {reason}"))
    print("booked by attempt", task.result())
    print("rows:", blocker.execute("select count(*) from bookings").fetchone()[0])
    blocker.close()
