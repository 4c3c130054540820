"""What is put: a task with its body, parts or not, and a frame in its pieces."""

from __future__ import annotations

from ...protocols.beanstalkd import Answer, Request
from ...protocols.beanstalkd import commands as ask
from ..lines import Line
from ..preference import Order
from . import told as telling
from .delivery import Load, put_requests
from .wrapping import frame_jobs, task_head, task_of_parts

_PART_TTR = 60  # seconds; nobody reserves a part
_FRAME_TTR = 60  # seconds that a reader may hold a frame without a word


class TaskLoad(Load):
    """A task. `number` is that of its job once it is there, `parts` those of the jobs that hold its body."""

    __slots__ = ("body", "delay", "id", "name", "number", "parts", "priority", "tube", "ttr", "part_tube", "_waiting")

    def __init__(
        self, order: Order, id: str, name: str, body: bytes, tube: bytes, part_tube: bytes,
        priority: int, delay: int, ttr: int,
    ) -> None:  # fmt: skip
        super().__init__(order)
        self.id = id
        self.name = name
        self.body = body
        self.tube = tube
        self.part_tube = part_tube
        self.priority = priority
        self.delay = delay
        self.ttr = ttr
        self.number = -1
        self.parts: list[int] = []
        self._waiting = 0  # parts that are not answered

    def begin(self, line: Line) -> int:
        self.parts, self._waiting = [], 0
        data = task_head(self.id, self.name, self.priority, self.ttr) + self.body
        most = line.owner.max_job
        if len(data) <= most:
            telling.use(line, self.tube)
            line.state.ask(ask.put_plain(data, self.priority, self.delay, self.ttr, self))
            return len(data)
        pieces = [self.body[at : at + most] for at in range(0, len(self.body), most)]
        self._waiting = len(pieces)
        return put_requests(line, self.part_tube, pieces, _PART_TTR, self)

    def heard(self, line: Line, request: Request, answer: Answer) -> bool:
        word = answer.word
        if self._waiting:
            self._waiting -= 1
            if word == b"INSERTED":
                self.parts.append(answer.number)
            else:
                self.refusal = answer
            if self._waiting:
                return True
            if self.refusal is None:
                telling.use(line, self.tube)
                data = task_of_parts(self.id, self.name, tuple(self.parts), self.priority, self.ttr)
                line.state.ask(ask.put_plain(data, self.priority, self.delay, self.ttr, self))
                return True
            return self._fail(line, self.refusal)
        if word == b"INSERTED":
            self.number = answer.number
            self.ended = True
            return True
        return self._fail(line, answer)

    def _fail(self, line: Line, answer: Answer) -> bool:
        """Take back what is there of it already."""
        for number in (*self.parts, *([answer.number] if answer.word == b"BURIED" else [])):
            line.state.ask(ask.delete(number))
        self.parts = []
        if answer.word == b"DRAINING":
            self.refusal = None
            return False
        self.refusal = answer
        self.ended = True
        return True


class FrameLoad(Load):
    """A frame of a channel; `number` is its writer's."""

    __slots__ = ("frame", "mark", "number", "tube", "writer", "_draining", "_waiting")

    def __init__(self, order: Order, tube: bytes, mark: bytes, writer: bytes, number: int, frame: bytes) -> None:
        super().__init__(order)
        self.tube = tube
        self.mark = mark
        self.writer = writer
        self.number = number
        self.frame = frame
        self._waiting = 0
        self._draining = False

    def begin(self, line: Line) -> int:
        self._draining = False
        jobs = frame_jobs(self.mark, self.writer, self.number, self.frame, line.owner.max_job)
        self._waiting = len(jobs)
        return put_requests(line, self.tube, jobs, _FRAME_TTR, self)

    def heard(self, line: Line, request: Request, answer: Answer) -> bool:
        self._waiting -= 1
        if answer.word == b"DRAINING":
            self._draining = True
        elif answer.word != b"INSERTED":
            self.refusal = answer
            if answer.word == b"BURIED":
                line.state.ask(ask.delete(answer.number))
        if self._waiting:
            return True
        if self._draining and self.refusal is None:
            return False
        self.ended = True
        return True
