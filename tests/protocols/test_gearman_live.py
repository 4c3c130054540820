"""The Gearman client, worker and administrator against a real gearmand, and its C tools."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from revolve_assistant.errors import Overloaded, UsageError
from revolve_assistant.protocols.gearman import (
    GearmanAdmin,
    GearmanClient,
    GearmanWorker,
    JobFailed,
    QueueFull,
    Refused,
)
from revolve_assistant.testing.servers import Gearmand

WAIT = 20.0  # seconds that nothing here should take


def upper(job):
    return job.workload.upper()


# ---------------------------------------------------------------- jobs


def test_a_foreground_job_reports_and_ends_with_its_result(server, client, working):
    def work(job):
        job.status(1, 2)
        job.data(b"part\0one")
        job.warning(b"hot")
        job.status(2, 2)
        return job.workload + job.unique.encode()

    with working([server.address], {"work": work}):
        job = client.submit("work", bytes(range(256)), unique="u1")
        assert [(each.kind, each.data, each.numerator, each.denominator) for each in job.events(WAIT)] == [
            ("status", b"", 1, 2),
            ("data", b"part\0one", 0, 0),
            ("warning", b"hot", 0, 0),
            ("status", b"", 2, 2),
        ]
        assert job.result(WAIT) == bytes(range(256)) + b"u1"
        assert job.progress == (2, 2)
        assert (job.done(), job.exception(), list(job.events())) == (True, None, [])


@pytest.mark.parametrize("workload", [b"", b"\0", b"\r\n.\r\n", bytes(1 << 20)], ids=["empty", "NUL", "lines", "1 MiB"])
def test_any_bytes_make_the_round_trip(server, client, workload, working):
    with working([server.address], {"same": lambda job: job.workload}):
        assert client.submit("same", workload).result(WAIT) == workload
        assert client.echo(workload) == workload


def test_exceptions_cross_unless_switched_off(server, client, working):
    def work(job):
        if job.workload == b"quiet":
            raise JobFailed
        raise ValueError("bad \ud800 value")

    with working([server.address], {"work": work}), GearmanClient([server.address], exceptions=False) as deaf:
        with pytest.raises(JobFailed, match="ValueError: bad") as caught:
            client.submit("work").result(WAIT)
        assert caught.value.data == b"ValueError: bad \\ud800 value"
        for each, workload in [(client, b"quiet"), (deaf, b""), (deaf, b"quiet")]:
            error = each.submit("work", workload).exception(WAIT)
            assert isinstance(error, JobFailed)
            assert error.data is None


def test_a_job_may_be_ended_by_hand_and_only_once(server, client, working):
    said = []

    def work(job):
        said.append([job.complete(b"first"), job.ended, job.fail(), job.data(b"late")])
        return b"second"

    with working([server.address], {"work": work}):
        assert client.submit("work").result(WAIT) == b"first"
    assert said == [[True, True, False, False]]


def test_a_result_that_is_not_bytes_fails_the_job(server, client, working):
    with working([server.address], {"work": lambda job: "text"}), pytest.raises(JobFailed, match="bytes, not str"):
        client.submit("work").result(WAIT)


def test_background_jobs_run_and_report_to_nobody(server, client, working, until):
    ran = threading.Event()
    job = client.submit("work", background=True)
    assert client.status(job)[:2] == (True, False)
    assert client.status_unique(job.unique)[:2] == (True, False)
    for call in (job.result, job.exception, lambda: next(job.events())):
        with pytest.raises(UsageError, match="background"):
            call()
    with working([server.address], {"work": lambda job: ran.set()}):
        assert ran.wait(WAIT)
    until(lambda: not client.status(job).known)


def test_priorities_and_bulk_keep_their_order(server, client):
    done = []
    client.submit_many([("f", b"low%d" % i) for i in range(3)], priority=-1)
    client.submit_many(("f", b"normal%d" % i) for i in range(2500))
    client.submit("f", b"high", background=True, priority=1)
    with GearmanAdmin(server.address) as admin:
        assert admin.prioritystatus() == {"f": (1, 2500, 3, 0)}
    with GearmanWorker([server.address], prefetch=20) as worker:
        worker.register("f", lambda job: done.append(job.workload))
        assert worker.work(max_jobs=2504) == 2504
    assert done == [b"high", *(b"normal%d" % i for i in range(2500)), b"low0", b"low1", b"low2"]


def test_one_unique_is_one_job(server, client, working):
    ran = []
    jobs = [client.submit("f", b"%d" % i, unique="same") for i in range(3)]
    with GearmanClient([server.address]) as other:
        jobs.append(other.submit("f", b"9", unique="same"))
        assert len({job.handle for job in jobs}) == 1
        assert client.status_unique("same").clients == 4

        def work(job):
            ran.append(job.workload)
            job.data(b"a")
            job.data(b"b")
            return b"r"

        with working([server.address], {"f": work}):
            for job in jobs:
                assert [event.data for event in job.events(WAIT)] == [b"a", b"b"]
                assert job.result(WAIT) == b"r"
    assert ran == [b"0"]


def test_two_jobs_run_at_once_on_one_connection(server, client, working):
    meeting = threading.Barrier(2)

    def work(job):
        meeting.wait(WAIT)
        return job.workload

    with working([server.address], {"work": work}, threads=2, client_id="one"):
        jobs = [client.submit("work", b"%d" % i) for i in range(6)]
        assert [job.result(WAIT) for job in jobs] == [b"%d" % i for i in range(6)]
        with GearmanAdmin(server.address) as admin:
            assert [(each.client_id, each.functions) for each in admin.workers() if each.functions] == [
                ("one", ("work",))
            ]


def test_a_client_is_safe_to_share_between_threads(server, client, working):
    answers = {}

    def use(name):
        jobs = [client.submit("upper", b"%d-%d" % (name, i)) for i in range(20)]
        answers[name] = [job.result(WAIT) for job in jobs]
        assert client.echo(b"%d" % name) == b"%d" % name

    with working([server.address], {"upper": upper}, threads=3, prefetch=3):
        threads = [threading.Thread(target=use, args=(name,)) for name in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(WAIT)
    assert answers == {name: [b"%d-%d" % (name, i) for i in range(20)] for name in range(4)}


def test_a_forked_child_connects_anew(server, client, working):
    with working([server.address], {"upper": upper}):
        job = client.submit("upper", b"parent")
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if client.submit("upper", b"child").result(WAIT) == b"CHILD" else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert job.result(WAIT) == b"PARENT"
        assert client.submit("upper", b"again").result(WAIT) == b"AGAIN"


def test_a_wait_that_is_too_short_is_a_timeout_and_the_job_goes_on(server, client, working):
    job = client.submit("upper", b"x")
    with pytest.raises(TimeoutError, match="goes on"):
        job.result(0.05)
    with pytest.raises(TimeoutError, match="no report"):
        next(job.events(0.05))
    assert not job.wait(0.01)
    with working([server.address], {"upper": upper}):
        assert job.result(WAIT) == b"X"


def test_a_full_queue_is_said_with_what_was_taken(server, client):
    with GearmanAdmin(server.address) as admin:
        admin.create_function("f")
        admin.max_queue("f", 3)
        with pytest.raises(QueueFull, match="Job queue is full") as caught:
            client.submit_many(("f", b"%d" % i) for i in range(5))
        assert isinstance(caught.value, Overloaded)
        assert [job.request.packet.args[2] for job in caught.value.accepted] == [b"0", b"1", b"2"]
        admin.max_queue("f")
        assert client.submit("f", background=True).handle


def test_a_wrong_batch_sends_nothing(server, client):
    with pytest.raises(UsageError, match="holds spaces"):
        client.submit_many([("f", b""), ("a b", b"")])
    with pytest.raises(UsageError, match="max_body"):
        client.submit("f", bytes((64 << 20) + 1))
    with GearmanAdmin(server.address) as admin:
        assert admin.status() == {}


def test_a_job_of_the_future_is_found_by_a_sleeping_worker(server, client):
    ran = []
    with GearmanWorker([server.address], heartbeat=0.1) as worker:
        worker.register("f", lambda job: ran.append(time.time()))
        due = round(time.time()) + 1
        assert client.submit("f", at=due).background
        assert worker.work(max_jobs=1, timeout=WAIT) == 1
    assert ran[0] >= due


# ---------------------------------------------------------------- workers that end


def test_a_job_of_a_worker_that_died_runs_elsewhere(server, client, working):
    script = (
        "import os, sys\n"
        "from revolve_assistant.protocols.gearman import GearmanWorker\n"
        f"worker = GearmanWorker([{server.address!r}])\n"
        "def die(job):\n"
        "    job.data(b'first')\n"
        "    os._exit(9)\n"
        "worker.register('f', die)\n"
        "worker.work()\n"
    )
    job = client.submit("f", b"w")
    assert subprocess.run([sys.executable, "-c", script], timeout=WAIT, check=False).returncode == 9
    with working([server.address], {"f": lambda job: job.data(b"second") and job.workload}):
        assert [event.data for event in job.events(WAIT)] == [b"first", b"second"]
        assert job.result(WAIT) == b"w"


def test_stop_gives_back_what_was_not_started(server, client, working, until):
    started, go = threading.Event(), threading.Event()

    def work(job):
        started.set()
        assert go.wait(WAIT)

    jobs = client.submit_many(("f", b"%d" % i) for i in range(3))
    with GearmanAdmin(server.address) as admin:
        with working([server.address], {"f": work}, prefetch=5) as worker:
            assert started.wait(WAIT)
            worker.stop()
            go.set()
        until(lambda: admin.status()["f"] == (2, 0, 0))
    assert [client.status(job).known for job in jobs] == [False, True, True]


def test_stop_works_from_a_signal_handler(server, client):
    with GearmanWorker([server.address]) as worker:
        worker.register("f", lambda job: signal.raise_signal(signal.SIGUSR1))
        usual = signal.signal(signal.SIGUSR1, lambda *_: worker.stop())
        try:
            client.submit_many([("f", b""), ("f", b"")])
            assert worker.work() == 1
            assert worker.work(max_jobs=1) == 1
        finally:
            signal.signal(signal.SIGUSR1, usual)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupt_in_a_function_ends_the_worker_and_not_the_job(server, client, threads, working):
    def interrupt(job):
        raise KeyboardInterrupt

    job = client.submit("f", b"x")
    with GearmanWorker([server.address], threads=threads) as worker:
        worker.register("f", interrupt)
        with pytest.raises(KeyboardInterrupt):
            worker.work()
    with working([server.address], {"f": upper}):
        assert job.result(WAIT) == b"X"


def test_a_worker_serves_all_its_servers_and_one_that_comes_late(need, working):
    need("gearmand")
    with Gearmand() as one, Gearmand() as late:
        late.kill()
        with (
            working([one.address, late.address], {"upper": upper}),
            GearmanClient(one.address) as first,
            GearmanClient(late.address) as second,
        ):
            assert first.submit("upper", b"a").result(WAIT) == b"A"
            late.start()
            assert second.submit("upper", b"b").result(WAIT) == b"B"


# ---------------------------------------------------------------- administration and the C tools


def test_every_admin_command(server, client):
    with GearmanAdmin(server.address) as admin:
        assert admin.pid() == server.process.pid
        assert admin.version().startswith(("1.", "2."))
        assert admin.verbosity() == "ERROR"
        assert (admin.status(), admin.prioritystatus(), admin.jobs(), admin.unique_jobs()) == ({}, {}, [], [])
        job = client.submit("f", b"", unique="u")
        assert admin.status() == {"f": (1, 0, 0)}
        assert [(each.handle, each.retries, each.ignored) for each in admin.jobs()] == [(job.handle, 0, False)]
        assert admin.unique_jobs() == ["u"]
        assert admin.cancel(job.handle) is True
        assert isinstance(job.exception(WAIT), JobFailed)
        assert admin.cancel("H:none:1") is False
        admin.create_function("g")
        admin.max_queue("g", 1, 2, 3)
        admin.drop_function("g")
        with pytest.raises(Refused, match="refused: function not found"):
            admin.drop_function("g")
        assert set(admin.status()) <= {"f"}
        server.restart()
        assert admin.pid() == server.process.pid


def test_cancelling_a_running_job_is_its_only_end(server, client, working, until):
    running, go = threading.Event(), threading.Event()

    def work(job):
        running.set()
        assert go.wait(WAIT)
        return b"late"

    with working([server.address], {"f": work}), GearmanAdmin(server.address) as admin:
        job = client.submit("f")
        assert running.wait(WAIT)
        assert admin.cancel(job.handle)
        assert isinstance(job.exception(WAIT), JobFailed)
        go.set()
        until(lambda: not client.status(job).known)
        assert isinstance(job.exception(), JobFailed)


def test_the_c_client_and_our_worker(need, server, working):
    tool = need("gearman")
    with working([server.address], {"upper": upper}):
        done = subprocess.run(
            [tool, "-h", server.host, "-p", str(server.port), "-f", "upper", "-u", "key"],
            input=b"from c",
            capture_output=True,
            timeout=WAIT,
            check=True,
        )
    assert done.stdout == b"FROM C"


def test_our_client_and_the_c_worker(need, server, client):
    tool = need("gearman")
    command = [tool, "-w", "-h", server.host, "-p", str(server.port), "-f", "count", "-c", "2", "--", "wc", "-c"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as worker:
        try:
            assert [client.submit("count", bytes(n)).result(WAIT).strip() for n in (3, 70_000)] == [b"3", b"70000"]
        finally:
            worker.kill()
