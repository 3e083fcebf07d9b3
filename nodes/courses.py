"""Rows that keep going the same way together, step by step: what judging a frame found is kept.

When a frame of decodes comes with the rows of the frame before, each one token on, the header of
the next one is known (`helix_mq.foreseen`). Comes that, only what may have changed since is asked:
whether its sequences are still open here at these positions, deadlines, what the node serves, room
on the link, the payload's length and its token ids. All else is the same bytes, which have been
judged before. Whatever is not as expected goes the general way, which says what is wrong.

Little is kept per row on purpose: what has left the processor's caches since takes as long to fetch
as to work out anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Protocol

import msgspec

from helix_mq.clock import Clock
from helix_mq.foreseen import Foreseen, HeaderSteps, PackedHeader, steps_of
from helix_mq.gathering import SMALL_ROWS
from helix_mq.inlink import InLink
from helix_mq.messages.data import SCALED, FrameHeader
from nodes.batching import MAX_WAITING_ROWS, SeqKey, Work
from nodes.inbox import NodeView, ids_fit
from nodes.ledger import Ledger, OpenSequence
from nodes.payload import FrameUse, Payload

Works = list[Work[Payload]]
Take = Callable[[Works, memoryview], None]
"""What is done with the rows of a frame that has been let in, and its payload."""

_FOR_EVER_MS = 1 << 63
_MOST_PATIENCE = 16
_MOST_FORMS = 4
"""Forms of a link on the way: where they change all the time, or a header is too long, frames are
made of their rows."""
_WORTH_STEPS = 8
"""Of a course that came so far it was worth it to expect them."""


class Line(Protocol):
    """Where rows wait that were let in."""

    @property
    def waiting_rows(self) -> int: ...


class _NoLine:
    waiting_rows = 0


class Course:
    """The rows of one frame, and of those that follow it."""

    __slots__ = (
        "_courses",
        "_deadline_ms",
        "_deadlines_ms",
        "_learned",
        "_like",
        "_out",
        "_out_dtype",
        "_out_from",
        "_positions",
        "_sequences",
        "_size",
        "_view",
        "headers",
        "key",
        "over",
        "rows",
        "sender",
        "step",
    )

    def __init__(
        self,
        courses: Courses,
        view: NodeView,
        sender: str,
        works: Sequence[Work[Payload]],
        headers: HeaderSteps,
    ) -> None:
        """Made by `Courses`."""
        self._courses = courses
        self._view = view
        self._like = _without_data(works[0])
        """What all rows have in common with the first."""
        self._size = works[0].payload.data.nbytes
        self._positions = [w.position for w in works]
        """In step 0."""
        self._deadlines_ms = [w.payload.deadline_ms for w in works]
        self._deadline_ms = min(d or _FOR_EVER_MS for d in self._deadlines_ms)
        self._out: HeaderSteps | None = None
        """Headers under which they leave, in the form of this dtype, from this step on."""
        self._out_dtype = ""
        self._out_from = 0
        self._learned = 0
        """How often they were worked out."""
        self.rows: list[OpenSequence] = [courses.ledger.opened[w.seq] for w in works]
        self._sequences = frozenset([w.seq for w in works])
        self.sender = sender
        self.headers = headers
        self.step = 0
        """The one that is expected, the first frame's being 0."""
        self.key = b""
        """Its header."""
        self.over = False

    def came(self, link: InLink, payload: memoryview, nbytes: int) -> bool:
        """See Foreseen."""
        courses, rows, step = self._courses, self.rows, self.step
        if link.sender != self.sender:
            # Whoever that is, these rows are still expected.
            return False
        if (
            courses.view is not self._view
            or courses.line.waiting_rows >= MAX_WAITING_ROWS
            or payload.nbytes != self._size * len(rows)
            or not link.has_room(nbytes)
            or courses.clock.wall_s() * 1000 >= self._deadline_ms
            or (self._like.payload.dtype == "int32" and not ids_fit(payload, self._view))
        ):
            courses.end(self)
            return False
        for opened, position in zip(rows, self._positions, strict=True):
            # After any other row it would be further on.
            if opened.over or opened.next_position != position + step:
                courses.end(self)
                return False
        del courses.foreseen[self.key]
        link.received(nbytes)
        courses.take(self._let_in(payload, partial(link.consumed, nbytes)), payload)
        # Behind what waits for it.
        courses.expect(self, step + 1)
        return True

    def _let_in(self, payload: memoryview, on_consumed: Callable[[], None]) -> Works:
        """The rows as works, and the ledger a token further."""
        like, size, at = self._like, self._size, 0
        was, data = like.payload, payload.cast("B")
        layers, next_hop = like.layers, like.next_hop
        use = FrameUse(len(self.rows), on_consumed, perf_counter(), self)
        works: Works = []
        for opened, deadline_ms in zip(self.rows, self._deadlines_ms, strict=True):
            position = opened.next_position
            opened.next_position = position + 1
            end = at + size
            works.append(
                Work(
                    opened.seq,
                    position,
                    1,
                    layers,
                    next_hop,
                    True,
                    Payload(
                        was.dtype,
                        was.width,
                        data[at:end],
                        use,
                        was.route,
                        was.route_blob,
                        was.hop,
                        was.epoch,
                        deadline_ms,
                        None,
                        None,
                        was.direct,
                    ),
                )
            )
            at = end
        return works

    def leave(
        self, works: Sequence[Work[Payload]], dtype: str
    ) -> tuple[PackedHeader, frozenset[SeqKey]] | None:
        """See Again."""
        out = self._out
        if out is None or dtype != self._out_dtype or not self.are_all(works):
            return None
        step = works[0].position - self._out_from
        return (PackedHeader(out.at(step)), self._sequences) if 0 <= step <= out.most else None

    def left(self, works: Sequence[Work[Payload]], header: FrameHeader) -> None:
        """See Again."""
        if self._learned < _MOST_FORMS and self.are_all(works):
            self._learned += 1
            self._out = steps_of(header, self._view.max_context)
            self._out_dtype = header.dtype
            self._out_from = works[0].position

    def are_all(self, works: Sequence[Work[Payload]]) -> bool:
        """See Again: then each is as far on as the first."""
        if len(works) != len(self.rows):
            return False
        use = works[0].payload.use
        for opened, work in zip(self.rows, works, strict=True):
            if work.payload.use is not use or work.seq is not opened.seq:
                return False
        return True


class Courses:
    """Those that are expected on one node, from go() to stop(). `foreseen` is the data plane's."""

    def __init__(self, ledger: Ledger, foreseen: dict[bytes, Foreseen], clock: Clock) -> None:
        self.ledger = ledger
        self.foreseen = foreseen
        self.clock = clock
        self.view: NodeView | None = None
        """What the node serves now; None where nothing is taken in."""
        self.line: Line = _NoLine()
        self.take: Take = _nobody
        self._of: dict[SeqKey, Course] = {}
        """A sequence is of one at most, so there are no more of them than sequences are open."""
        self._company: dict[SeqKey, tuple[tuple[int, SeqKey, str], int]] = {}
        """Of the first of a frame: with how many, up to whom and from where it came lately, and how
        often again."""
        self._patience = 1
        """So often in a row has a company to be seen before it is expected."""

    def __len__(self) -> int:
        return len(self._of)

    def go(self, view: NodeView, line: Line, take: Take) -> None:
        """`take` has what was let in go on, and `line` is where that waits."""
        self.view, self.line, self.take = view, line, take

    def serve(self, view: NodeView) -> None:
        """The node serves this from now on, if it serves anything."""
        if self.view is not None:
            self.view = view

    def stop(self) -> None:
        """Nothing is expected, and nobody's callbacks are kept: a circle would hold a slice's
        weights until the collector comes."""
        self.view, self.line, self.take = None, _NoLine(), _nobody
        for course in set(self._of.values()):
            self.end(course)
        self._company.clear()

    def saw(self, header: FrameHeader, works: Sequence[Work[Payload]]) -> None:
        """All rows of a frame have been let in the general way. Whoever comes twice in the same
        company is expected to do so again; where that came to nothing, later ones more often."""
        first, opened = works[0], self.ledger.opened
        if first.count != 1 or not first.position or first.seq not in opened:
            return
        if header.dtype == SCALED:
            # Its scales are to be checked each time.
            return
        company = len(works), works[-1].seq, header.sender
        before = self._company.get(first.seq)
        again = before[1] + 1 if before is not None and before[0] == company else 0
        due = again >= self._patience
        self._company[first.seq] = company, 0 if due else again
        if not due:
            return
        view = self.view
        if view is None or header.sender == view.node:
            # What a node hands back to itself comes over no link.
            return
        if len(works) > SMALL_ROWS:
            return
        if not all(w.seq in opened and _goes_with(first, w) for w in works):
            return
        if len({w.seq for w in works}) < len(works):
            # Its next row is not the one behind each of these.
            return
        headers = steps_of(header, view.max_context)
        if headers is None:
            self._in_vain()
            return
        for work in works:
            former = self._of.get(work.seq)
            if former is not None:
                self.end(former)
        course = Course(self, view, header.sender, works, headers)
        for work in works:
            self._of[work.seq] = course
        self.expect(course, 1)

    def expect(self, course: Course, step: int) -> None:
        """As the next one; nothing of one that is over or whose headers end."""
        if course.over:
            return
        if step > course.headers.most:
            self.end(course)
            return
        if step > _WORTH_STEPS:
            self._patience = 1
        course.step, course.key = step, course.headers.at(step)
        self.foreseen[course.key] = course

    def end(self, course: Course) -> None:
        """Its rows go the general way from now on."""
        if not course.over and course.step <= 1:
            self._in_vain()
        course.over = True
        if self.foreseen.get(course.key) is course:
            del self.foreseen[course.key]
        for opened in course.rows:
            if self._of.get(opened.seq) is course:
                del self._of[opened.seq]

    def _in_vain(self) -> None:
        """To work headers out took as long as to read a few."""
        self._patience = min(_MOST_PATIENCE, 2 * self._patience)

    def forget(self, seq: SeqKey) -> None:
        """It is closed."""
        self._company.pop(seq, None)
        course = self._of.get(seq)
        if course is not None:
            self.end(course)


def _goes_with(first: Work[Payload], work: Work[Payload]) -> bool:
    """Whether two rows of a frame have in common what a course keeps of the first alone."""
    one, other = first.payload, work.payload
    return not work.drafts and (
        work.layers is first.layers
        and work.next_hop == first.next_hop
        and other.use is one.use
        and other.route_blob == one.route_blob
        and other.hop == one.hop
        and other.direct == one.direct
    )


def _without_data(work: Work[Payload]) -> Work[Payload]:
    """What came is the transport's memory, which is not to be kept."""
    use = FrameUse(0, _nothing)
    payload = msgspec.structs.replace(work.payload, data=memoryview(b""), use=use)
    return msgspec.structs.replace(work, payload=payload)


def _nobody(works: Works, payload: memoryview) -> None:
    raise AssertionError("nothing is let in where nothing is served")


def _nothing() -> None:
    """No frame's bytes are held."""
