"""Activations in the forms of links: near what was sent, checked, cut like any others."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from helix_mq.errors import FrameError
from helix_mq.frames import check_frame, decode, encode, pack_route, split_frame
from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.control import Peer
from helix_mq.messages.data import SCALED, FrameHeader, Row, token_bytes
from helix_mq.scaled_rows import GROUP, groups, scaled_bytes
from nodes.wire_format import WireFormats, from_wire, rows_from_wire, to_wire

ROUTE = Route((Hop(NodeId("a"), LayerRange(0, 2)), Hop(NodeId("b"), LayerRange(2, 4))))
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 200))


def activations(shape: tuple[int, int], seed: int, scale: float = 1.0) -> torch.Tensor:
    """Like a residual stream: some channels are hundreds of times as large as the rest."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(*shape, generator=generator) * scale
    table[:, ::50] *= 300
    return table


def there_and_back(table: torch.Tensor, form: str) -> torch.Tensor:
    dtype, data = to_wire(table, form)
    assert data.nbytes == len(table) * token_bytes(dtype, table.shape[1])
    return from_wire(data, dtype, table.shape[1])


@given(SHAPES, st.integers(0, 1000), st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30]))
@example((1, 64), 0, 0.0)
@example((2, 65), 1, 1e-42)
def test_8_bits_are_within_half_a_step_of_every_activation(
    shape: tuple[int, int], seed: int, scale: float
) -> None:
    table = activations(shape, seed, scale)
    got = there_and_back(table, SCALED)
    assert got.dtype == torch.float32
    count = groups(shape[1])
    padded = torch.nn.functional.pad(table, (0, count * GROUP - shape[1]))
    steps = padded.view(shape[0], count, GROUP).abs().amax(dim=2) / 127
    limit = steps.repeat_interleave(GROUP, dim=1)[:, : shape[1]]
    # Beside the half step float32's own rounding; its smallest numbers become 0.
    assert bool(((got - table).abs() <= 0.501 * limit + 1e-37).all())


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 200),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from(["", SCALED]),
)
def test_rows_of_several_frames_are_read_as_those_of_each(
    counts: list[int], width: int, own: torch.dtype, form: str
) -> None:
    sent = [to_wire(activations((n, width), n).to(own), form) for n in counts]
    (dtype,) = {dtype for dtype, _ in sent}
    parts = [memoryview(bytes(data)) for _, data in sent]
    whole = rows_from_wire(parts, dtype, width)
    assert torch.equal(whole, torch.cat([from_wire(p, dtype, width) for p in parts]))
    # Of its own: a received buffer may be read-only, and goes with its frame.
    whole.zero_()


@given(SHAPES, st.integers(0, 1000))
def test_16_bits_are_the_nearest(shape: tuple[int, int], seed: int) -> None:
    table = activations(shape, seed)
    for form, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        assert torch.equal(there_and_back(table, form), table.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_not_narrowed_is_not_touched(dtype: torch.dtype) -> None:
    table = activations((3, 70), 1).to(dtype)
    for form in ("", "float32", str(dtype).removeprefix("torch.")):
        name, data = to_wire(table, form)
        assert name == str(dtype).removeprefix("torch.")
        assert np.shares_memory(np.frombuffer(data, np.uint8), table.view(torch.uint8).numpy())
        assert torch.equal(from_wire(data, name, 70), table)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_go_as_they_are(bad: float) -> None:
    """Whoever samples must see them, and refuse that request alone."""
    table = activations((3, 70), 1)
    table[1, 66] = bad
    for form in (SCALED, "float16"):
        name, data = to_wire(table, form)
        assert name == "float32"
        assert torch.equal(from_wire(data, name, 70).isfinite(), table.isfinite())


def test_rows_that_float16_cannot_hold_go_as_they_are() -> None:
    assert to_wire(torch.tensor([[1.0, 7e4]]), "float16")[0] == "float32"


def frame(table: torch.Tensor, form: str = SCALED) -> tuple[FrameHeader, list[memoryview]]:
    dtype, data = to_wire(table, form)
    rows = tuple(Row(i, 1, 7, 1, 0, 1, 1, 0) for i in range(len(table)))
    return FrameHeader(5, "a", dtype, table.shape[1], rows, (pack_route(ROUTE),)), [data]


def test_a_frame_of_8_bits_passes_the_wire_and_is_cut_between_tokens() -> None:
    table = activations((6, 70), 3)
    header, buffers = frame(table)
    message = decode([bytes(p) for p in encode(header, buffers)])
    assert torch.equal(from_wire(message.buffers[0], SCALED, 70), from_wire(buffers[0], SCALED, 70))
    parts = split_frame(header, buffers, 2 * scaled_bytes(70) + 5)
    assert [len(h.rows) for h, _ in parts] == [2, 2, 2]
    whole = torch.cat([from_wire(memoryview(b[0]), SCALED, 70) for _, b in parts])
    assert torch.equal(whole, from_wire(buffers[0], SCALED, 70))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    header, (data,) = frame(activations((2, 70), 3))
    changed = bytearray(data)
    at = scaled_bytes(70) + 4
    changed[at : at + 4] = np.float32(scale).tobytes()
    with pytest.raises(FrameError) as caught:
        check_frame(header, [memoryview(changed)])
    assert caught.value.reason == "scale"


@given(st.binary(max_size=600), st.integers(1, 200), st.integers(1, 4))
def test_any_bytes_are_a_frame_of_numbers_or_refused(data: bytes, width: int, tokens: int) -> None:
    header, _ = frame(torch.zeros(tokens, width))
    try:
        check_frame(header, [memoryview(data)])
    except FrameError as e:
        assert e.reason in ("length", "scale")
    else:
        # Codes are bytes, of which 128 is one more than any sender writes.
        assert not bool(from_wire(memoryview(data), SCALED, width).isnan().any())


@given(st.integers(1, 200), st.data())
def test_lengths_must_fit_exactly(width: int, data: Any) -> None:
    header, (buffer,) = frame(torch.ones(2, width))
    length = data.draw(st.integers(0, 2 * len(buffer)).filter(lambda n: n != len(buffer)))
    with pytest.raises(FrameError, match="the header says"):
        check_frame(header, [memoryview(bytes(length))])


def test_forms_that_nobody_here_knows_are_full_rows() -> None:
    formats = WireFormats()
    peer = Peer("b", 1, "mem://b", "", "bfloat16")
    formats.follow([peer, msgspec.structs.replace(peer, node="c", activations="int3")])
    assert (formats.of("b"), formats.of("c"), formats.of("d")) == ("bfloat16", "", "")
    formats.follow([])
    assert formats.of("b") == ""
