"""What ranks are told arrives as it was said; anything else is refused before memory is taken."""

from __future__ import annotations

import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.errors import FrameError
from nodes.model.parallel.orders import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    Cut,
    RunSegment,
    decode_header,
    encode,
    header_bytes,
)


@given(
    st.lists(st.integers(0, 300), max_size=8).map(tuple),
    st.booleans(),
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), max_size=9),
)
def test_orders_arrive_with_room_for_their_arrays(
    rows: tuple[int, ...], ends: bool, shapes: list[list[int]]
) -> None:
    order = RunSegment(first=1, end=5, rows=rows, ends_model=ends)
    arrays = [np.ones(s, np.int32 if i % 2 else np.int64) for i, s in enumerate(shapes)]
    first, *rest = encode(order, arrays)
    count = header_bytes(bytes(first[:LENGTH_BYTES]))
    assert count == len(first) - LENGTH_BYTES
    message, room = decode_header(bytes(first[LENGTH_BYTES:]))
    assert msgspec.structs.replace(message, arrays=()) == order
    assert [(a.shape, a.dtype) for a in room] == [(a.shape, a.dtype) for a in arrays]
    assert sum(len(part) for part in rest) == sum(a.nbytes for a in arrays)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(FrameError):
        decode_header(noise)


@pytest.mark.parametrize("count", [0, MAX_HEADER_BYTES + 1, 2**32 - 1])
def test_headers_have_bounds(count: int) -> None:
    with pytest.raises(FrameError, match=f"a rank's header of {count} bytes"):
        header_bytes(struct.pack("<I", count))


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ([["f4", [3]]], "a rank's array"),
        ([["i8", [-1]]], "a rank's array"),
        ([["i8", [1, 1, 1, 1]]], "a rank's array"),
        ([["i8", [1 << 40]]], "arrays of 8796093022208 bytes"),
        ([["i8", [1 << 26]], ["i8", [1 << 27]]], "arrays of 1610612736 bytes"),
    ],
)
def test_arrays_have_bounds(arrays: list[object], text: str) -> None:
    header = msgspec.to_builtins(Cut(total_pages=3)) | {"arrays": arrays}
    with pytest.raises(FrameError, match=text):
        decode_header(msgspec.msgpack.encode(header))
