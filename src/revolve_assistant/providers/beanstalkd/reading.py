"""The reading half of a Messenger: reserves frames, keeps them until they are forgotten, one thread at a time.

A frame that was read and not forgotten is a job that is reserved and not deleted: if this reader dies, beanstalkd
gives it to the next one, in its old place. What may be held so is bounded; past that the oldest ones that the reader
has moved on from, as the cursors that it gives say, are deleted without being forgotten. A reserve that waits stays
where it is between two reads: nobody else reads these channels. Deletions that are asked for behind it are done when it
is over, three seconds later at most.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from ...messenger import Batch, Message
from ...protocols.beanstalkd import Answer, Request
from ...protocols.beanstalkd import commands as ask
from ..channel import Channel, Entry
from ..lines import Line, Lines
from .address import KIND, Place
from .delivery import Delivery
from .reserving import Reserving
from .settling import delete_all
from .wrapping import Piece, channel_mark, read_piece

READ = "read"
WINDOW = 1000, 16 << 20
"""Frames, and their bytes, that are held after they were read."""
PENDING = 10_000, 64 << 20
"""Frames, and their bytes, that are held while they wait for others that come before them."""
GRACE = 0.25
"""Seconds that a hole is waited for when the servers have nothing more."""
_LONGEST = 2.0  # … and when they have
_FOLLOW = 256  # frames asked for at once to fill a hole
_TORN = 1000  # frames of which some pieces are there


class Jobs:
    """What a frame is made of on the servers: the lines that hold its pieces, and their numbers."""

    __slots__ = ("pieces",)

    def __init__(self, pieces: list[tuple[Line, int]]) -> None:
        self.pieces = pieces

    @property
    def ended(self) -> bool:
        """Whether a piece is held no more, so that it will come again."""
        return any(not line.up or line.owner.held.get(number) is not self for line, number in self.pieces)


class Reading:
    """The frames that this reader holds. Not thread-safe, but for `lines.wake`."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.lines = Lines(place.servers, place.timeout, KIND)
        self.woken = False  # by the user, not only for something to do
        self._reserving = Reserving(self.lines, place, READ, self._arrived, self._soon, self._lost)
        self._delivery = Delivery(self.lines)  # of wake-up calls
        self._nonce = os.urandom(6).hex().encode()
        self._channels: dict[str, Channel] = {}
        self._marks: dict[bytes, str] = {}
        self._torn: OrderedDict[tuple[bytes, bytes, int], dict[int, tuple[bytes, Line, int]]] = OrderedDict()
        self._asked: frozenset[str] = frozenset()
        self._tubes: set[bytes] = set()
        self._strange = 0  # jobs of somebody else's making that are being asked about
        self._count = self._bytes = 0  # held
        self._largest = 1.0  # bytes of a frame, of late

    # ---- reading

    def listen(self, cursors: Mapping[str, bytes]) -> list[tuple[Channel, int]]:
        """Take frames of these channels and of no others; the channels, and the positions after which to read.

        Blocks for a round trip when the channels are not those of before.
        """
        if self._asked != cursors.keys():
            names = self.place.names
            for name in cursors:
                if name not in self._channels:
                    self._channels[name] = Channel(name)
                    self._marks[channel_mark(name)] = name
            self._asked = frozenset(cursors)
            self._tubes = {names.channel(name) for name in cursors}
            self.lines.want(self._reserving.role)
            self._recall()
        asked = [(self._channels[name], self._position(cursor)) for name, cursor in cursors.items()]
        for channel, position in asked:
            channel.seen = max(channel.seen, position)
        return asked

    def advance(self, limit: int, asked: Sequence[tuple[Channel, int]]) -> tuple[int, bool]:
        """Ask for more; how many frames are to be read, and whether answers are due that are worth waiting for."""
        now = time.monotonic()
        reserving = self._reserving
        holes = any(channel.holes for channel in self._channels.values())
        if holes:
            self._give_up(now)
        ready = 0
        for channel, position in asked:
            ready += channel.count_after(position)
        up = reserving.lines()
        if self._strange or any(reserving.busy(line) for line in up):
            return ready, True
        room = _FOLLOW if holes else min(limit - ready, WINDOW[0])
        if room <= 0:
            return ready, False
        most, size = PENDING if holes else WINDOW
        if self._count + room > most or self._bytes + self._largest > size:
            self._make_room([channel for channel, _ in asked], room)
        room = min(room, max(most - self._count, 0 if ready else 1))
        room = min(room, max(int((size - self._bytes) / self._largest), 0 if ready else 1))
        busy = False
        for line in up:
            if room <= 0 or reserving.under_way(line):
                continue
            if reserving.dry(line):
                if not ready:
                    reserving.wait(line, self._tubes, room)
            else:
                reserving.look(line, self._tubes, room)
                busy = busy or reserving.busy(line)
        return ready, busy

    def until(self) -> float:
        """When to call `advance` again, at the latest (monotonic seconds)."""
        now = time.monotonic()
        hole = min((channel.oldest_hole() for channel in self._channels.values() if channel.holes), default=None)
        due = self._reserving.until()
        return due if hole is None else min(due, max(hole + GRACE, now + 0.02))

    def batch(self, asked: Sequence[tuple[Channel, int]], limit: int) -> Batch:
        """Up to `limit` messages after the positions, each channel in its turn."""
        found = [channel.after(position) for channel, position in asked]
        total = sum(len(entries) for entries in found)
        if total > limit:
            share = max(1, limit // max(1, sum(map(bool, found))))
            kept, left = [], limit
            for entries in found:
                kept.append(min(len(entries), share, left))
                left -= kept[-1]
            for at, entries in enumerate(found):
                more = min(left, len(entries) - kept[at])
                kept[at] += more
                left -= more
            found = [entries[:count] for entries, count in zip(found, kept, strict=True)]
        nonce = self._nonce
        return Batch(
            [
                Message(channel.name, entry.frame, b"%b.%d" % (nonce, entry.position))
                for (channel, _), entries in zip(asked, found, strict=True)
                for entry in entries
            ]
        )

    # ---- forgetting

    def forget(self, name: str, upto: bytes | None) -> None:
        """Delete the jobs of a channel up to a cursor, or all that are held."""
        channel = self._channels.get(name)
        if channel is None:
            return
        if upto is None:
            self._complete(channel.drop_all())
            mark = channel_mark(name)
            for key in [key for key in self._torn if key[0] == mark]:
                self._tear(key)
            del self._channels[name], self._marks[mark]
            self._asked = frozenset()  # the next read listens anew
        else:
            self._complete(channel.drop(self._position(upto)))

    def close(self, patience: float) -> None:
        """Let go, once the servers have what was said to them, or after `patience` seconds."""
        deadline = time.monotonic() + patience
        up = [line for line in self._reserving.lines() if line.state.open > line.state.reserving]
        if up:
            self._recall()
        while any(line.up and line.state.open for line in up) and time.monotonic() < deadline:
            self.lines.pump(deadline)
        self.lines.close()

    # ---- within

    def _recall(self) -> None:
        waiting = [line for line in self._reserving.lines() if line.state.reserving]
        if waiting:
            self.lines.want(self._delivery.role)
            self._reserving.recall(waiting, self._delivery.role.name)
        for line in self._reserving.lines():
            self._reserving.damp(line)

    def _position(self, cursor: bytes) -> int:
        nonce, _, position = cursor.partition(b".")
        return int(position) if nonce == self._nonce and position.isdigit() else 0

    def _arrived(self, line: Line, number: int, body: bytes) -> None:
        held = line.owner.held
        if number in held:
            return  # its time ran out, and it came to us again
        piece = read_piece(body)
        name = self._marks.get(piece.channel) if piece is not None else None
        if piece is None:
            self._strange += 1
            held[number] = _Strange(self, body)
            stats = ask.stats_job(number)
            stats.owner = held[number]
            line.state.ask(stats)
        elif name is None:
            line.state.ask(ask.delete(number))  # of a channel that was forgotten
        elif piece.parts == 1:
            jobs = Jobs([(line, number)])
            held[number] = jobs
            self._frame(self._channels[name], piece.data, jobs, piece)
        else:
            self._gather(line, number, self._channels[name], piece)

    def _gather(self, line: Line, number: int, channel: Channel, piece: Piece) -> None:
        """One piece of a larger frame."""
        key = (piece.channel, piece.writer, piece.number)
        pieces = self._torn.setdefault(key, {})
        before = pieces.get(piece.part)
        if before is not None and before[1].up and before[1].owner.held.get(before[2]) is not None:
            line.state.ask(ask.delete(number))  # its writer sent it twice
            return
        pieces[piece.part] = (piece.data, line, number)
        line.owner.held[number] = key
        if len(pieces) == piece.parts:
            del self._torn[key]
            jobs = Jobs([(own, at) for _, own, at in pieces.values()])
            for own, at in jobs.pieces:
                if own.up:
                    own.owner.held[at] = jobs
            self._frame(channel, b"".join(pieces[each][0] for each in range(piece.parts)), jobs, piece)
        elif len(self._torn) > _TORN:
            self._tear(next(iter(self._torn)))

    def _tear(self, key: tuple[bytes, bytes, int]) -> None:
        """Let go of a frame whose other pieces do not come."""
        self._done([Jobs([(line, number) for _, line, number in self._torn.pop(key).values()])])

    def _frame(self, channel: Channel, frame: bytes, jobs: Jobs, piece: Piece | None) -> None:
        entry = Entry(frame, jobs, (piece.writer, piece.number) if piece is not None else None)
        self._largest = max(len(frame), self._largest * 0.98, 1.0)
        if not channel.arrive(entry, time.monotonic()):
            self._done([jobs])
        elif entry.position or channel.holds(entry):  # else it is another job for one that is here
            self._count += 1
            self._bytes += len(frame)

    def strange(self, line: Line, number: int, body: bytes, tube: bytes) -> None:
        """A job of somebody else's making, in a channel's tube: passed on as it is, for the layer above to refuse."""
        self._strange -= 1
        names = self.place.names
        found = [channel for name, channel in self._channels.items() if names.channel(name) == tube]
        jobs = line.owner.held[number] = Jobs([(line, number)])
        if found:
            self._frame(found[0], body, jobs, None)
        else:
            self._done([jobs])

    def _soon(self, line: Line) -> None:
        for number in line.owner.held:
            line.state.ask(ask.touch(number))

    def _lost(self, line: Line) -> None:
        self._strange -= sum(isinstance(each, _Strange) for each in line.owner.held.values())
        line.owner.held.clear()

    def _give_up(self, now: float) -> None:
        """Stop waiting for frames that will hardly come."""
        # A server that is away may come back with some of them, if it stores what it has.
        up = self._reserving.lines()
        drained = len(up) == len(self.lines.servers) and all(
            self._reserving.dry(line) or line.state.reserving for line in up
        )
        full = self._count >= PENDING[0] or self._bytes >= PENDING[1]
        for channel in self._channels.values():
            if channel.holes:
                channel.give_up(now if full else now - (GRACE if drained else _LONGEST))

    def _make_room(self, asked: Iterable[Channel], room: int) -> None:
        """Delete the oldest that were read, in the order of the channels; at least a quarter of the window."""
        excess = max(self._count + room - WINDOW[0], WINDOW[0] // 4)
        size = max(self._bytes + int(self._largest) - WINDOW[1], 0)
        for channel in asked:
            entries = channel.entries
            upto = 0
            while upto < len(entries) and (excess > 0 or size > 0) and entries[upto].position <= channel.seen:
                excess -= 1
                size -= len(entries[upto].frame)
                upto += 1
            if upto:
                self._complete(channel.drop(entries[upto - 1].position))

    def _complete(self, entries: Iterable[Entry]) -> None:
        gone = list(entries)
        self._count -= len(gone)
        self._bytes -= sum(len(entry.frame) for entry in gone)
        self._done([entry.job for entry in gone])

    def _done(self, several: Iterable[Jobs]) -> None:
        gone: dict[Line, list[int]] = {}
        for jobs in several:
            for line, number in jobs.pieces:
                if line.up and line.owner.held.pop(number, None) is not None:
                    numbers = gone.get(line)
                    if numbers is None:
                        numbers = gone[line] = []
                    numbers.append(number)
        if gone:
            delete_all(gone)
            self.lines.send(gone)


class _Strange:
    """A job of which it is asked in which tube it was."""

    __slots__ = ("body", "reading")

    def __init__(self, reading: Reading, body: bytes) -> None:
        self.reading = reading
        self.body = body

    def heard(self, line: Line, request: Request, answer: Answer) -> None:
        number = int(request.data.split()[1])
        if line.owner.held.get(number) is self:
            _, _, rest = answer.body.partition(b"\ntube: ")
            self.reading.strange(line, number, self.body, rest.partition(b"\n")[0].strip(b'"'))
