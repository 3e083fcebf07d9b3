"""What does not depend on the company a row keeps, and how far 16 bits are from 32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from helix_mq.layers import LayerRange
from nodes.model.batch import RowSpec, SliceBatch
from nodes.model.linear import PackedLinear, PlainLinear, can_pack, pieces
from nodes.model.native.products import products_for
from nodes.model.slice import ModelSlice

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
def test_packed_products_equal_plain_ones(dtype: torch.dtype, biased: bool) -> None:
    if not can_pack(CPU, dtype):
        pytest.skip(f"this torch does not pack {dtype} weights")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(70, 50, generator=generator).to(dtype)
    bias = torch.randn(70, generator=generator).to(dtype) if biased else None
    for rows in (0, 1, 3, 16, 67, 512, 513, 1100):
        x = torch.randn(rows, 50, generator=generator).to(dtype)
        plain, packed = PlainLinear(weight, bias)(x), PackedLinear.pack(weight, bias)(x)
        assert packed.dtype is dtype
        assert packed.shape == plain.shape
        tolerance = 1e-4 if dtype is torch.float32 else 0.3
        assert torch.allclose(plain.float(), packed.float(), rtol=0, atol=tolerance)


def test_products_come_in_few_sizes_that_waste_little() -> None:
    sizes = set()
    for rows in range(5000):
        cut = pieces(rows)
        sizes |= set(cut)
        assert rows <= sum(cut) <= rows + max(0, rows % 512 - 1) / 8
        assert sum(cut[:-1]) <= rows
        if rows <= 16:
            assert cut == [rows][:rows]
    assert len(sizes) == 56


@pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="this torch does not pack weights")
def test_a_row_has_the_same_bits_in_a_product_of_any_size() -> None:
    generator = torch.Generator().manual_seed(1)
    linear = PackedLinear.pack(torch.randn(70, 50, generator=generator))
    x = torch.randn(600, 50, generator=generator)
    one_by_one = torch.cat([linear(row[None]) for row in x])
    for rows in (*range(1, 70), 127, 257, 300, 511, 512, 513, 600):
        assert torch.equal(linear(x[:rows]), one_by_one[:rows])


@pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="this torch does not pack weights")
@pytest.mark.parametrize(
    ("family", "threads"),
    [("llama3", 1), ("llama3", 2), ("qwen2_sliding", 1), ("qwen3", 1), ("qwen3_wide_heads", 2)],
    indirect=["threads"],
)
def test_a_decode_has_the_same_bits_alone_and_in_a_batch(
    checkpoint: Callable[[str], Any], chain: Callable[..., Any], family: str, threads: int
) -> None:
    """So that what a request gets does not depend on what else is served at the time. With several
    threads, compiled kernels keep to it; PyTorch's share a sum in other parts."""
    if threads > 1 and products_for(torch.float32) is None:
        pytest.skip("no compiled products here")
    nodes = chain(checkpoint(family), page_tokens=16)
    layers = LayerRange(0, 4)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 151, (n,), generator=generator) for n in (20, 31, 25, 18, 28)]
    for i, prompt in enumerate(prompts):
        for seq in (f"alone{i}", f"batch{i}"):
            nodes.run(0, [RowSpec(seq, 0, len(prompt), layers)], prompt)
    for step in range(4):
        token = torch.tensor([step + 5])
        alone = [
            nodes.run(0, [RowSpec(f"alone{i}", len(p) + step, 1, layers, True)], token).logits
            for i, p in enumerate(prompts)
        ]
        rows = [RowSpec(f"batch{i}", len(p) + step, 1, layers, True) for i, p in enumerate(prompts)]
        together = nodes.run(0, rows, token.repeat(5)).logits
        assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama3", "mistral", "qwen3"])
def test_16_bits_stay_near_32(
    checkpoint: Callable[[str], Any], family: str, dtype: torch.dtype
) -> None:
    """Prefill, chunk and decode in `dtype`, against transformers in the same dtype."""
    model = checkpoint(family)
    layers = LayerRange(0, 4)
    part = ModelSlice.load(model.folder, layers, device=CPU, dtype=dtype)
    cache = part.new_cache(total_pages=64)
    ids = torch.randint(0, 151, (40,), generator=torch.Generator().manual_seed(7))
    exact = model.reference_logits(ids.tolist())
    half = type(model.reference)(model.reference.config).to(dtype).eval()
    half.load_state_dict(model.reference.state_dict())
    with torch.inference_mode():
        theirs = half(input_ids=ids[None], use_cache=False).logits[0].float()
    cache.pool.open("a", layers)
    errors, their_errors = [], []
    for at, end in ((0, 20), (20, 30), (30, 31), (31, 32), (32, 39), (39, 40)):
        cache.pool.ensure("a", end)
        out = part.forward(
            SliceBatch([RowSpec("a", at, end - at, layers, True)], ids[at:end]), cache
        )
        assert out.logits.dtype is torch.float32
        errors.append((out.logits[0] - exact[end - 1]).pow(2).mean().sqrt())
        their_errors.append((theirs[end - 1] - exact[end - 1]).pow(2).mean().sqrt())
    # Both round differently; ours must not be the worse computation.
    assert sum(errors) < 1.5 * sum(their_errors)
    assert sum(errors) / len(errors) < 0.2 * float(exact.std())
