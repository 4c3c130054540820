"""beanstalkd's protocol: what is asked and answered without a socket, and the blocking client on a real server."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revolve_assistant.errors import Overloaded, ProtocolError, Unreachable, UsageError
from revolve_assistant.protocols.beanstalkd import Answer, BeanstalkdClient, ConnectionState, Reserved
from revolve_assistant.protocols.beanstalkd import commands as ask
from revolve_assistant.testing.checks import Aside, entered, eventually
from revolve_assistant.testing.servers import Beanstalkd

PROMPT = 2.0  # seconds

REQUESTS = (
    lambda: ask.put(b"abc"), lambda: ask.reserve(0), lambda: ask.use("t"), lambda: ask.watch("t"), ask.stats,
    lambda: ask.delete(1), lambda: ask.release(1), lambda: ask.bury(1), lambda: ask.touch(1), lambda: ask.peek(1),
    lambda: ask.kick(9), lambda: ask.kick_job(1), lambda: ask.pause_tube("t", 1), ask.list_tubes,
)  # fmt: skip
ANSWERS = (
    b"INSERTED 7\r\n", b"RESERVED 8 4\r\na\r\nb\r\n", b"USING t\r\n", b"WATCHING 2\r\n", b"OK 9\r\n---\na: 1\n\r\n",
    b"DELETED\r\n", b"RELEASED\r\n", b"BURIED\r\n", b"TOUCHED\r\n", b"FOUND 3 0\r\n\r\n",
    b"KICKED 4\r\n", b"NOT_FOUND\r\n", b"PAUSED\r\n", b"OUT_OF_MEMORY\r\n",
)  # fmt: skip
EXPECTED = [
    Answer(b"INSERTED", 7, b"", b"7"), Answer(b"RESERVED", 8, b"a\r\nb"), Answer(b"USING", -1, b"", b"t"),
    Answer(b"WATCHING", 2, b"", b"2"), Answer(b"OK", -1, b"---\na: 1\n"), Answer(b"DELETED"), Answer(b"RELEASED"),
    Answer(b"BURIED"), Answer(b"TOUCHED"), Answer(b"FOUND", 3, b""), Answer(b"KICKED", 4, b"", b"4"),
    Answer(b"NOT_FOUND"), Answer(b"PAUSED"), Answer(b"OUT_OF_MEMORY"),
]  # fmt: skip


@given(st.lists(st.integers(0, sum(map(len, ANSWERS)))))
def test_answers_are_the_same_however_they_are_cut(cuts):
    state = ConnectionState()
    requests = [state.ask(make()) for make in REQUESTS]
    data = b"".join(ANSWERS)
    ends = sorted({*cuts, len(data)})
    found = [each for start, end in zip([0, *ends], ends, strict=False) for each in state.receive(data[start:end])]
    assert found == list(zip(requests, EXPECTED, strict=True))
    assert [request.answer for request in requests] == EXPECTED
    assert not state.open
    state.end()


def test_one_byte_at_a_time():
    state = ConnectionState()
    for make in REQUESTS:
        state.ask(make())
    found = [answer for byte in b"".join(ANSWERS) for _, answer in state.receive(bytes([byte]))]
    assert found == EXPECTED


@pytest.mark.parametrize("data", [
    b"VERSION 1\r\n", b"-ERR unknown command\r\n", b"ERROR\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"\x00",
    b"SSH-2.0-x\r\n",
    b"INSERTED\r\n", b"INSERTED x\r\n", b"RESERVED 1 1\r\nx\r\n", b"OK 3\r\nabcdef", b"OK -1\r\n",
    b"OK 99999999999\r\n",
    b"OK 1 1\r\n", b"A" * 600, b"\r\n",
])  # fmt: skip
def test_what_is_no_answer_is_an_error_at_once(data):
    state = ConnectionState()
    state.ask(ask.put(b"x") if data.startswith(b"INS") else ask.stats())
    with pytest.raises(ProtocolError):
        state.receive(data)
    with pytest.raises(ProtocolError):
        state.receive(b"OK 0\r\n\r\n")


def test_sound_answers_before_a_wrong_one_are_given():
    state = ConnectionState()
    first, second = state.ask(ask.delete(1)), state.ask(ask.delete(2))
    assert state.receive(b"DELETED\r\nGARBAGE\r\n") == [(first, Answer(b"DELETED"))]
    assert isinstance(state.error, ProtocolError)
    assert second.answer is None
    assert state.unanswered == [second]


def test_nothing_is_due_while_a_reserve_waits():
    state = ConnectionState()
    state.ping()
    assert state.waiting
    state.receive(b"OK 4\r\n---\n\r\n")
    assert not state.waiting
    state.ask(ask.reserve(3))
    state.ask(ask.touch(1))
    assert state.reserving
    assert not state.waiting  # the server reads no further
    state.ping()
    assert state.waiting  # now it is doubted
    assert state.data_to_send().endswith(b"touch 1\r\n")
    state.receive(b"TIMED_OUT\r\n")
    assert not state.reserving
    assert state.waiting
    state.receive(b"TOUCHED\r\n")
    assert not state.waiting


@pytest.mark.parametrize("call", [
    lambda: ask.use(""), lambda: ask.use("-x"), lambda: ask.use("a b"), lambda: ask.use("ü"),
    lambda: ask.use("x" * 201),
    lambda: ask.use("a\r\nput 0 0 1 1"), lambda: ask.put(b"x", -1), lambda: ask.put(b"x", 1 << 32),
    lambda: ask.put(b"x", 0, -1), lambda: ask.put("text"), lambda: ask.put(b"xx", most=1), lambda: ask.delete(-1),
    lambda: ask.delete("1"), lambda: ask.reserve(float("nan")), lambda: ask.kick(True),
])  # fmt: skip
def test_what_the_server_could_not_hold_is_refused_before(call):
    with pytest.raises(UsageError):
        call()


def test_seconds_are_rounded_up():
    assert ask.put(b"x", 1, 0.2, 0.5).data == b"put 1 1 1 1\r\nx\r\n"
    assert ask.release(1, 2, 1.01).data == b"release 1 2 2\r\n"
    assert ask.reserve(2.5).data == b"reserve-with-timeout 3\r\n"


# ---- the client


@pytest.fixture(scope="module")
def server(need):
    need("beanstalkd")
    with Beanstalkd() as server:
        yield server


def test_a_waiting_reserve_keeps_nobody_else_waiting(server):
    with BeanstalkdClient(server.address) as client:
        first, second = client.put([b"one", b"two"], "side")
        client.ask(ask.watch("side"))
        held = client.reserve(PROMPT)
        assert held == Reserved(first, b"one")
        assert client.reserve(PROMPT) == Reserved(second, b"two")
        waiting = entered(client.reserve, 60)
        for _ in range(20):
            assert Aside(client.touch, first, second).result(PROMPT, "a touch") == [True, True]
        assert Aside(client.delete, second, 999).result(PROMPT, "a deletion") == [True, False]
        (late,) = client.put([b"late"], "side")
        assert waiting.result(PROMPT, "the waiting reserve") == Reserved(late, b"late")
        for _ in range(5):
            waiting = entered(client.reserve, 60)
            client.wake()
            assert waiting.result(PROMPT, "a reserve that is woken") is None
        client.delete(first, late)
        tubes = ask.items(client.one(ask.list_tubes()).body)
        bells = [client.one(ask.stats_tube(tube)).body for tube in tubes if tube.startswith("revolve.bell.")]
        assert [ask.fields(said)["current-jobs-ready"] for said in bells] == ["0"]


def test_a_reserve_ends_in_time_and_says_when_a_job_is_due(server):
    with BeanstalkdClient(server.address) as client:
        assert client.reserve(0) is None
        waiting = Aside(client.reserve, 0.2)
        assert waiting.result(PROMPT, "a reserve of 0.2 s") is None
        assert 0.19 <= waiting.seconds < PROMPT
        (job,) = client.put([b"x"], "due", ttr=1)
        client.ask(ask.watch("due"))
        assert client.reserve(PROMPT).number == job
        assert Aside(client.reserve, 30).result(PROMPT, "DEADLINE_SOON") is None
        client.delete(job)


def test_many_threads_share_one_client(server):
    with BeanstalkdClient(server.address) as client:
        client.ask(ask.watch("shared"))
        got = []
        start = threading.Barrier(5)

        def give(own):
            start.wait(PROMPT)
            for n in range(50):
                client.put([b"%d %d" % (own, n)], "shared")

        def take():
            start.wait(PROMPT)
            while len(got) < 200:
                job = client.reserve(0.2)
                if job is not None:
                    got.append(job.body)
                    client.delete(job.number)

        for one in [Aside(take), *[Aside(give, own) for own in range(4)]]:
            one.result(20, "a thread")
        assert sorted(got) == sorted(b"%d %d" % (own, n) for own in range(4) for n in range(50))


def test_it_connects_again_and_watches_what_it_watched(need):
    need("beanstalkd")
    with Beanstalkd("-z", "1000", stored=True) as server, BeanstalkdClient(server.address) as client:
        assert client.max_job == 1000
        client.ask(ask.watch("a"), ask.ignore("default"), ask.use("a"))
        client.put([b"kept"])
        with pytest.raises(Overloaded, match="JOB_TOO_BIG"):
            client.put([b"x" * 1001])
        with pytest.raises(UsageError, match="call reserve"):
            client.ask(ask.reserve(1))
        server.kill()
        with pytest.raises(Unreachable):
            client.put([b"lost"])
        server.start()
        client.put([b"more"])
        assert [client.reserve(PROMPT).body for _ in range(2)] == [b"kept", b"more"]
        server.drain()
        with pytest.raises(Overloaded, match="DRAINING"):
            eventually(lambda: client.put([b"x"]) is None, "it drains")
        for _ in range(2):
            assert Aside(client.reserve, 0.1).result(PROMPT, "a reserve without a bell") is None


def test_strangers_are_named(need):
    from revolve_assistant.testing.servers import Memcached

    need("memcached")
    with (
        Memcached() as memcached,
        BeanstalkdClient(memcached.address) as client,
        pytest.raises(ProtocolError, match="is a beanstalkd server on this port"),
    ):
        client.one(ask.stats())
    with BeanstalkdClient(("127.0.0.1", 1)) as client, pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        client.reserve(1)
