"""Small frames of one turn of the loop leave as one: nothing is lost, doubled or overtaken."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from helix_mq.clock import VirtualClock
from helix_mq.foreseen import PackedHeader
from helix_mq.frames import Buffer, Message, decode, pack_route
from helix_mq.gathering import MOST_BYTES, MOST_ROWS, Gathering, is_small
from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import SAMPLE, VERIFY, FrameHeader, Grant, Row, SampleSpec
from helix_mq.outlink import OutLink, PeerAddress, is_urgent
from helix_mq.packing import PACK
from helix_mq.sampling import SamplingParams
from helix_mq.transport import ChannelStatistics, Parts
from tests.helix_mq.turns import Turns

WINDOW = 1 << 20
FAR = 1 << 30


def route(n: int) -> bytes:
    hops = (Hop(NodeId(f"a{n}"), LayerRange(0, 1)), Hop(NodeId("b"), LayerRange(1, 2)))
    return pack_route(Route(hops))


def small(
    *requests: int,
    position: int = 1,
    width: int = 4,
    epoch: int = 1,
    routes: tuple[int, ...] = (0,),
) -> tuple[FrameHeader, list[Buffer]]:
    """A decode of each request, its values all the request's number; routes in turn."""
    rows = tuple(
        Row(request, 0, position, 1, i % len(routes), 1, SAMPLE, 0)
        for i, request in enumerate(requests)
    )
    values = np.repeat(np.array(requests, np.float32), width)
    blobs = tuple(map(route, routes))
    return FrameHeader(epoch, "a", "float32", width, rows, blobs), [values.data.cast("B")]


def chunk(request: int, tokens: int = 4) -> tuple[FrameHeader, list[Buffer]]:
    row = Row(request, 0, 0, tokens, 0, 1, 0, 0)
    values = np.full(tokens * 4, request, np.float32)
    return FrameHeader(1, "a", "float32", 4, (row,), (route(0),)), [values.data.cast("B")]


def told(header: FrameHeader, payload: Buffer) -> list[tuple[int, int, bytes, bytes]]:
    """Each row as its receiver has it: request, position, route, values."""
    view, stride, at = memoryview(payload).cast("B"), 4 * header.width, 0
    found = []
    for row in header.rows:
        end = at + row.count * stride
        blob = header.routes[row.route]
        found.append((row.request, row.position, blob, bytes(view[at:end])))
        at = end
    assert at == view.nbytes
    return found


@dataclass
class Wire(Turns):
    """Keeps what it is given; `turn` is the loop's next one."""

    frames: list[Message] = field(default_factory=list)

    def send(self, parts: Parts) -> bool:
        self.frames.append(decode(list(parts)))
        return True

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(0, 0, 0, 0, {}, {}, 0, 0, 0, 0)

    async def close(self) -> None:
        """Nothing is open."""

    @property
    def requests(self) -> list[list[int]]:
        headers = [frame.header for frame in self.frames]
        return [[r.request for r in h.rows] for h in headers if isinstance(h, FrameHeader)]


def linked(granted: int = FAR) -> tuple[OutLink, Wire]:
    wire = Wire()
    link = OutLink(PeerAddress("b", 1, "mem://b"), VirtualClock(), WINDOW, wire.soon)
    link.connection, link.connected = wire, True
    link.begin(1)
    link.granted(Grant("b", 1, granted, 0))
    return link, wire


frames_of = st.lists(
    st.builds(
        small,
        st.integers(1, 99),
        st.integers(1, 99),
        position=st.integers(1, 9),
        width=st.sampled_from([4, 4, 4, 600]),
        epoch=st.sampled_from([1, 1, 1, 2]),
        routes=st.sampled_from([(0,), (0,), (1,), (0, 1), (1, 0), (2, 3)]),
    ),
    max_size=40,
)


@given(frames_of)
def test_a_gathered_frame_has_all_rows_in_order(
    frames: list[tuple[FrameHeader, list[Buffer]]],
) -> None:
    gathering, out = Gathering(), []
    for header, (payload,) in frames:
        if not gathering.add(header, payload):
            out.append(gathering.take())
            assert not gathering.nbytes
            assert gathering.add(header, payload)
    if gathering.nbytes:
        out.append(gathering.take())
    came = [row for header, (payload,) in out for row in told(header, payload)]
    assert came == [row for header, (payload,) in frames for row in told(header, payload)]
    for header, (payload,) in out:
        assert len(set(header.routes)) == len(header.routes)
        assert len(header.rows) <= MOST_ROWS
        assert memoryview(payload).nbytes <= MOST_BYTES


def test_what_is_not_small_is_not_gathered() -> None:
    header, buffers = small(1)
    assert is_small(header, buffers)
    assert not is_small(*small(1, width=1025))
    assert not is_small(*small(*range(1, 66)))
    spec = SampleSpec(SamplingParams(), 2, 0)
    for fields in (
        {"spec": spec},
        {"blocks": bytes(16)},
        {"flags": 0},
        {"position": 0},
        {"count": 2},
    ):
        row = structs.replace(header.rows[0], **fields)
        assert not is_small(structs.replace(header, rows=(row,)), buffers)
    drafts = structs.replace(header.rows[0], count=2, flags=SAMPLE | VERIFY)
    assert is_small(structs.replace(header, rows=(drafts,)), buffers)
    assert not is_small(header, [*buffers, b"1234"])
    twice = structs.replace(header, routes=(route(0), route(0)))
    assert not Gathering().add(twice, buffers[0])


def test_the_first_of_a_turn_goes_at_once_and_the_others_as_one_frame() -> None:
    link, wire = linked()
    for request in range(1, 6):
        link.send(*small(request))
        assert wire.requests == [[1]]
    assert not link.blocked
    assert link.statistics().backlog_bytes == 4 * 16
    wire.turn()
    assert wire.requests == [[1], [2, 3, 4, 5]]
    assert link.statistics().backlog_bytes == 0
    assert link.statistics().sent_frames == 2
    link.send(*small(6))
    assert wire.requests[2:] == [[6]]
    wire.turn()
    assert len(wire.frames) == 3


def test_what_is_gathered_is_bounded() -> None:
    link, wire = linked()
    for request in range(1, 2 * MOST_ROWS):
        link.send(*small(request))
    assert [len(requests) for requests in wire.requests] == [1, MOST_ROWS]
    link.send(*small(9, epoch=2))
    assert len(wire.requests[-1]) == MOST_ROWS - 2, "another epoch has a frame of its own"
    wire.turn()
    assert wire.requests[-1] == [9]


def test_nothing_is_overtaken() -> None:
    """A chunk and a frame that is not small go behind what was gathered before them."""
    link, wire = linked()
    link.send(*small(1))
    link.send(*small(2))
    link.send(*chunk(2))
    link.send(*small(3))
    link.send(*small(4, width=2000))
    assert wire.requests == [[1], [2], [2], [3], [4]]
    wire.turn()
    assert len(wire.frames) == 5


def test_without_credit_it_waits_in_line() -> None:
    link, wire = linked(granted=1)
    link.granted(Grant("b", 1, 400, 0))
    for position in range(1, 20):
        link.send(*small(*range(1, 9), position=position))
        wire.turn()
    assert 0 < len(wire.frames) < 19
    assert link.blocked
    link.granted(Grant("b", 1, FAR, 0))
    wire.turn()
    positions = [h.rows[0].position for f in wire.frames if isinstance(h := f.header, FrameHeader)]
    assert positions == list(range(1, 20))
    assert not link.blocked


def test_many_that_waited_leave_over_several_turns() -> None:
    link, wire = linked(granted=1)
    for position in range(1, 101):
        link.send(*small(1, position=position))
        wire.turn()
    before = len(wire.frames)
    link.granted(Grant("b", 1, FAR, 0))
    assert len(wire.frames) - before < 50
    turns = 0
    while wire.calls:
        wire.turn()
        turns += 1
    assert turns > 1
    assert [request for frame in wire.requests for request in frame] == [1] * 100


def test_what_was_gathered_is_lost_with_its_link() -> None:
    link, wire = linked()
    link.send(*small(1))
    link.send(*small(2))
    link.connected = False
    link.lose()
    link.connected = True
    link.begin(2)
    wire.turn()
    assert wire.requests == [[1]]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.integers(1, 3),
            st.sampled_from((0, SAMPLE, VERIFY, SAMPLE | VERIFY)),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_both_looks_at_a_frame_agree_with_its_rows_on_what_a_decode_is(
    rows: list[tuple[int, int, int]],
) -> None:
    header, buffers = small(1)
    made = tuple(
        structs.replace(header.rows[0], position=position, count=count, flags=flags)
        for position, count, flags in rows
    )
    header = structs.replace(header, rows=made)
    decodes = all(row.is_decode for row in made)
    assert is_urgent(header) is decodes
    assert is_small(header, buffers) is decodes


@given(frames_of, st.lists(st.sampled_from(["turn", "chunk", "grant", ""]), min_size=40))
def test_a_packed_header_goes_the_way_that_its_frame_would(
    frames: list[tuple[FrameHeader, list[Buffer]]], between: list[str]
) -> None:
    (plain, read), (packed, known) = linked(granted=2000), linked(granted=2000)
    granted = 2000
    for (header, buffers), then in zip(frames, between, strict=False):
        plain.send(header, buffers)
        packed.send_decodes(PackedHeader(PACK(header)), buffers)
        for link, wire in ((plain, read), (packed, known)):
            if then == "turn":
                wire.turn()
            elif then == "chunk":
                link.send(*chunk(7))
            elif then == "grant":
                link.granted(Grant("b", 1, granted + 1500, 0))
        granted += 1500 * (then == "grant")
    for link, wire in ((plain, read), (packed, known)):
        link.granted(Grant("b", 1, FAR, 0))
        wire.turn()
        wire.turn()
    assert known.frames == read.frames
    one, other = packed.statistics(), plain.statistics()
    assert (one.sent_bytes, one.sent_frames) == (other.sent_bytes, other.sent_frames)
    assert one.backlog_bytes == other.backlog_bytes == 0
