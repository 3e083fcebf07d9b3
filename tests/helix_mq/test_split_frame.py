"""Large frames in pieces: the same tokens in the same order, each piece a frame of its own."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.frames import check_frame, pack_route, split_frame
from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import SAMPLE, VERIFY, FrameHeader, Row, SampleSpec
from helix_mq.sampling import SamplingParams

WIDTH = 8
ROUTE = pack_route(Route((Hop(NodeId("a"), LayerRange(0, 1)), Hop(NodeId("b"), LayerRange(1, 2)))))
ROWS = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 40), st.booleans(), st.booleans()),
    min_size=1,
    max_size=8,
)


@given(ROWS, st.integers(1, 2000))
def test_pieces_are_frames_and_put_together_the_whole(
    shape: list[tuple[int, int, bool, bool]], max_bytes: int
) -> None:
    rows, history = [], []
    for request, (position, count, sample, penalised) in enumerate(shape):
        spec = None
        if sample:
            tokens = position + count if penalised else 0
            spec = SampleSpec(SamplingParams(), position + count, tokens)
            history.append(np.full(tokens, request, np.int32))
        rows.append(Row(request, 0, position, count, 0, 1, SAMPLE if sample else 0, 7, spec))
    total = sum(row.count for row in rows)
    values = np.arange(total * WIDTH, dtype=np.float32)
    past = np.concatenate([np.empty(0, np.int32), *history])
    header = FrameHeader(1, "a", "float32", WIDTH, tuple(rows), (ROUTE,))
    buffers = [values.data.cast("B")] + ([past.data.cast("B")] if len(past) else [])
    pieces = split_frame(header, buffers, max_bytes)
    assert b"".join(bytes(parts[0]) for _, parts in pieces) == values.tobytes()
    assert b"".join(bytes(p) for _, parts in pieces for p in parts[1:]) == past.tobytes()
    seen: dict[int, int] = {row.request: row.position for row in rows}
    ended: dict[int, bool] = {}
    for piece, parts in pieces:
        check_frame(piece, [memoryview(part) for part in parts])
        tokens = sum(row.count for row in piece.rows)
        assert len(pieces) == 1 or tokens * WIDTH * 4 <= max_bytes or tokens == 1
        for row in piece.rows:
            assert row.position == seen[row.request]
            assert not ended.get(row.request)
            seen[row.request] += row.count
            ended[row.request] = bool(row.flags & SAMPLE)
    whole = {row.request: row for row in rows}
    assert seen == {r: row.position + row.count for r, row in whole.items()}
    assert ended == {r: bool(row.flags & SAMPLE) for r, row in whole.items()}
    specs = {row.request: row.spec for piece, _ in pieces for row in piece.rows if row.spec}
    assert specs == {r: row.spec for r, row in whole.items() if row.spec}


@given(st.lists(st.integers(0, 16), min_size=1, max_size=6), st.integers(1, 600))
def test_a_row_with_drafts_is_never_cut(drafts: list[int], max_bytes: int) -> None:
    rows = [
        Row(
            request, 0, 30, 1 + n, 0, 1, SAMPLE | VERIFY if n else SAMPLE, 7,
            drafts=tuple(range(n)),
        )
        for request, n in enumerate(drafts)
    ]  # fmt: skip
    total = sum(row.count for row in rows)
    values = np.arange(total * WIDTH, dtype=np.float32).data.cast("B")
    pieces = split_frame(
        FrameHeader(1, "a", "float32", WIDTH, tuple(rows), (ROUTE,)), (values,), max_bytes
    )
    for piece, parts in pieces:
        check_frame(piece, [memoryview(part) for part in parts])
    assert [row for piece, _ in pieces for row in piece.rows] == rows
