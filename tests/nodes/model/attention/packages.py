"""The attention libraries' documented conventions, spelled out with loops in plain torch.

Slow, and only for tests: they stand where the CUDA kernels stand, so that what we pass to those is
checked on machines without a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

FA2_VARLEN = (
    "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k dropout_p softmax_scale causal "
    "window_size softcap alibi_slopes deterministic return_attn_probs block_table"
)
"""Parameters in their order: of flash_attn.flash_attn_varlen_func, release 2.8.3."""
FA2_KVCACHE = (
    "q k_cache v_cache k v rotary_cos rotary_sin cache_seqlens cache_batch_idx cache_leftpad "
    "block_table softmax_scale causal window_size softcap rotary_interleaved alibi_slopes "
    "num_splits return_softmax_lse"
)
"""Of flash_attn.flash_attn_with_kvcache, release 2.8.3."""
FA3_KVCACHE = (
    "q k_cache v_cache k v qv rotary_cos rotary_sin cache_seqlens cache_batch_idx cache_leftpad "
    "page_table cu_seqlens_q cu_seqlens_k_new max_seqlen_q rotary_seqlens q_descale k_descale "
    "v_descale softmax_scale causal window_size attention_chunk softcap rotary_interleaved "
    "scheduler_metadata num_splits pack_gqa sm_margin return_softmax_lse sinks"
)
"""Of flash_attn_interface.flash_attn_with_kvcache, in the wheel tokenspeed-fa3 of 2026-08-10; the
sources beside flash-attn 2.8.3 have the same but for `sinks`."""
TORCH_VARLEN = (
    "query key value cu_seq_q cu_seq_k max_q max_k return_aux scale window_size enable_gqa "
    "seqused_k block_table num_splits"
)
"""Of torch.nn.attention.varlen.varlen_attn, release 2.13."""
TORCH_VARLEN_OLD = "query key value cu_seq_q cu_seq_k max_q max_k return_aux scale window_size"
"""The same, release 2.11."""


def named(parameters: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a call gives to a function with these parameters; refused as Python would."""
    order = parameters.split()
    assert len(args) <= len(order)
    given = dict(zip(order, args, strict=False))
    assert not given.keys() & kwargs.keys()
    assert kwargs.keys() <= set(order)
    return given | dict(kwargs)


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


def _paged_call(
    query: torch.Tensor,
    pages: tuple[torch.Tensor, torch.Tensor],
    table: torch.Tensor,
    lens: torch.Tensor,
    window: tuple[int, int],
    page_multiple: int,
) -> None:
    """What all of them check, or take for granted, of [..., heads, d] queries over pages."""
    heads, width = query.shape[-2:]
    for tensor in (table, lens):
        assert tensor.dtype == torch.int32
        assert tensor.is_contiguous()
    assert query.is_contiguous()
    for part in pages:
        assert part.dtype == query.dtype
        assert part.ndim == 4
        assert part.shape[1] % page_multiple == 0
        assert heads % part.shape[2] == 0
        assert part.shape[3] == width
        assert part.stride(-1) == 1
    assert width % 8 == 0
    assert table.ndim == 2
    assert len(table) == len(lens)
    assert int(table.min()) >= 0
    assert int(table.max()) < len(pages[0])
    assert int(lens.max()) <= table.shape[1] * pages[0].shape[1]
    assert [type(n) for n in window] == [int, int]


def _packed(query: torch.Tensor, starts: torch.Tensor, most: object, rows: int) -> torch.Tensor:
    """Queries per row of packed ones [tokens, heads, d]."""
    assert query.ndim == 3
    assert starts.dtype == torch.int32
    assert starts.is_contiguous()
    assert len(starts) == rows + 1
    assert int(starts[-1]) == len(query)
    counts = starts.diff()
    assert type(most) is int
    assert int(counts.max()) == most
    return counts


def flash_attn_varlen_func(*args: Any, **kwargs: Any) -> torch.Tensor:
    """flash-attn 2."""
    given = named(FA2_VARLEN, args, kwargs)
    q, k, v, table = given["q"], given["k"], given["v"], given["block_table"]
    lens = given["cu_seqlens_k"].diff()
    assert given["cu_seqlens_k"].is_contiguous()
    assert len(given["cu_seqlens_k"]) == len(table) + 1
    _paged_call(q, (k, v), table, lens, given["window_size"], 256)
    counts = _packed(q, given["cu_seqlens_q"], given["max_seqlen_q"], len(table))
    assert type(given["max_seqlen_k"]) is int
    assert int(lens.max()) <= given["max_seqlen_k"]
    return _all_rows(given, q, (k, v), table, lens, counts)


def flash_attn_with_kvcache_2(*args: Any, **kwargs: Any) -> torch.Tensor:
    """flash-attn 2: [batch, queries, heads, d]."""
    given = named(FA2_KVCACHE, args, kwargs)
    q, k, v = given["q"], given["k_cache"], given["v_cache"]
    table, lens = given["block_table"], given["cache_seqlens"]
    _paged_call(q, (k, v), table, lens, given["window_size"], 256)
    assert q.ndim == 4
    counts = torch.full((len(table),), q.shape[1])
    return _all_rows(given, q.flatten(0, 1), (k, v), table, lens, counts).view_as(q)


def flash_attn_with_kvcache_3(*args: Any, **kwargs: Any) -> torch.Tensor:
    """flash_attn_interface, with packed queries [tokens, heads, d]."""
    given = named(FA3_KVCACHE, args, kwargs)
    q, k, v = given["q"], given["k_cache"], given["v_cache"]
    table, lens = given["page_table"], given["cache_seqlens"]
    _paged_call(q, (k, v), table, lens, given["window_size"], 1)
    counts = _packed(q, given["cu_seqlens_q"], given["max_seqlen_q"], len(table))
    return _all_rows(given, q, (k, v), table, lens, counts)


def varlen_attn(*args: Any, **kwargs: Any) -> torch.Tensor:
    """torch.nn.attention.varlen: (-1, 0) is causal, (w, 0) causal with w keys to the left."""
    given = named(TORCH_VARLEN, args, kwargs)
    q, k, v = given["query"], given["key"], given["value"]
    table, lens = given["block_table"], given["seqused_k"]
    assert given["cu_seq_k"] is None
    assert given["window_size"][1] == 0
    assert given["enable_gqa"] == (q.shape[1] != k.shape[2])
    _paged_call(q, (k, v), table, lens, given["window_size"], 256)
    counts = _packed(q, given["cu_seq_q"], given["max_q"], len(table))
    assert type(given["max_k"]) is int
    assert int(lens.max()) <= given["max_k"]
    return _all_rows(given | {"causal": True}, q, (k, v), table, lens, counts)


def _all_rows(
    given: dict[str, Any],
    query: torch.Tensor,
    pages: tuple[torch.Tensor, torch.Tensor],
    table: torch.Tensor,
    lens: torch.Tensor,
    counts: torch.Tensor,
) -> torch.Tensor:
    parts, start = [], 0
    for i, (count, length) in enumerate(zip(counts.tolist(), lens.tolist(), strict=True)):
        keys, values = (_paged(part, table[i], length) for part in pages)
        rows = query[start : start + count]
        parts.append(_row(rows, keys, values, given["causal"], *given["window_size"]))
        start += count
    return torch.cat(parts)
