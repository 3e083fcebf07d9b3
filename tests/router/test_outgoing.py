"""One frame per first hop and epoch; releases first; the wire's limits kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.frames import Buffer, decode, encode, unpack_route
from helix_mq.ids import NodeId, RequestId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import (
    DIRECT,
    DRAFTING,
    MAX_FRAME_TOKENS,
    MAX_ROWS,
    SAMPLE,
    TOGETHER,
    FrameHeader,
    Release,
    ReleaseItem,
    SampleSpec,
)
from helix_mq.sampling import SamplingParams
from router.events import SendRelease, SendRow
from router.outgoing import Outgoing, build_frame


class Wire:
    """Encodes and decodes what is sent, as the real one does."""

    def __init__(self, unreachable: frozenset[str] = frozenset()) -> None:
        self.unreachable = unreachable
        self.sent: list[tuple[str, msgspec.Struct, tuple[memoryview, ...]]] = []

    def __call__(self, node: str, header: msgspec.Struct, buffers: Sequence[Buffer]) -> bool:
        message = decode(encode(header, buffers))
        self.sent.append((node, message.header, message.buffers))
        return node not in self.unreachable

    @property
    def frames(self) -> list[tuple[str, FrameHeader, tuple[memoryview, ...]]]:
        return [(n, h, b) for n, h, b in self.sent if isinstance(h, FrameHeader)]


def route(first: str, second: str = "z") -> Route:
    hops = (Hop(NodeId(first), LayerRange(0, 2)), Hop(NodeId(second), LayerRange(2, 4)))
    return Route(hops)


def row(
    request: int, first: str = "a", *, tokens: int = 1, epoch: int = 1, second: str = "z"
) -> SendRow:
    ids = tuple(request * 1000 + i for i in range(tokens))
    return SendRow(RequestId(request), 0, 5, ids, route(first, second), epoch, 99)


def test_rows_of_a_turn_share_one_frame_per_first_hop_and_epoch() -> None:
    wire = Wire()
    out = Outgoing(wire)
    assert Outgoing(wire).empty
    for one in (row(1), row(2, second="y"), row(3, "b"), row(4, tokens=3), row(5, epoch=2)):
        out.add_row(one)
    assert not out.empty
    assert out.flush() == []
    assert out.flush() == [], "nothing is left"
    frames = {(n, h.epoch): (h, b) for n, h, b in wire.frames}
    assert len(wire.frames) == len(frames) == 3
    header, buffers = frames["a", 1]
    assert [
        (r.request, r.count, r.position, r.flags, r.deadline_ms, r.hop) for r in header.rows
    ] == [
        (1, 1, 5, SAMPLE, 99, 0),
        (2, 1, 5, SAMPLE, 99, 0),
        (4, 3, 5, SAMPLE, 99, 0),
    ]
    routes = [unpack_route(header.routes[r.route]) for r in header.rows]
    assert routes == [route("a"), route("a", "y"), route("a")]
    assert len(header.routes) == 2
    assert np.frombuffer(buffers[0], np.int32).tolist() == [1000, 2000, 4000, 4001, 4002]
    assert (header.sender, header.dtype, header.width) == ("@router", "int32", 1)


def test_a_row_says_what_is_known_of_its_route() -> None:
    one = row(1)
    told = {
        DIRECT: replace(one, direct=True),
        DRAFTING: replace(one, drafting=True),
        TOGETHER: replace(one, together=True),
    }
    for flag, row_said in told.items():
        header, _ = build_frame([one, row_said], 1)
        assert [r.flags for r in header.rows] == [SAMPLE, SAMPLE | flag]


def test_histories_follow_in_the_order_of_their_rows() -> None:
    wire = Wire()
    out = Outgoing(wire)
    spec = SampleSpec(SamplingParams(repetition_penalty=1.2), 2, 3)
    for request in (1, 2):
        ids = (request, request, request)
        out.add_row(SendRow(RequestId(request), 0, 0, ids, route("a"), 1, 0, spec, ids))
    out.add_row(
        SendRow(RequestId(3), 0, 0, (7,), route("a"), 1, 0, SampleSpec(SamplingParams(), 1, 0))
    )
    out.flush()
    ((_, header, buffers),) = wire.frames
    assert [r.spec.history_tokens for r in header.rows if r.spec] == [3, 3, 0]
    assert np.frombuffer(buffers[1], np.int32).tolist() == [1, 1, 1, 2, 2, 2]


def test_releases_go_first_and_in_bounded_messages() -> None:
    wire = Wire()
    out = Outgoing(wire)
    out.add_row(row(1))
    for request in range(MAX_ROWS + 5):
        out.add_release(SendRelease(NodeId("a"), ReleaseItem(request, 0)))
    out.flush()
    kinds = [type(h) for _, h, _ in wire.sent]
    assert kinds == [Release, Release, FrameHeader]
    released = [i.request for _, h, _ in wire.sent if isinstance(h, Release) for i in h.items]
    assert released == list(range(MAX_ROWS + 5))
    assert out.flush() == []
    assert len(wire.sent) == 3


def test_no_frame_passes_the_limits_of_the_wire() -> None:
    wire = Wire()
    out = Outgoing(wire)
    for request in range(MAX_ROWS + 1):
        out.add_row(row(request))
    for request in range(3):
        out.add_row(row(request, "b", tokens=MAX_FRAME_TOKENS // 2))
    out.add_row(row(9, "b", tokens=MAX_FRAME_TOKENS))
    out.flush()
    sizes = [(n, len(h.rows), sum(r.count for r in h.rows)) for n, h, _ in wire.frames]
    half = MAX_FRAME_TOKENS // 2
    assert sizes == [
        ("a", MAX_ROWS, MAX_ROWS),
        ("a", 1, 1),
        ("b", 2, 2 * half),
        ("b", 1, half),
        ("b", 1, MAX_FRAME_TOKENS),
    ]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2), st.integers(1, 9)), max_size=40)
)
def test_every_row_is_sent_once_in_its_own_order(plan: list[tuple[str, int, int]]) -> None:
    wire = Wire()
    out = Outgoing(wire)
    rows = [
        row(i, first, tokens=tokens, epoch=epoch) for i, (first, epoch, tokens) in enumerate(plan)
    ]
    for one in rows:
        out.add_row(one)
    out.flush()
    got: dict[tuple[str, int], list[tuple[int, tuple[int, ...]]]] = {}
    for name, header, buffers in wire.frames:
        ids, at = np.frombuffer(buffers[0], np.int32).tolist(), 0
        for r in header.rows:
            entry = (r.request, tuple(ids[at : at + r.count]))
            got.setdefault((name, header.epoch), []).append(entry)
            at += r.count
    expected: dict[tuple[str, int], list[tuple[int, tuple[int, ...]]]] = {}
    for one in rows:
        key = (str(one.route.hops[0].node), one.epoch)
        expected.setdefault(key, []).append((one.request, one.token_ids))
    assert got == expected


@pytest.mark.parametrize("parts", [1, 2])
def test_nodes_without_a_link_are_named_once(parts: int) -> None:
    wire = Wire(unreachable=frozenset({"a"}))
    out = Outgoing(wire)
    for request in range(parts):
        out.add_row(row(request, "a", tokens=MAX_FRAME_TOKENS))
    out.add_row(row(7, "b"))
    assert out.flush() == ["a"]
