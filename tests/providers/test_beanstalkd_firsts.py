"""How often a task was handed out is known without asking about each, and never wrong."""

from __future__ import annotations

import contextlib
import random

import pytest

from revolve_assistant.engine import Outcome, Parcel
from revolve_assistant.protocols.beanstalkd import BeanstalkdClient, fields
from revolve_assistant.protocols.beanstalkd import commands as ask
from revolve_assistant.providers import registry
from revolve_assistant.providers.beanstalkd.firsts import Firsts
from revolve_assistant.providers.beanstalkd.names import uncounted_of
from revolve_assistant.testing.checks import eventually, fresh
from revolve_assistant.testing.servers import Beanstalkd

DONE = Outcome()


@pytest.fixture(scope="module")
def server(need):
    need("beanstalkd")
    with Beanstalkd() as server:
        aged(server)
        yield server


def aged(server):
    """Until a task that is put now is younger than the server, in whole seconds."""
    with BeanstalkdClient(server.address) as client:
        eventually(lambda: int(fields(client.one(ask.stats()).body)["uptime"]) >= 1, "a second")


@pytest.fixture
def opened(server):
    with contextlib.ExitStack() as stack:
        namespace = fresh("firsts")

        def opened(at=server, **options):
            one = registry.engine(f"{at.url}/{namespace}", **options)
            one.open()
            stack.callback(one.close)
            return one

        yield opened


def told(client, lease):
    """What the server says of it: deliveries, priority, time to run."""
    said = fields(client.one(ask.stats_job(lease.token.number)).body)
    priority = int(said["pri"])
    return int(said["reserves"]) - uncounted_of(priority), priority, int(said["ttr"])


def known(lease):
    return lease.deliveries, lease.token.priority, lease.token.ttr


def test_a_backlog_is_taken_with_few_questions(server, opened):
    giver, taker = opened(), opened()
    giver.submit([Parcel(f"t{n}", priority=n % 3) for n in range(900)], None)
    with BeanstalkdClient(server.address) as client:

        def asked():
            return int(fields(client.one(ask.stats()).body)["cmd-stats-job"])

        before, outcomes, seen = asked(), [], []
        while len(seen) < 900:
            leases = taker.settle_and_take(outcomes, ["default"], limit=50, wait=5)
            seen += leases
            outcomes = [(lease, DONE) for lease in leases]
        assert asked() - before < 300
        taker.settle(outcomes)
    assert {lease.deliveries for lease in seen} == {1}
    assert {(lease.token.priority, lease.token.ttr) for lease in seen} == {((9 - n) << 16, 30) for n in range(3)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("trouble", [0.0, 0.002, 0.03])  # of what is held, what is released, and is buried
def test_whatever_takers_do_the_count_is_the_servers_own(server, opened, seed, trouble):
    chance = random.Random(seed)
    givers = [opened(lease=30), opened(lease=60)]
    takers = [opened() for _ in range(3)]
    held: dict[int, list] = {at: [] for at in range(len(takers))}
    checked = repeated = numbered = 0
    with BeanstalkdClient(server.address) as client:
        for _ in range(120):
            if chance.random() < 0.4:
                parcels = [
                    Parcel(f"t{(numbered := numbered + 1)}", priority=chance.choice((0, 0, 0, 5)))
                    for _ in range(chance.randint(1, 40))
                ]
                chance.choice(givers).submit(parcels, None)
            at = chance.randrange(len(takers))
            outcomes = [(lease, what) for lease in held[at] if (what := outcome(chance, trouble))]
            settled = {id(lease) for lease, _ in outcomes}
            held[at] = [lease for lease in held[at] if id(lease) not in settled]
            leases = takers[at].settle_and_take(outcomes, ["default"], limit=chance.choice((1, 5, 30)), wait=0)
            for lease in leases:
                assert known(lease) == told(client, lease)
                checked += 1
                repeated += lease.deliveries > 1
            held[at] += leases
            if chance.random() < 0.1:  # what it held goes back at once
                takers[at].close()
                takers[at], held[at] = opened(), []
            if chance.random() < 0.1:
                client.ask(ask.use(givers[0].place.names.queue("default")), ask.kick(5))
    assert checked > 300
    assert repeated > 30


def outcome(chance, trouble):
    """What becomes of a task that is held; as a rule it is done. None: it is held for longer."""
    if chance.random() < 0.1:
        return None
    draw = chance.random()
    if draw < trouble:
        return Outcome("release", counted=draw < trouble / 2)
    return Outcome("bury", reason="wrong") if draw < 2 * trouble else DONE


def test_what_a_log_forgot_is_no_proof(need, opened):
    need("beanstalkd")
    with Beanstalkd(stored=True) as server:
        aged(server)
        giver, taker = opened(server), opened(server)
        giver.submit([Parcel(f"t{n}") for n in range(40)], None)
        leases = taker.take(["default"], limit=40, wait=5)
        while len(leases) < 40:
            leases += taker.take(["default"], limit=40, wait=5)
        taker.settle([(lease, Outcome("release", delay=1)) for lease in leases[20:]])  # written down, unlike a reserve
        server.kill()
        server.restart()
        aged(server)
        again, seen = opened(server), []
        with BeanstalkdClient(server.address) as client:
            while len(seen) < 40:
                some = again.take(["default"], limit=4, wait=5)
                assert [known(lease) for lease in some] == [told(client, lease) for lease in some]
                seen += some
        assert sum(lease.deliveries == 2 for lease in seen) == 20


# ---- what follows from what

STATS = {
    "cmd-release": 1, "cmd-bury": 2, "job-timeouts": 3, "current-connections": 4, "total-connections": 9, "uptime": 50,
}  # fmt: skip


def stats(**changed):
    said = STATS | {name.replace("_", "-"): value for name, value in changed.items()}
    return b"---\nid: x\n" + b"".join(b"%b: %d\n" % (name.encode(), value) for name, value in said.items())


@pytest.fixture
def firsts():
    """It knows of a job of number 10, priority 7."""
    firsts = Firsts(stats())
    firsts.learn(b"a", 7, 10, firsts.era, 3)
    return firsts


def test_what_is_younger_and_as_urgent_is_new(firsts):
    assert firsts.new(b"a", 7, 11, firsts.era)
    assert not firsts.new(b"a", 7, 9, firsts.era)
    assert not firsts.new(b"a", 6, 11, firsts.era)
    assert not firsts.new(b"b", 7, 11, firsts.era)
    firsts.counted(stats(uptime=60, current_connections=5, total_connections=10))  # somebody came
    assert firsts.new(b"a", 7, 11, firsts.era)


@pytest.mark.parametrize(
    "changed", [{"cmd_release": 2}, {"cmd_bury": 3}, {"job_timeouts": 4}, {"current_connections": 3}]
)
def test_whatever_brings_jobs_back_ends_what_was_known(firsts, changed):
    before = firsts.era
    firsts.counted(stats(**changed))
    assert not firsts.new(b"a", 7, 11, firsts.era)
    firsts.learn(b"a", 7, 10, before, 3)  # it was taken before that
    assert not firsts.new(b"a", 7, 11, firsts.era)
    firsts.learn(b"a", 7, 12, firsts.era, 3)
    assert not firsts.new(b"a", 7, 13, before)
    assert firsts.new(b"a", 7, 13, firsts.era)


def test_what_was_there_before_the_server_proves_nothing():
    firsts = Firsts(stats())
    firsts.learn(b"a", 7, 10, firsts.era, 50)
    assert not firsts.new(b"a", 7, 11, firsts.era)


@pytest.mark.parametrize("said", [b"", b"---\nid: x\n", stats().replace(b"cmd-bury", b"bury"), stats()[:-20]])
def test_a_server_that_does_not_say_is_asked_about_each(said):
    firsts = Firsts(said)
    firsts.counted(said)
    firsts.learn(b"a", 7, 10, firsts.era, 3)
    firsts.counted(said)
    assert not firsts.new(b"a", 7, 11, firsts.era)
