"""The reading half of a Messenger: reserves frames, keeps them until they are forgotten, one thread at a time.

A frame that was read and not forgotten is a job that is reserved and not deleted: if this reader dies, beanstalkd
gives it to the next one, in its old place. A reserve that waits stays where it is between two reads: nobody else reads
these channels. Deletions that are asked for behind it are done when it is over, three seconds later at most.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection, Iterable

from ...protocols.beanstalkd import Answer, Request
from ...protocols.beanstalkd import commands as ask
from ..channel import Channel, Entry
from ..holding import READ, Asked, Holding
from ..lines import Line, Lines
from .address import KIND, Place
from .delivery import Delivery
from .reserving import Reserving
from .settling import delete_all
from .wrapping import Piece, channel_mark, read_piece

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


class Reading(Holding):
    """The frames that this reader holds. Not thread-safe, but for `lines.wake`."""

    def __init__(self, place: Place) -> None:
        super().__init__(Lines(place.servers, place.timeout, KIND))
        self._place = place
        self._reserving = Reserving(self.lines, place, READ, self._arrived, self._soon, self._lost)
        self._delivery = Delivery(self.lines)  # of wake-up calls
        self._torn: OrderedDict[tuple[bytes, bytes, int], dict[int, tuple[bytes, Line, int]]] = OrderedDict()
        self._tubes: set[bytes] = set()
        self._strange = 0  # jobs of somebody else's making that are being asked about

    def advance(self, limit: int, asked: Asked) -> tuple[int, bool]:
        ready, holes = self._look(asked, time.monotonic())
        reserving = self._reserving
        up = reserving.lines()
        if self._strange or reserving.busy():
            return ready, True
        room = self._room(limit, ready, holes, asked)
        if room is None:
            return ready, False
        busy = False
        for line in up:
            if room <= 0 or reserving.under_way(line):
                continue
            if reserving.dry(line):
                if not ready:
                    reserving.wait(line, self._tubes, room)
                    self.lines.send([line])
            else:
                reserving.look(line, self._tubes, room)
                busy = busy or reserving.busy()
        return ready, busy

    def close(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        up = [line for line in self._reserving.lines() if line.state.open > line.state.reserving]
        if up:
            self._recall()
        while any(line.up and line.state.open for line in up) and time.monotonic() < deadline:
            self.lines.pump(deadline)
        self.lines.close()

    # ---- within

    def _key(self, name: str) -> bytes:
        return channel_mark(name)

    def _turn_to(self, names: Collection[str]) -> None:
        self._tubes = set(map(self._place.names.channel, names))
        self.lines.want(self._reserving.role)
        self._recall()

    def _turn_from(self, name: str) -> None:
        mark = self._key(name)
        for key in [key for key in self._torn if key[0] == mark]:
            self._tear(key)
        self._listening = set()  # the next read listens anew

    def _due(self) -> float:
        return self._reserving.until()

    def _drained(self) -> bool:
        up = self._reserving.lines()
        return len(up) == len(self.lines.servers) and all(
            self._reserving.dry(line) or line.state.reserving for line in up
        )

    def _recall(self) -> None:
        waiting = [line for line in self._reserving.lines() if line.state.reserving]
        if waiting:
            self.lines.want(self._delivery.role)
            self._reserving.recall(waiting, self._delivery.role.name)
        for line in self._reserving.lines():
            self._reserving.damp(line)

    def _arrived(self, line: Line, number: int, body: bytes) -> None:
        held = line.owner.held
        if number in held:
            return  # its time ran out, and it came to us again
        piece = read_piece(body)
        name = self._names.get(piece.channel) if piece is not None else None
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
        if not self._take_in(channel, entry, time.monotonic()):
            self._done([jobs])

    def strange(self, line: Line, number: int, body: bytes, tube: bytes) -> None:
        """A job of somebody else's making, in a channel's tube: passed on as it is, for the layer above to refuse."""
        self._strange -= 1
        names = self._place.names
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
