"""The attention libraries' documented conventions, spelled out with loops in plain torch.

Slow, and only for tests: they stand where the CUDA kernels stand, so that what we pass to those is
checked on machines without a GPU.
"""

from __future__ import annotations

import math

import pytest
import torch

from nodes.model.attention.kernels import FlashAttention2, FlashAttention3, TorchVarlen
from nodes.model.attention.paged import PagedKernel


def _row(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    causal: bool,
    left: int,
    right: int,
) -> torch.Tensor:
    """One sequence: query [n, heads, d], keys and values [m, kv_heads, d]; bottom-right aligned."""
    n, heads, width = query.shape
    m = len(keys)
    group = heads // keys.shape[1]
    out = torch.empty_like(query)
    for i in range(n):
        at = i + m - n
        low = 0 if left < 0 else max(0, at - left)
        high = m - 1 if right < 0 else min(m - 1, at + right)
        if causal:
            high = min(high, at)
        for h in range(heads):
            k, v = keys[low : high + 1, h // group], values[low : high + 1, h // group]
            weights = torch.softmax(k.float() @ query[i, h].float() / math.sqrt(width), dim=0)
            out[i, h] = (weights @ v.float()).to(query.dtype)
    return out


def _paged(pages: torch.Tensor, table: torch.Tensor, length: int) -> torch.Tensor:
    used = -(-length // pages.shape[1])
    return pages[table[:used].long()].reshape(-1, *pages.shape[2:])[:length]


def _check(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        assert tensor.dtype == torch.int32
        assert tensor.is_contiguous()


def flash_attn_varlen_func(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor, max_seqlen_q: int, max_seqlen_k: int, *, causal: bool,
    window_size: tuple[int, int], block_table: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """flash-attn 2."""
    _check(cu_seqlens_q, cu_seqlens_k, block_table)
    assert q.is_contiguous()
    assert k.shape[1] % 256 == 0
    lens_q, lens_k = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    assert int(lens_q.max()) == max_seqlen_q
    assert int(lens_k.max()) <= max_seqlen_k
    parts = []
    for i, (start, length) in enumerate(zip(cu_seqlens_q, lens_k.tolist(), strict=False)):
        rows = q[start : start + lens_q[i]]
        keys, values = (_paged(pages, block_table[i], length) for pages in (k, v))
        parts.append(_row(rows, keys, values, causal, *window_size))
    return torch.cat(parts)


def flash_attn_with_kvcache_2(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, *, cache_seqlens: torch.Tensor,
    block_table: torch.Tensor, causal: bool, window_size: tuple[int, int],
) -> torch.Tensor:  # fmt: skip
    """flash-attn 2: [batch, queries, heads, d]."""
    _check(cache_seqlens, block_table)
    assert k_cache.shape[1] % 256 == 0
    assert len(q) == len(cache_seqlens) == len(block_table)
    return torch.stack([
        _row(q[i], _paged(k_cache, block_table[i], n), _paged(v_cache, block_table[i], n),
             causal, *window_size)
        for i, n in enumerate(cache_seqlens.tolist())
    ])  # fmt: skip


def flash_attn_with_kvcache_3(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, *, cache_seqlens: torch.Tensor,
    page_table: torch.Tensor, cu_seqlens_q: torch.Tensor, max_seqlen_q: int, causal: bool,
    window_size: tuple[int, int],
) -> torch.Tensor:  # fmt: skip
    """flash_attn_interface, with packed queries [tokens, heads, d]."""
    _check(cache_seqlens, page_table, cu_seqlens_q)
    counts = cu_seqlens_q.diff()
    assert int(counts.max()) == max_seqlen_q
    assert len(counts) == len(cache_seqlens) == len(page_table)
    return torch.cat([
        _row(q[cu_seqlens_q[i] : cu_seqlens_q[i + 1]], _paged(k_cache, page_table[i], n),
             _paged(v_cache, page_table[i], n), causal, *window_size)
        for i, n in enumerate(cache_seqlens.tolist())
    ])  # fmt: skip


def varlen_attn(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None, max_q: int, max_k: int, *, window_size: tuple[int, int],
    enable_gqa: bool, seqused_k: torch.Tensor, block_table: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """torch.nn.attention.varlen: (-1, 0) is causal, (w, 0) causal with w keys to the left."""
    assert cu_seq_k is None
    assert window_size[1] == 0
    assert enable_gqa == (query.shape[1] != key.shape[2])
    cu_seq_k = torch.zeros(len(seqused_k) + 1, dtype=torch.int32)
    cu_seq_k[1:] = seqused_k.cumsum(0)
    return flash_attn_varlen_func(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k,
        causal=True, window_size=window_size, block_table=block_table,
    )  # fmt: skip


@pytest.fixture
def kernels() -> dict[str, PagedKernel]:
    """Our side of each library, with the library emulated."""
    return {
        "flash_attn_2": FlashAttention2(flash_attn_varlen_func, flash_attn_with_kvcache_2),
        "flash_attn_3": FlashAttention3(flash_attn_with_kvcache_3),
        "torch_varlen": TorchVarlen(varlen_attn),
    }
