"""Names of blocks on the wire: as many as end in a row, whoever cuts the row."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.errors import FrameError
from helix_mq.frames import Buffer, decode, encode, pack_route, split_frame
from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages import data
from helix_mq.prefix_blocks import name_blocks, span_names

ROUTE = Route((Hop(NodeId("a"), LayerRange(0, 2)), Hop(NodeId("b"), LayerRange(2, 4))))
NAMES = name_blocks(b"k", "", list(range(1000)))


def frame(position: int, count: int, blocks: bytes) -> tuple[data.FrameHeader, list[Buffer]]:
    row = data.Row(5, 0, position, count, 0, 1, data.SAMPLE, 0, None, blocks)
    header = data.FrameHeader(1, "a", "float32", 2, (row,), (pack_route(ROUTE),))
    return header, [np.arange(2 * count, dtype=np.float32).data.cast("B")]


@given(st.integers(0, 300), st.integers(1, 300), st.binary(max_size=96))
def test_names_that_do_not_fit_their_row_are_refused(
    position: int, count: int, blocks: bytes
) -> None:
    fits = span_names(NAMES, position, count)
    header = decode(encode(*frame(position, count, fits))).header
    assert isinstance(header, data.FrameHeader)
    assert header.rows[0].blocks == fits
    if len(blocks) in (0, len(fits)):
        return
    with pytest.raises(FrameError) as caught:
        decode(encode(*frame(position, count, blocks)))
    assert caught.value.reason == "blocks"


def test_more_names_than_a_row_may_carry() -> None:
    header, buffers = frame(64, 64, b"n" * (data.MAX_BLOCK_BYTES + 16))
    with pytest.raises(FrameError) as caught:
        decode(encode(header, buffers))
    assert caught.value.reason == "bad_field"


@given(st.integers(0, 300), st.integers(1, 300), st.integers(1, 400))
def test_a_frame_that_is_split_says_each_name_where_its_block_ends(
    position: int, count: int, most_tokens: int
) -> None:
    header, buffers = frame(position, count, span_names(NAMES, position, count))
    parts = split_frame(header, buffers, 8 * most_tokens)
    assert sum(part.rows[0].count for part, _ in parts) == count
    for part, views in parts:
        row = part.rows[0]
        assert row.blocks == span_names(NAMES, row.position, row.count)
        decode(encode(part, views))


def test_an_older_program_passes_over_names() -> None:
    """Rows of the release before end before them."""

    class OldRow(msgspec.Struct, array_like=True, frozen=True):
        request: int
        attempt: int
        position: int
        count: int

    row = data.Row(5, 0, 0, 64, 0, 0, data.SAMPLE, 0, None, NAMES[:16])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(row), type=OldRow) == OldRow(5, 0, 0, 64)
