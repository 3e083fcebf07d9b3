"""Compiled products: right, and the same bits for a row whatever is beside it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from nodes.model.native import build
from nodes.model.native.memory import WeightMemory
from nodes.model.native.products import NativeLinear, native_linear, products_for

DTYPES = [torch.float32, torch.bfloat16]

pytestmark = pytest.mark.skipif(
    any(products_for(dtype) is None for dtype in DTYPES),
    reason=f"no compiled products: {build.built().reason}",
)


def random(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def linear_of(weight: torch.Tensor, bias: torch.Tensor | None = None) -> NativeLinear:
    linear = native_linear(weight, bias, WeightMemory())
    assert linear is not None
    return linear


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 2), (151, 64), (96, 512), (160, 1536)])
def test_it_is_the_product(dtype: torch.dtype, outputs: int, inputs: int) -> None:
    weight = random(outputs, inputs, seed=1, dtype=dtype)
    bias = random(outputs, seed=2, dtype=dtype)
    for given in (None, bias):
        linear = linear_of(weight, given)
        for rows in (0, 1, 2, 11, 12, 13, 25, 100):
            x = random(rows, inputs, seed=rows, dtype=dtype)
            added = None if given is None else given.double()
            exact = F.linear(x.double(), weight.double(), added)
            got = linear(x)
            assert got.dtype is dtype
            tolerance = (4e-6 if dtype is torch.float32 else 4e-3) * inputs**0.5
            torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=tolerance)
            assert torch.equal(linear.floats(x), got.float())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_a_product_of_any_size(dtype: torch.dtype) -> None:
    linear = linear_of(random(320, 512, seed=1, dtype=dtype))
    x = random(70, 512, seed=2, dtype=dtype)
    one_by_one = torch.cat([linear(row[None]) for row in x])
    for rows in range(1, 71):
        assert torch.equal(linear(x[:rows]), one_by_one[:rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_lie_apart_and_numbers_that_are_none(dtype: torch.dtype) -> None:
    linear = linear_of(random(64, 34, seed=1, dtype=dtype))
    x = random(34, 5, seed=2, dtype=dtype).T
    assert torch.equal(linear(x), linear(x.contiguous()))
    x = x.contiguous()
    x[3, 7] = float("nan")
    assert linear(x).isnan().any(dim=1).tolist() == [False, False, False, True, False]
    with pytest.raises(ValueError, match="34 inputs"):
        linear(x[:, :32])


def test_a_weight_that_would_be_mostly_padding_is_left_to_others() -> None:
    for outputs in (7, 40, 72):
        assert native_linear(torch.ones(outputs, 64), None, WeightMemory()) is None
    assert native_linear(torch.ones(64, 33, dtype=torch.bfloat16), None, WeightMemory()) is None


def test_memory_is_handed_out_by_lines() -> None:
    memory = WeightMemory()
    pieces = [memory.take((n, 3), torch.bfloat16) for n in (1, 40_000, 20 << 20, 1)]
    for value, piece in enumerate(pieces):
        assert piece.data_ptr() % 64 == 0
        if piece.numel() < 1 << 20:
            piece.fill_(value)
    for value, piece in enumerate(pieces):
        assert piece.dtype is torch.bfloat16
        if piece.numel() < 1 << 20:
            assert bool((piece == value).all())
