"""Whatever way the bytes fall, and whenever the child dies: every record arrives once, in order. And the lanes."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from revolve_assistant.pool import board as at
from revolve_assistant.pool.child import frames
from revolve_assistant.pool.jobs import ENDED, Job, Lanes
from revolve_assistant.pool.process import READ, ChildProcess
from revolve_assistant.running import outbox as outboxes
from revolve_assistant.running.outbox import WINDOW, Outbox

encode = msgspec.msgpack.Encoder().encode
ROOM = at.OUTBOX_SIZE


# --- frames down ------------------------------------------------------------------------------------------------------

message = st.lists(st.integers(0, 300) | st.binary(max_size=300) | st.text(max_size=5) | st.none(), max_size=4)


@given(st.lists(st.lists(message, max_size=3), max_size=6), st.lists(st.integers(0, 1 << 12), max_size=12))
def test_any_split_of_a_stream_gives_the_same_messages(sent, cuts):
    bodies = [encode(messages) for messages in sent]
    stream = b"".join(len(body).to_bytes(4, "little") + body for body in bodies)
    ends = sorted(cut % (len(stream) + 1) for cut in cuts)
    pending, found = bytearray(), []
    for start, end in zip([0, *ends], [*ends, len(stream)], strict=True):
        pending += stream[start:end]
        found += frames(pending)
    assert found == [one for messages in sent for one in messages]
    assert not pending


# --- records up -------------------------------------------------------------------------------------------------------


class Died(BaseException):
    """The child died in the midst of a system call."""


class Wire:
    """The child's end. While it is full the supervisor reads; after `left` more bytes the child dies."""

    def __init__(self, sock, supervisor):
        self.sock = sock
        self.supervisor = supervisor
        self.meddle = False  # the supervisor reads and peeks in the middle of every call
        self.left = None

    def sendall(self, data):
        self.left = len(data) if self.left == -1 else self.left  # -1: after the call, before what follows it
        view = memoryview(data)[: self.left]
        halves = (view[: len(view) // 2], view[len(view) // 2 :]) if self.meddle else (view,)
        for part in halves:
            while part:
                try:
                    part = part[self.sock.send(part) :]
                except BlockingIOError:
                    self.supervisor.read()
            if self.meddle:
                self.supervisor.read()
                self.supervisor.peek()
        if self.left is not None:
            self.left -= len(view)
            if not self.left:
                raise Died


class Words:
    """The child's view of the board's words: after `left` more stores it dies."""

    def __init__(self, words):
        self.words = words
        self.left = None

    def __getitem__(self, index):
        return self.words[index]

    def __setitem__(self, index, value):
        self.words[index] = value
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                raise Died


class Supervisor:
    """A `ChildProcess` without a process, and what it heard."""

    def __init__(self, sock, board):
        self.child = child = object.__new__(ChildProcess)
        child.tasks = sock
        child.board = board
        child.words = board.words
        child.buffer = memoryview(bytearray(READ))
        child.incoming = bytearray()
        child.frames = child.peeked = child.nonsense = 0
        self.heard = []

    def read(self):
        records, _, closed = self.child.read()
        self.heard += records
        return closed

    def peek(self, dead=False):
        self.heard += self.child.peek(dead)[0]

    def bury(self):
        """As `Watch` does it: one read, which takes all that the socket holds, then the board."""
        self.read()
        self.peek(dead=True)
        assert self.child.read() == ([], 0, True)
        assert not self.child.nonsense


@contextmanager
def connected() -> Iterator[tuple[at.Board, socket.socket, Supervisor]]:
    fd = at.create()
    board = at.Board(fd)
    ours, childs = socket.socketpair()
    with ours, childs:
        ours.setblocking(False)
        childs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # as a child's: more than one read takes
        try:
            yield board, childs, Supervisor(ours, board)
        finally:
            board.close()
            os.close(fd)


def record(number: int, size: int) -> bytes:
    """An encoded record; of exactly `size` bytes where that is large."""
    body = encode([1, 0, "e", 0.5, [number, bytes(size)]])
    return encode([1, 0, "e", 0.5, [number, bytes(2 * size - len(body))]]) if size > 1 << 16 else body


sizes = st.integers(0, 60) | st.sampled_from([30_000, ROOM // 2, ROOM - 1, ROOM, ROOM + 1, READ - 5, READ + 50_000])
actions = st.one_of(
    st.tuples(st.just("put"), sizes, st.booleans()),
    st.tuples(st.just("put"), st.integers(0, 60), st.booleans()),
    st.tuples(st.sampled_from(["flush", "settle", "peek", "read", "pass", "meddle"])),
)


@settings(max_examples=150)
@given(
    st.lists(actions, max_size=40),
    st.sampled_from([None, -1]) | st.integers(0, 20) | st.integers(0, 1 << 19),
    st.integers(0, 30),
    st.none() | st.integers(1, 6),
)
def test_every_record_arrives_once_and_in_order_whenever_the_child_dies(steps, left, deadly, stores):
    clock = mock.Mock(return_value=10 * WINDOW)
    with connected() as (board, sock, supervisor), mock.patch.object(outboxes, "monotonic_ns", clock):
        sock.setblocking(False)
        wire = Wire(sock, supervisor)
        words = Words(board.words)
        outbox = Outbox(SimpleNamespace(memory=board.memory, words=words), wire)
        said = unsure = 0  # records whose `put` returned; one in whose midst it died
        try:
            for index, (what, *how) in enumerate(steps):
                if index == deadly:
                    wire.left, words.left = left, stores
                if what == "put":
                    unsure = 1
                    outbox.put(record(said, how[0]), how[1])
                    unsure = 0
                    said += 1
                elif what == "flush":
                    outbox.flush()
                elif what == "settle":
                    outbox.settle(clock())
                elif what == "pass":
                    clock.return_value += WINDOW + 1
                elif what == "meddle":
                    wire.meddle = not wire.meddle
                else:
                    getattr(supervisor, what)()
        except Died:
            pass
        sock.close()
        supervisor.bury()
        numbers = [one[4][0] for one in supervisor.heard]
        assert numbers == list(range(len(numbers)))
        assert said <= len(numbers) <= said + unsure


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("stores", range(1, 14))
def test_a_death_between_any_two_stores_to_the_board(stores, reads):
    with connected() as (board, sock, supervisor):
        words = Words(board.words)
        words.left = stores
        outbox = Outbox(SimpleNamespace(memory=board.memory, words=words), sock)
        said, died = 0, False
        try:
            for size in (5, 5, ROOM + 1, 5, 5):
                outbox.put(record(said, size), True)
                said += 1
                if size == 5 and said != 1:
                    outbox.flush()
                if reads:
                    supervisor.read()
                    supervisor.peek()
        except Died:
            died = True
        sock.close()
        supervisor.bury()
        numbers = [one[4][0] for one in supervisor.heard]
        assert numbers == list(range(len(numbers)))
        assert said <= len(numbers) <= said + died


@pytest.mark.parametrize("seed", range(3))
def test_a_child_that_speaks_while_it_is_peeked_at(seed):
    chance = random.Random(seed)
    count = 6000
    spoken = [record(number, chance.choice([0, 0, 0, 0, 9, 500, 5000])) for number in range(count)]
    spoken[count // 2] = record(count // 2, ROOM + 1)
    holds = [chance.random() < 0.8 for _ in spoken]
    with connected() as (board, sock, supervisor):
        outbox = Outbox(board, sock)

        def speak():
            for one, hold in zip(spoken, holds, strict=True):
                outbox.put(one, hold)
            sock.close()  # what is held stays in the board

        child = threading.Thread(target=speak)
        child.start()
        while not supervisor.read():
            supervisor.peek()
        child.join()
        supervisor.bury()
        assert [one[4][0] for one in supervisor.heard] == list(range(count))


# --- lanes ------------------------------------------------------------------------------------------------------------

lane_steps = st.one_of(
    st.tuples(st.just("push"), st.sampled_from([0, 0, 0, 1, -1, 7])),
    st.tuples(st.sampled_from(["pop", "drop", "back", "clear"]), st.integers(0, 30)),
    st.tuples(st.sampled_from(["pop", "drop", "back"]), st.integers(0, 30)),
)


@given(st.lists(lane_steps, max_size=60))
@example([("push", 0), ("push", 0), ("push", 0), ("pop", 0), ("pop", 0), ("back", 2), ("pop", 0)])
def test_lanes_are_a_queue_for_each_priority(steps):
    lanes = Lanes()
    waiting: list[Job] = []  # in the order in which they are to come
    taken: list[Job] = []

    def add(job, front):
        mine = job.parcel.priority
        places = (i for i, other in enumerate(waiting) if other.parcel.priority < mine + front)
        waiting.insert(next(places, len(waiting)), job)

    for what, number in steps:
        if what == "push":
            job = Job(SimpleNamespace(priority=number), None)
            lanes.push(job)
            add(job, front=0)
        elif what == "pop":
            job = lanes.pop()
            assert job is (waiting.pop(0) if waiting else None)
            if job is not None:
                taken.append(job)
        elif what == "drop" and waiting:
            lanes.drop(waiting.pop(number % len(waiting)))
        elif what == "back":
            back = taken[-(number % 4) :] if number % 4 else []
            del taken[len(taken) - len(back) :]
            lanes.push_back(back)
            for job in reversed(back):
                add(job, front=1)
        elif what == "clear" and number < 3:
            assert lanes.clear() == waiting
            waiting.clear()
        assert lanes.count == len(waiting)
        assert lanes.peek() is (waiting[0] if waiting else None)
    assert lanes.clear() == waiting
    assert all(job.state != ENDED for job in taken)
