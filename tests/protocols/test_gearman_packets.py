"""The Gearman protocol without a server: whatever comes in, packets or a ProtocolError come out."""

from __future__ import annotations

import struct
import time
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revolve_assistant.errors import ProtocolError, UsageError
from revolve_assistant.protocols import gearman
from revolve_assistant.protocols.gearman import (
    AdminState,
    ClientState,
    Decoder,
    Kind,
    Line,
    Packet,
    Refused,
    WorkerState,
    admin,
    encode,
)
from revolve_assistant.protocols.gearman.client_state import submission
from revolve_assistant.protocols.gearman.packets import FROM_SERVER, MAX_LINE, TO_SERVER

ROLES = {"client": TO_SERVER, "server": FROM_SERVER}  # who sends what
OTHER = {"client": "server", "server": "client"}


@st.composite
def packets(draw, sender):
    kind = draw(st.sampled_from(sorted(ROLES[sender])))
    count = len(ROLES[sender][kind])
    args = [draw(st.binary(max_size=20).map(lambda data: data.replace(b"\0", b"."))) for _ in range(count - 1)]
    if count:
        last = draw(st.binary(max_size=50))
        args.append(last.replace(b"\0", b".") if kind is Kind.WORK_FAIL else last)
    return Packet(kind, tuple(args))


def lines():
    text = st.binary(min_size=1, max_size=30).map(lambda d: d.replace(b"\n", b"").replace(b"\0", b"").rstrip(b"\r"))
    return text.map(lambda data: Line(b"x" + data))


@st.composite
def streams(draw, receiver):
    """A stream as a receiver may see it, and what is in it."""
    sender = OTHER[receiver]
    one = st.one_of(packets(sender), lines()) if receiver == "server" else packets(sender)
    things = draw(st.lists(one, max_size=8))
    ends = draw(st.sampled_from([b"\n", b"\r\n"]))
    data = b"".join(each.text + ends if isinstance(each, Line) else encode(each, sender) for each in things)
    return things, data


def read(decoder, pieces):
    """Every packet, then the error if there was one."""
    found = []
    try:
        for piece in pieces:
            found += decoder.feed(piece)
        if decoder.error:
            raise decoder.error
    except ProtocolError:
        return found, True
    return found, False


def single(data):
    return [data[i : i + 1] for i in range(len(data))]


def cut(data, places):
    places = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


# ---------------------------------------------------------------- packets


@pytest.mark.parametrize(
    ("sender", "kind"), [(sender, kind) for sender, table in ROLES.items() for kind in table], ids=str
)
def test_every_packet_makes_the_round_trip(sender, kind):
    args = tuple(b"arg%d" % i for i in range(len(ROLES[sender][kind])))
    packet = Packet(kind, args)
    assert Decoder(OTHER[sender]).feed(encode(packet, sender)) == [packet]
    for name, arg in zip(ROLES[sender][kind], args, strict=True):
        assert packet.get(name) == arg


def test_the_tables_hold_every_kind():
    assert set(TO_SERVER) | set(FROM_SERVER) == set(Kind)
    assert {int(kind) for kind in Kind} == set(range(1, 43)) - {5}


def test_the_bytes_are_those_of_the_protocol():
    packet = Packet(Kind.SUBMIT_JOB, (b"f", b"u", b"a\0b"))
    assert encode(packet) == b"\0REQ\0\0\0\x07\0\0\0\x07f\0u\0a\0b"
    assert encode(Packet(Kind.NOOP), "server") == b"\0RES\0\0\0\x06\0\0\0\0"


@pytest.mark.parametrize("receiver", ["client", "server"])
@given(data=st.data())
def test_any_split_gives_the_same_packets(receiver, data):
    things, stream = data.draw(streams(receiver))
    places = data.draw(st.lists(st.integers(0, max(1, len(stream))), max_size=10))
    assert read(Decoder(receiver), [stream]) == (things, False)
    assert read(Decoder(receiver), single(stream)) == (things, False)
    assert read(Decoder(receiver), cut(stream, places)) == (things, False)


@pytest.mark.parametrize("receiver", ["client", "server"])
@given(data=st.data())
def test_any_bytes_give_packets_or_a_protocol_error(receiver, data):
    _, stream = data.draw(streams(receiver))
    noise = bytearray(stream or b"\0RES")
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(noise) - 1))
        action = data.draw(st.sampled_from(["flip", "insert", "remove"]))
        if action == "flip":
            noise[at] ^= data.draw(st.integers(1, 255))
        elif action == "insert":
            noise[at:at] = data.draw(st.binary(max_size=20))
        elif len(noise) > 1:
            del noise[at]
    whole = read(Decoder(receiver), [bytes(noise)])
    assert read(Decoder(receiver), single(bytes(noise))) == whole
    assert read(Decoder(receiver), cut(bytes(noise), [3, 11, 13, 40])) == whole


@given(st.binary(max_size=200))
def test_random_bytes_end_nothing(data):
    for state in (ClientState(), WorkerState(), AdminState(), Decoder("client"), Decoder("server")):
        if isinstance(state, AdminState):
            state.ask(admin.status())
            state.ask(admin.workers())
        for piece in (data, data):
            try:
                (state.feed if isinstance(state, Decoder) else state.receive)(piece)
            except ProtocolError:
                pass


@given(st.lists(packets("server"), max_size=12), st.lists(st.sampled_from(["submit", "status", "echo", "option"])))
def test_states_survive_any_packets_in_any_order(things, asked):
    stream = b"".join(encode(each, "server") for each in things)
    ask = {
        "submit": lambda: submission("f", b"w"),
        "status": lambda: gearman.client_state.status_request("H:1"),
        "echo": lambda: gearman.client_state.echo_request(b"x"),
        "option": lambda: gearman.client_state.option_request("exceptions"),
    }
    outcomes = []
    for pieces in ([stream], single(stream)):
        client, worker, seen = ClientState(), WorkerState(limit=3), []
        worker.can_do("f")
        for name in asked:
            client.ask(ask[name]())
        for state in (client, worker):
            state.data_to_send()
            try:
                for piece in pieces:
                    seen += [str(each) for each in state.receive(piece)]
                if state.error:
                    raise state.error
            except ProtocolError as error:
                seen.append(str(error))
        outcomes.append(seen)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "stream",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"-ERR unknown command\r\n",
        b"\0RAS" + bytes(8),
        b"\0REQ\0\0\0\x10\0\0\0\x05hello",  # an echo server
        struct.pack(">4sII", b"\0RES", 5, 0),
        struct.pack(">4sII", b"\0RES", 43, 0),
        struct.pack(">4sII", b"\0RES", 0xFFFFFFFF, 0),
        struct.pack(">4sII", b"\0RES", Kind.SUBMIT_JOB, 0),  # what only servers receive
        struct.pack(">4sII", b"\0RES", Kind.WORK_COMPLETE, 0xFFFFFFFF),
        struct.pack(">4sII", b"\0RES", Kind.WORK_COMPLETE, (64 << 20) + 1),
        struct.pack(">4sII", b"\0RES", Kind.NOOP, 1) + b"x",
        struct.pack(">4sII", b"\0RES", Kind.STATUS_RES, 7) + b"H:1\x001\x001",
        struct.pack(">4sII", b"\0RES", Kind.WORK_DATA, 3) + b"H:1",  # no NUL
    ],
)
def test_what_is_wrong_is_a_protocol_error_for_good(stream):
    for pieces in ([stream], single(stream)):
        decoder = Decoder("client")
        assert read(decoder, pieces) == ([], True)
        with pytest.raises(ProtocolError):
            decoder.feed(b"")


def test_sound_packets_before_an_error_are_given_first():
    decoder = Decoder("client")
    assert decoder.feed(encode(Packet(Kind.NOOP), "server") + b"nonsense") == [Packet(Kind.NOOP)]
    with pytest.raises(ProtocolError, match="another protocol"):
        decoder.feed(b"")


def test_a_claimed_size_is_not_allocated():
    header = struct.pack(">4sII", b"\0RES", Kind.WORK_COMPLETE, 64 << 20)
    tracemalloc.start()
    try:
        decoder = Decoder("client")
        assert decoder.feed(header + b"H:1\0") == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_the_limit_of_a_body_is_exact(size):
    packet = Packet(Kind.ECHO_RES, (bytes(size),))
    assert Decoder("client", max_body=1000).feed(encode(packet, "server")) == [packet]
    with pytest.raises(ProtocolError, match="max_body"):
        Decoder("client", max_body=size - 1).feed(encode(packet, "server"))


def test_big_bodies_in_small_pieces_and_long_lines_take_linear_time():
    body = encode(Packet(Kind.ECHO_RES, (bytes(8 << 20),)), "server")
    start = time.perf_counter()
    found, wrong = read(Decoder("client"), [body[i : i + 1000] for i in range(0, len(body), 1000)])
    assert (len(found), wrong) == (1, False)
    assert read(Decoder("server"), [b"x"] * (MAX_LINE + 10)) == ([], True)
    assert time.perf_counter() - start < 5


def test_a_stream_that_ends_inside_a_packet_says_so():
    decoder = Decoder("client")
    decoder.end()
    decoder.feed(b"\0RES\0")
    with pytest.raises(ProtocolError, match="inside a packet"):
        decoder.end()


def test_a_failed_handle_loses_its_trailing_nuls():
    stream = struct.pack(">4sII", b"\0RES", Kind.WORK_FAIL, 5) + b"H:1\0\0"
    assert Decoder("client").feed(stream) == [Packet(Kind.WORK_FAIL, (b"H:1",))]


@pytest.mark.parametrize(
    ("packet", "role", "words"),
    [
        (Packet(Kind.JOB_CREATED, (b"H:1",)), "client", "does not send"),
        (Packet(Kind.SUBMIT_JOB, (b"f", b"u")), "client", "takes 3 arguments"),
        (Packet(Kind.SUBMIT_JOB, (b"f\0", b"u", b"")), "client", "NUL"),
        (Packet(Kind.CAN_DO, ("text",)), "client", "bytes"),
        (Packet(99), "client", "does not send"),
    ],
)
def test_what_cannot_be_sent_is_a_usage_error(packet, role, words):
    with pytest.raises(UsageError, match=words):
        encode(packet, role)


def test_the_limits_name_the_value_and_the_way_out():
    assert gearman.check_function("resize-é") == "resize-é".encode()
    assert gearman.check_unique("") == b""
    assert gearman.check_unique("u" * 63) == b"u" * 63
    for check, value, words in [
        (gearman.check_function, "", "empty"),
        (gearman.check_function, "a b", "'a b' holds spaces"),
        (gearman.check_function, "f" * 513, "513 bytes.*512"),
        (gearman.check_function, 7, "int 7"),
        (gearman.check_unique, "u" * 64, "64 bytes.*63.*hash"),
        (gearman.check_unique, "a\nb", "control"),
        (gearman.check_handle, "H" * 64, "63"),
        (gearman.check_client_id, "a b", "spaces"),
        (gearman.check_number, -1, "-1"),
        (gearman.check_number, 1 << 32, "4294967296"),
        (gearman.check_number, 0.5, "permille"),
    ]:
        with pytest.raises(UsageError, match=words):
            check(value)
    with pytest.raises(UsageError, match="encode"):
        gearman.check_workload("text", 10)
    with pytest.raises(UsageError, match="11 bytes"):
        gearman.check_workload(bytes(11), 10)


# ---------------------------------------------------------------- a client's state


def says(state, kind, *args):
    return state.receive(encode(Packet(kind, args), "server"))


def test_answers_go_to_requests_in_order_and_reports_by_handle():
    state = ClientState()
    first, refused, second = (state.ask(submission("f", b"%d" % i)) for i in range(3))
    says(state, Kind.JOB_CREATED, b"H:1")
    assert says(state, Kind.WORK_DATA, b"H:1", b"early")[0][0] is first
    says(state, Kind.ERROR, b"QUEUE_ERROR", b"Job queue is full")
    says(state, Kind.JOB_CREATED, b"H:2")
    assert refused.answer.kind is Kind.ERROR
    assert (first.handle, second.handle) == (b"H:1", b"H:2")
    assert says(state, Kind.WORK_COMPLETE, b"H:2", b"r")[0][0] is second
    assert state.running == [first]
    assert state.unanswered == []


def test_the_first_terminal_report_is_the_end():
    state = ClientState()
    job = state.ask(submission("f", b""))
    says(state, Kind.JOB_CREATED, b"H:1")
    assert [packet.kind for _, packet in says(state, Kind.WORK_FAIL, b"H:1")] == [Kind.WORK_FAIL]
    assert job.ended
    assert says(state, Kind.WORK_COMPLETE, b"H:1", b"late") == []


def test_coalesced_submissions_get_one_copy_of_each_report():
    state = ClientState()
    jobs = [state.ask(submission("f", b"", unique="u")) for _ in range(2)]
    for _ in jobs:
        says(state, Kind.JOB_CREATED, b"H:1")
    told = []
    for kind, *args in [(Kind.WORK_DATA, b"a"), (Kind.WORK_DATA, b"b"), (Kind.WORK_COMPLETE, b"r")]:
        for _ in jobs:
            told += [(jobs.index(request), packet.args[1]) for request, packet in says(state, kind, b"H:1", *args)]
    assert sorted(told) == [(0, b"a"), (0, b"b"), (0, b"r"), (1, b"a"), (1, b"b"), (1, b"r")]


@pytest.mark.parametrize(
    "packet",
    [
        Packet(Kind.JOB_CREATED, (b"H:1",)),
        Packet(Kind.JOB_CREATED, (b"",)),
        Packet(Kind.JOB_CREATED, (b"H" * 64,)),
        Packet(Kind.ERROR, (b"JOB_NOT_FOUND", b"")),
        Packet(Kind.NOOP),
        Packet(Kind.STATUS_RES, (b"H:1", b"1", b"x", b"0", b"0")),
        Packet(Kind.STATUS_RES, (b"H:1", b"1", b"1", b"9" * 5000, b"0")),
    ],
)
def test_an_answer_to_nothing_or_out_of_bounds_is_an_error(packet):
    state = ClientState()
    if packet.kind is Kind.STATUS_RES:
        state.ask(gearman.client_state.status_request("H:1"))
    elif packet.args and packet.args[0] != b"H:1" and packet.kind is Kind.JOB_CREATED:
        state.ask(submission("f", b""))
    with pytest.raises(ProtocolError):
        state.receive(encode(packet, "server"))


# ---------------------------------------------------------------- a worker's state


def kinds(state):
    return [packet.kind for packet in Decoder("server").feed(state.data_to_send())]


def assign(state, handle):
    return says(state, Kind.JOB_ASSIGN_UNIQ, handle, b"f", b"u", b"w\0w")[0]


def test_a_worker_sleeps_on_no_job_and_grabs_on_noop():
    state = WorkerState()
    state.can_do("f")
    state.can_do("f")
    assert kinds(state) == [Kind.CAN_DO, Kind.GRAB_JOB_UNIQ]
    says(state, Kind.NOOP)  # stale: the grab is under way
    assert kinds(state) == []
    says(state, Kind.NO_JOB)
    assert kinds(state) == [Kind.PRE_SLEEP]
    assert kinds(state) == []
    says(state, Kind.NOOP)
    says(state, Kind.NOOP)
    assert kinds(state) == [Kind.GRAB_JOB_UNIQ]
    job = assign(state, b"H:1")
    assert (job.function, job.unique, job.workload) == (b"f", b"u", b"w\0w")
    assert kinds(state) == []  # full
    state.data(job, b"part")
    state.complete(job, b"r")
    assert kinds(state) == [Kind.WORK_DATA, Kind.WORK_COMPLETE, Kind.GRAB_JOB_UNIQ]
    with pytest.raises(UsageError, match="H:1 has ended"):
        state.fail(job)


def test_grabs_are_pipelined_more_and_more_up_to_the_limit():
    state = WorkerState(limit=5)
    state.can_do("f")
    sent = []
    for round_ in range(3):
        grabs = kinds(state).count(Kind.GRAB_JOB_UNIQ)
        sent.append(grabs)
        for number in range(grabs):
            assign(state, b"H:%d%d" % (round_, number))
    assert sent == [1, 2, 2]
    assert len(state.held) == 5
    assert kinds(state) == []


def asleep(**options):
    """A worker that grabs by hand, found nothing and sleeps."""
    state = WorkerState(limit=0, **options)
    state.can_do("f")
    state.grab(10)
    says(state, Kind.NO_JOB)
    assert kinds(state) == [Kind.CAN_DO, Kind.GRAB_JOB_UNIQ, Kind.PRE_SLEEP]
    return state


def test_who_stands_by_grabs_one_job_at_the_noop_and_sleeps_again():
    state = asleep()
    state.stand_by(True)
    says(state, Kind.NOOP)
    assert state.drowsy
    assert kinds(state) == [Kind.GRAB_JOB_UNIQ, Kind.PRE_SLEEP]
    says(state, Kind.NOOP)  # stale: the grab is under way
    assert kinds(state) == []
    job = assign(state, b"H:1")
    assert state.asleep
    assert not state.drowsy
    assert kinds(state) == []
    state.complete(job)
    assert kinds(state) == [Kind.WORK_COMPLETE]
    says(state, Kind.NOOP)  # it stood by once
    assert not state.asleep
    assert kinds(state) == []


def test_who_stood_by_is_woken_again_while_there_is_more():
    state = asleep()
    state.stand_by(True)
    says(state, Kind.NOOP)
    kinds(state)
    assign(state, b"H:1")
    says(state, Kind.NOOP)  # the answer to PRE_SLEEP
    assert not state.asleep
    state.grab(10)
    assert kinds(state) == [Kind.GRAB_JOB_UNIQ] * 2


def test_who_stood_by_for_nothing_sleeps_without_saying_so_twice():
    state = asleep()
    state.stand_by(True)
    says(state, Kind.NOOP)
    kinds(state)
    says(state, Kind.NO_JOB)
    assert state.asleep
    assert kinds(state) == []


def test_a_function_that_is_new_meanwhile_is_not_slept_over():
    state = asleep()
    state.stand_by(True)
    says(state, Kind.NOOP)
    state.can_do("g")  # after the PRE_SLEEP: the server does not look for its jobs
    assign(state, b"H:1")
    assert not state.asleep
    state.grab(10)
    assert kinds(state)[-1] is Kind.GRAB_JOB_UNIQ


def test_nobody_who_stood_down_grabs_at_a_noop():
    state = asleep()
    state.stand_by(True)
    state.stand_by(False)
    says(state, Kind.NOOP)
    assert kinds(state) == []
    assert not state.asleep


def test_a_lost_connection_ends_every_job():
    state = WorkerState()
    state.can_do("f")
    state.data_to_send()
    job = assign(state, b"H:1")
    state.end()
    assert job.ended
    with pytest.raises(UsageError):
        state.complete(job)


@pytest.mark.parametrize(
    "packet", [Packet(Kind.NO_JOB), Packet(Kind.JOB_CREATED, (b"H:1",)), Packet(Kind.ECHO_RES, (b"",))]
)
def test_a_worker_hears_no_nonsense(packet):
    with pytest.raises(ProtocolError):
        WorkerState().receive(encode(packet, "server"))


# ---------------------------------------------------------------- the text protocol


ANSWERS = [
    (admin.status(), b"f\t3\t1\t2\n.\n", {"f": (3, 1, 2)}),
    (admin.prioritystatus(), b"f\t3\t1\t2\t9\n.\n", {"f": (3, 1, 2, 9)}),
    (
        admin.workers(),
        b"19 127.0.0.1 - :\n20 ::1 me : f g\n.\n",
        [(19, "127.0.0.1", "-", ()), (20, "::1", "me", ("f", "g"))],
    ),
    (admin.show_jobs(), b"H:1\t0\t1\t0\n.\n", [("H:1", 0, True, False)]),
    (admin.show_unique_jobs(), b"u\n.\n", ["u"]),
    (admin.cancel_job("H:1"), b"OK\r\n", True),
    (admin.cancel_job("H:2"), b"ERR UNKNOWN_JOB\r\n", False),
    (admin.maxqueue("f", 1, 2, 3), b"OK\r\n", True),
    (admin.create_function("f"), b"OK\r\n", True),
    (admin.drop_function("f"), b"ERR there+are+still+workers\r\n", Refused),
    (admin.getpid(), b"OK 123\n", 123),
    (admin.version(), b"OK 1.1.20+ds\n", "1.1.20+ds"),
    (admin.verbose(), b"OK ERROR\n", "ERROR"),
    (admin.status(), b"ERR UNKNOWN_COMMAND Unknown+server+command\r\n", Refused),
]


@pytest.mark.parametrize("pieces", [lambda data: [data], single], ids=["whole", "single bytes"])
def test_admin_commands_and_their_answers_in_a_pipeline(pieces):
    state = AdminState()
    asked = [state.ask(command) for command, _, _ in ANSWERS]
    assert state.data_to_send().count(b"\n") == len(ANSWERS)
    for piece in pieces(b"".join(answer for _, answer, _ in ANSWERS)):
        state.receive(piece)
    for each, (_, _, expected) in zip(asked, ANSWERS, strict=True):
        assert each.done
        if expected is Refused:
            assert isinstance(each.error, Refused)
        else:
            assert each.value == expected


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (admin.status(), b"f\t3\n.\n"),
        (admin.status(), b"f\ta\tb\tc\n"),
        (admin.status(), b"f\ta\tb\tc\n.\n"),
        (admin.workers(), b"nonsense\n.\n"),
        (admin.getpid(), b"OK abc\n"),
        (admin.getpid(), b"HTTP/1.1 400\r\n"),
        (admin.status(), b"x" * (2 << 20)),
        (admin.version(), b"OK 1\nOK 2\n"),
    ],
)
def test_other_answers_are_a_protocol_error(command, answer):
    state = AdminState()
    state.ask(command)
    with pytest.raises(ProtocolError):
        [state.receive(piece) for piece in (answer, b".\n")]


def test_maxqueue_takes_none_one_or_three():
    with pytest.raises(UsageError, match="three"):
        admin.maxqueue("f", 1, 2)
