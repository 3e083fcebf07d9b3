"""The compiled kernels compute what PyTorch computes, for one thread and for two."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helix_mq.layers import LayerRange
from nodes.kv_cache import KvCache, KvLayout
from nodes.kv_pages import LayerPagePool
from nodes.model.attention.base import AttentionRows, BackendUnavailable
from nodes.model.attention.gather import GatherAttention
from nodes.model.attention.native import NativeAttention
from nodes.model.native import build
from nodes.model.native.kernels import ATTEND_WIDTHS, Kernels, kernels_for
from nodes.model.rope import rotate, rotation

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

pytestmark = pytest.mark.skipif(
    build.built().library is None, reason=f"no compiled kernels: {build.built().reason}"
)


def kernels_of(dtype: torch.dtype) -> Kernels:
    kernels = kernels_for(dtype)
    assert kernels is not None, "the compiled kernels failed their trial"
    return kernels


def random(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 576), (7, 50), (64, 640)])
def test_norm_residual_and_gate(dtype: torch.dtype, rows: int, width: int) -> None:
    kernels, near = kernels_of(dtype), TOLERANCE[dtype]
    x, delta = random(rows, width, seed=1, dtype=dtype), random(rows, width, seed=2, dtype=dtype)
    weight = random(width, seed=3, dtype=dtype)
    before = x.clone()
    total, normed = kernels.add_norm(x, delta, weight, 1e-5)
    assert torch.equal(x, before)
    torch.testing.assert_close(total, x + delta, rtol=near, atol=near)
    expected = F.rms_norm((x + delta).float(), (width,), weight.float(), 1e-5)
    torch.testing.assert_close(normed.float(), expected, rtol=near, atol=near)
    assert torch.equal(kernels.norm(total, weight, 1e-5), normed)
    both = random(rows, 2 * width, seed=4, dtype=dtype) * 30
    gate, up = both.float().chunk(2, dim=-1)
    got = kernels.silu_mul(both).float()
    torch.testing.assert_close(got, F.silu(gate) * up, rtol=near, atol=near)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_number_stays_no_number(dtype: torch.dtype) -> None:
    """What the sampler refuses a request for must not become a token on the way."""
    kernels = kernels_of(dtype)
    x = random(3, 64, seed=5, dtype=dtype)
    x[1, 7] = float("nan")
    weight = torch.ones(64, dtype=dtype)
    assert kernels.norm(x, weight, 1e-5).isnan().any(dim=1).tolist() == [False, True, False]
    assert kernels.silu_mul(x).isnan().any(dim=1).tolist() == [False, True, False]
    cache, tables = pages_for([5, 5, 5], 1, 64, dtype)
    ends, firsts = torch.full((3,), 5, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    query = x.view(3, 1, 64)
    out = kernels.attend(query, cache.keys, cache.values, tables[0], firsts, ends)
    assert out.isnan().any(dim=2).flatten().tolist() == [False, True, False]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_and_store(dtype: torch.dtype) -> None:
    kernels, near = kernels_of(dtype), TOLERANCE[dtype]
    tokens, heads, kv_heads, width = 30, 6, 2, 32
    qkv = random(tokens, heads + 2 * kv_heads, width, seed=6, dtype=dtype)
    inverse = 1.0 / 10_000 ** (torch.arange(0, width, 2) / width)
    turn = rotation(inverse, torch.arange(100, 100 + tokens), dtype)
    expected = rotate(qkv[:, : heads + kv_heads], turn)
    values = qkv[:, heads + kv_heads :].clone()
    store = torch.zeros(2, 40 * kv_heads, width, dtype=dtype)
    slots = torch.randperm(40 * kv_heads, generator=torch.Generator().manual_seed(7))
    # Apart, as those of one layer may be.
    slots = torch.stack([slots[: tokens * kv_heads], slots[: tokens * kv_heads]], dim=1)[:, 0]
    assert not slots.is_contiguous()
    kernels.rotate_store(qkv, heads, turn.cos, turn.sin, slots, store[0], store[1])
    torch.testing.assert_close(qkv[:, : heads + kv_heads], expected, rtol=near, atol=near)
    assert torch.equal(store[0][slots].view(tokens, kv_heads, width), qkv[:, heads:-kv_heads])
    assert torch.equal(store[1][slots].view(tokens, kv_heads, width), values)
    untouched = torch.ones(len(store[0]), dtype=torch.bool)
    untouched[slots] = False
    assert not store[:, untouched].any()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", ATTEND_WIDTHS)
@pytest.mark.parametrize(("kv_heads", "group"), [(3, 3), (2, 7), (1, 1)])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("wide", [True, False])
def test_decodes_and_chunks_attend_as_gathered_ones(
    dtype: torch.dtype,
    width: int,
    kv_heads: int,
    group: int,
    window: int | None,
    wide: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts, too, by the kernel or by PyTorch, as registers are."""
    monkeypatch.setattr(kernels_of(dtype), "wide", wide)
    counts, lens = [1, 4, 1, 1, 9], [1, 30, 70, 16, 9]
    cache, tables = pages_for(lens, kv_heads, width, dtype)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    rows = AttentionRows(starts, np.array(lens, np.int32), tables.numpy())
    tokens = int(starts[-1])
    # As the block has it: queries with keys and values of the same token between them.
    qkv = random(tokens, group * kv_heads + 2 * kv_heads, width, seed=8, dtype=dtype)
    query = qkv[:, : group * kv_heads]
    of = np.repeat(np.arange(len(counts)), counts)
    at = torch.from_numpy(np.array(lens)[of] - starts[1:][of] + np.arange(tokens))
    pages = tables[0][of, at // 16]
    keys, values = cache.keys[pages, :, at % 16], cache.values[pages, :, at % 16]
    plans = [
        NativeAttention(width, device=CPU, dtype=dtype).plan(rows, window, cache),
        GatherAttention(device=CPU, dtype=torch.float32).plan(rows, window, exact(cache)),
    ]
    got = plans[0].attend(0, query, keys, values)
    expected = plans[1].attend(0, query.float(), keys.float(), values.float())
    near = 2e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(got.float(), expected, rtol=near, atol=near)


def test_other_head_sizes_and_formats_are_left_to_pytorch() -> None:
    with pytest.raises(BackendUnavailable, match="heads of 40"):
        NativeAttention(40, device=CPU, dtype=torch.float32)
    with pytest.raises(BackendUnavailable, match=r"torch\.float16"):
        NativeAttention(64, device=CPU, dtype=torch.float16)


def test_why_there_is_no_library_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh = build.built.__wrapped__
    monkeypatch.setenv(build.SWITCH, "off")
    assert fresh() == build.Built(None, "HELIX_MQ_NATIVE is off")
    monkeypatch.delenv(build.SWITCH)
    monkeypatch.setattr(build, "default_cache", lambda: tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "no C++ compiler" in fresh().reason
    monkeypatch.undo()
    monkeypatch.setattr(build, "default_cache", lambda: tmp_path)
    (tmp_path / "native").mkdir(exist_ok=True)
    (tmp_path / "native").chmod(0o777)
    assert "can be written by others" in fresh().reason


def pages_for(
    lens: list[int], kv_heads: int, width: int, dtype: torch.dtype
) -> tuple[KvCache, torch.Tensor]:
    """A cache with random content, and tables int32 [1, rows, pages] of scattered pages."""
    most = -(-max(lens) // 16)
    total = 2 * len(lens) * most
    pool = LayerPagePool(total, 16)
    shape = (total, kv_heads, 16, width)
    cache = KvCache(
        pool,
        KvLayout.HEAD_MAJOR,
        random(*shape, seed=9, dtype=dtype),
        random(*shape, seed=10, dtype=dtype),
    )
    for i, length in enumerate(lens):
        pool.open(i, LayerRange(0, 1))
        pool.ensure(i, length)
    ids = torch.randperm(total, generator=torch.Generator().manual_seed(11))
    return cache, ids[: len(lens) * most].view(1, len(lens), most).int()


def exact(cache: KvCache) -> KvCache:
    return replace(cache, keys=cache.keys.float(), values=cache.values.float())
