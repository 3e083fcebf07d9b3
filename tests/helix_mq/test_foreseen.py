"""Headers that are known before they come: the bytes that packing the next step's rows gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs

from helix_mq.foreseen import MOST_BYTES, PackedHeader, steps_of
from helix_mq.frames import FRAME_HEAD, encode, pack_route
from helix_mq.gathering import SMALL_ROWS
from helix_mq.ids import NodeId
from helix_mq.inlink import InLink
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages import Kind
from helix_mq.messages.data import (
    DIRECT,
    DRAFTING,
    SAMPLE,
    TOGETHER,
    VERIFY,
    FrameHeader,
    LinkHello,
    Row,
    SampleSpec,
)
from helix_mq.packing import PACK
from helix_mq.sampling import SamplingParams
from helix_mq.transport import Delivery
from tests.helix_mq.plane_ends import Net, frame

ROUTES = tuple(
    pack_route(Route((Hop(NodeId(name), LayerRange(0, 3)), Hop(NodeId("z"), LayerRange(3, 6)))))
    for name in ("a", "b")
)
CONTEXT = 1 << 20
# Where a number's form changes, and around.
POSITIONS = st.one_of(
    st.integers(1, 300),
    st.sampled_from([126, 127, 128, 254, 255, 256, 65_534, 65_535, 65_536, CONTEXT - 2]),
    st.integers(1, CONTEXT - 2),
)


def header(positions: Sequence[int], flags: int = SAMPLE) -> FrameHeader:
    rows = tuple(
        Row(1 << (n % 63), n, position, 1, n % 2, 1, flags, 7 << (n % 40))
        for n, position in enumerate(positions)
    )
    return FrameHeader(5, "a", "bfloat16", 576, rows, ROUTES)


def later(first: FrameHeader, steps: int) -> FrameHeader:
    rows = tuple(structs.replace(row, position=row.position + steps) for row in first.rows)
    return structs.replace(first, rows=rows)


@given(st.lists(POSITIONS, min_size=1, max_size=12), st.floats(0, 1), st.booleans())
@example([1, 127, 128], 0.0, False)
@example([255, 256], 1.0, True)
@example([65_535], 0.5, False)
def test_each_following_header_is_what_packing_its_rows_gives(
    positions: list[int], part: float, direct: bool
) -> None:
    first = header(positions, SAMPLE | (DIRECT if direct else 0))
    steps = steps_of(first, CONTEXT)
    lengthen = any(p + 1 in (1 << 7, 1 << 8, 1 << 16) for p in positions)
    if steps is None:
        assert lengthen, "only where the very next one has another form"
        return
    assert not lengthen
    for step in {0, 1, int(part * steps.most), steps.most}:
        assert steps.at(step) == PACK(later(first, step))
        assert PackedHeader(steps.at(step)).header() == later(first, step)
    beyond = PACK(later(first, steps.most + 1))
    full = max(positions) + steps.most == CONTEXT - 1
    assert full or len(beyond) > len(PACK(first)), "it stops only where it must"


def test_nothing_follows_the_last_token_of_a_context() -> None:
    assert steps_of(header([40]), 41) is None
    two = steps_of(header([40, 30]), 42)
    assert two is not None
    assert two.most == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"count": 2},
        {"position": 0},
        {"flags": 0},
        {"flags": SAMPLE | VERIFY, "count": 2, "drafts": (3,)},
        {"flags": SAMPLE | VERIFY},
        {"flags": SAMPLE | DIRECT | DRAFTING},
        {"flags": SAMPLE | TOGETHER},
        {"spec": SampleSpec(SamplingParams(), 2, 0)},
        {"blocks": bytes(16)},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_of_rows_that_are_more_than_the_next_token_nothing_is_foreseen(
    fields: dict[str, object],
) -> None:
    first = header([40, 50])
    assert steps_of(first, CONTEXT) is not None
    rows = (first.rows[0], structs.replace(first.rows[1], **fields))
    assert steps_of(structs.replace(first, rows=rows), CONTEXT) is None


def test_very_long_headers_are_not_kept() -> None:
    most = header([40] * SMALL_ROWS)
    assert steps_of(most, CONTEXT) is not None
    assert steps_of(header([40] * (SMALL_ROWS + 1)), CONTEXT) is None
    assert len(PACK(most)) <= MOST_BYTES
    assert steps_of(structs.replace(most, routes=(bytes(MOST_BYTES),)), CONTEXT) is None


@dataclass
class Expected:
    """A frame that is known before it comes; `takes` says whether it is taken then."""

    takes: bool = True
    came_with: list[bytes] = field(default_factory=list)

    def came(self, link: InLink, payload: memoryview, nbytes: int) -> bool:
        self.came_with.append(bytes(payload))
        if self.takes:
            link.received(nbytes)
            link.consumed(nbytes)
        return self.takes


async def test_a_frame_that_is_foreseen_is_taken_without_being_read(net: Net) -> None:
    a, b = await net.pair(window=4096)
    header, payload = frame(7)
    expected = Expected()
    b.plane.foreseen[PACK(header)] = expected
    # More than the window holds: credit comes back for these, too.
    for _ in range(20):
        a.plane.send("b", header, (payload,))
    a.send("b", 8)
    await b.until(lambda: b.requests == [8])
    assert expected.came_with == [bytes(payload)] * 20
    assert not b.plane.bad_messages
    expected.takes = False
    a.plane.send("b", PackedHeader(PACK(header)), (payload,))
    await b.until(lambda: b.requests == [8, 7])
    assert len(expected.came_with) == 21


async def test_only_frames_over_their_link_are_foreseen(net: Net) -> None:
    """These bytes before a hello, under another kind, with a part too many, or under another key
    are read as ever."""
    b = await net.bound("b")
    header, payload = frame(7)
    packed = PACK(header)
    expected = b.plane.foreseen[packed] = Expected()
    stranger = await net.raw(b, [])
    stranger.send([FRAME_HEAD, packed, payload])
    stranger.send(encode(LinkHello("a", 1, 77)))
    stranger.send([bytes((FRAME_HEAD[0], Kind.TOKENS)), packed, payload])
    stranger.send([FRAME_HEAD, packed, payload, payload])
    header, payload = frame(8)
    stranger.send(encode(header, (payload,)))
    await b.until(lambda: b.requests == [8])
    (peer,) = b.plane._in
    parts = [FRAME_HEAD, packed, payload]
    b.plane._deliver(Delivery(peer, "another", list(map(memoryview, parts)), 1100))
    assert b.plane.bad_messages == {
        ("stranger", "no_hello"): 1,
        ("a", "bad_field"): 1,
        ("a", "length"): 1,
        ("a", "identity"): 1,
    }
    assert not expected.came_with
