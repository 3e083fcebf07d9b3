"""Ends that take frames in with and without courses, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from helix_mq.clock import VirtualClock
from helix_mq.errors import FrameError
from helix_mq.foreseen import Foreseen, PackedHeader
from helix_mq.frames import FRAME_HEAD, decode, pack_route
from helix_mq.ids import ROUTER, Attempt, NodeId, RequestId
from helix_mq.inlink import Answers, InLink
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import SAMPLE, FrameHeader, LinkHello, Row
from helix_mq.packing import PACK
from helix_mq.transport import Delivery
from nodes.batching import SeqKey
from nodes.courses import Courses, Works
from nodes.frame_making import frame_of
from nodes.inbox import NodeView, accept_frame, check_sender
from nodes.ledger import Ledger
from nodes.steps import use_up

WIDTH, VOCAB, CONTEXT = 8, 100, 400
HOPS = (("a", 0, 2), ("me", 2, 5), ("z", 5, 6))
MIDDLE = Route(tuple(Hop(NodeId(n), LayerRange(s, e)) for n, s, e in HOPS))
FIRST = Route((Hop(NodeId("me"), LayerRange(0, 3)), Hop(NodeId("z"), LayerRange(3, 6))))
WHOLE = Route((Hop(NodeId("me"), LayerRange(0, 6)),))
VIEW = NodeView("me", frozenset({5}), LayerRange(0, 6), 6, WIDTH, VOCAB, CONTEXT)

Frame = tuple[bytes, memoryview]
"""Its header, packed, and its payload."""


def frame(
    rows: Sequence[Row], sender: str = "a", route: Route = MIDDLE, ids: Sequence[int] = ()
) -> Frame:
    tokens = sum(row.count for row in rows)
    if route in (FIRST, WHOLE):
        payload = np.array(ids or range(tokens), np.int32).data
        shape = ("int32", 1)
    else:
        payload = np.random.default_rng(tokens).random(tokens * WIDTH, np.float32).data
        shape = ("float32", WIDTH)
    header = FrameHeader(5, sender, *shape, tuple(rows), (pack_route(route),))
    return PACK(header), memoryview(bytearray(payload.cast("B")))


def row(request: int, position: int, *, hop: int = 1, **fields: int) -> Row:
    return Row(
        request, 0, position, fields.get("count", 1), 0, hop,
        fields.get("flags", SAMPLE), fields.get("deadline_ms", 0),
    )  # fmt: skip


@dataclass
class Line:
    waiting_rows: int = 0


@dataclass
class End:
    """What takes frames in, as a node does; `foresees`: with courses."""

    foresees: bool
    clock: VirtualClock = field(default_factory=VirtualClock)
    view: NodeView = VIEW
    window: int = 1 << 20
    line: Line = field(default_factory=Line)
    taken: list[object] = field(default_factory=list)
    last: Works = field(default_factory=list)
    hits: int = 0
    told: int = 0
    """Frames that left under a header that was foreseen."""

    def __post_init__(self) -> None:
        self.ledger = Ledger()
        self.foreseen: dict[bytes, Foreseen] = {}
        self.courses = Courses(self.ledger, self.foreseen, self.clock)
        self.courses.go(self.view, self.line, self.took)
        self.links = {name: self.link(name) for name in ("a", "b", "z", ROUTER)}

    def link(self, sender: str) -> InLink:
        answers = Answers("me", self.clock, lambda peer, message: None)
        hello = LinkHello(sender, 1, 7)
        link = InLink(Delivery(b"", None, [], 0), hello, self.window, answers)
        # Its acknowledgements would need an event loop.
        link._due = True
        return link

    def came(self, given: Frame, sender: str = "a") -> None:
        packed, payload = given
        nbytes = len(packed) + payload.nbytes
        link = self.links[sender]
        known = self.foreseen.get(packed)
        if known is not None and known.came(link, payload, nbytes):
            self.hits += 1
            return
        try:
            message = decode([FRAME_HEAD, packed, payload])
            header = message.header
            assert isinstance(header, FrameHeader)
            link.received(nbytes)
            if header.sender != sender:
                raise FrameError("another's name", reason="identity")
            check_sender(header)
            now_ms = int(self.clock.wall_s() * 1000)
            accepted = accept_frame(
                self.view,
                self.ledger,
                header,
                message.buffers,
                lambda: link.consumed(nbytes),
                now_ms,
            )
        except FrameError as e:
            self.taken.append(e.reason)
            return
        self.taken += [item.code for item in accepted.refused]
        for item in accepted.refused:
            self.close(item.request)
        if accepted.work:
            self.took(accepted.work, payload)
            if self.foresees and len(accepted.work) == len(header.rows):
                self.courses.saw(header, accepted.work)

    def took(self, works: Works, payload: memoryview) -> None:
        self.last = works
        leaving = frame_of("me", works, WIDTH, "float32", payload)
        self.told += type(leaving.header) is PackedHeader
        out = leaving.header
        self.taken.append(
            [
                (
                    (w.seq, w.position, w.count, w.layers, w.next_hop, w.sample, w.drafts),
                    (p.dtype, p.width, bytes(p.data), p.route, p.route_blob, p.hop, p.epoch),
                    (p.deadline_ms, p.spec, p.history, p.direct, p.blocks, p.drafting, p.together),
                    p.use.left,
                )
                for w in works
                for p in (w.payload,)
            ]
        )
        self.taken.append((out.packed if type(out) is PackedHeader else PACK(out), leaving.peer))
        self.taken.append(leaving.sequences)
        use_up(works)

    def serve(self, view: NodeView) -> None:
        self.view = view
        self.courses.serve(view)

    def close(self, request: int) -> None:
        seq = SeqKey(RequestId(request), Attempt(0))
        self.ledger.close(seq)
        self.courses.forget(seq)

    def books(self) -> object:
        rows = [(s, o.next_position, o.epoch, o.drafts) for s, o in self.ledger.opened.items()]
        credit = [(n, li._credit.received_bytes, li._credit.outstanding_bytes)
                  for n, li in self.links.items()]  # fmt: skip
        return rows, credit


def begin(end: End, requests: Sequence[int], position: int = 20) -> None:
    for request in requests:
        end.came(frame([row(request, 0, count=position)]))


def go_round(end: End, requests: Sequence[int], start: int, steps: int) -> None:
    for step in range(steps):
        end.came(frame([row(r, start + step) for r in requests]))
