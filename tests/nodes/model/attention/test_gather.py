"""Gathered attention equals the definition, in every layout, page size, window and dtype."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.kv_cache import KvCache, KvLayout
from nodes.model.attention.base import AttentionRows
from nodes.model.attention.gather import GatherAttention
from tests.nodes.model.attention.one_layer import CPU, one_layer

CONFIG = one_layer(6, head_dim=8)


def _by_definition(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None
) -> torch.Tensor:
    """float64; query [n, heads, d] are the last of the m keys [m, kv_heads, d]."""
    n, m = len(query), len(keys)
    keys, values = (t.double().repeat_interleave(3, dim=1) for t in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query.double(), keys) / math.sqrt(query.shape[2])
    at, key_at = torch.arange(m - n, m)[:, None], torch.arange(m)
    hidden = key_at > at
    if window is not None:
        hidden |= key_at <= at - window
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values)


@settings(max_examples=60, deadline=None)
@given(
    lens=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 90)), min_size=1, max_size=9),
    page_tokens=st.sampled_from([1, 4, 16]),
    layout=st.sampled_from(KvLayout),
    window=st.sampled_from([None, 1, 5, 40]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1 << 30),
)
def test_any_mixture_of_rows(
    lens: list[tuple[int, int]],
    page_tokens: int,
    layout: KvLayout,
    window: int | None,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """lens: (queries, earlier keys) of each row."""
    generator = torch.Generator().manual_seed(seed)
    counts = np.array([n for n, _ in lens], np.int32)
    totals = np.array([n + before for n, before in lens], np.int32)
    pages = [-(-int(t) // page_tokens) for t in totals]
    ids = np.random.default_rng(seed).permutation(sum(pages)).astype(np.int32)
    cache = KvCache.allocate(
        CONFIG, total_pages=sum(pages), device=CPU, dtype=dtype, page_tokens=page_tokens,
        layout=layout,
    )  # fmt: skip
    tables = np.empty((1, len(lens), max(pages)), np.int32)
    new_keys, new_values, whole, at = [], [], [], 0
    for i, count in enumerate(pages):
        tables[0, i] = ids[at]
        tables[0, i, :count] = ids[at : at + count]
        positions = np.arange(totals[i])
        keys, values = (
            torch.randn(totals[i], 2, 8, generator=generator).to(dtype) for _ in range(2)
        )
        slots = cache.slots(tables[:, i, positions // page_tokens], positions % page_tokens)
        cache.write(torch.from_numpy(slots[0]), keys, values)
        whole.append((keys, values))
        new_keys.append(keys[-counts[i] :])
        new_values.append(values[-counts[i] :])
        at += count
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    rows = AttentionRows(starts, totals, tables)
    query = torch.randn(rows.num_tokens, 6, 8, generator=generator).to(dtype)
    plan = GatherAttention(device=CPU, dtype=dtype).plan(rows, window, cache)
    got = plan.attend(0, query, torch.cat(new_keys), torch.cat(new_values))
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for i, (keys, values) in enumerate(whole):
        wanted = _by_definition(query[starts[i] : starts[i + 1]], keys, values, window)
        assert (got[starts[i] : starts[i + 1]].double() - wanted).abs().max() < tolerance


@pytest.mark.parametrize("layout", KvLayout)
def test_read_gives_what_was_written(layout: KvLayout) -> None:
    cache = KvCache.allocate(
        CONFIG, total_pages=5, device=CPU, dtype=torch.float32, page_tokens=4, layout=layout
    )
    keys, values = torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    pages = np.array([[4, 0, 4]], np.int32)
    slots = torch.from_numpy(cache.slots(pages, np.array([3, 1, 0]))[0])
    cache.write(slots, keys, values)
    read = cache.read(slots)
    assert torch.equal(read[0], keys)
    assert torch.equal(read[1], values)
    at = cache.keys[4, :, 3] if layout is KvLayout.HEAD_MAJOR else cache.keys[4, 3]
    assert torch.equal(at, keys[0])


def test_decodes_of_unlike_lengths_are_not_padded_to_the_longest() -> None:
    lens = np.array([2000, 10, 1990, 12, 9, 11], np.int32)
    tables = np.zeros((1, 6, 125), np.int32)
    cache = KvCache.allocate(CONFIG, total_pages=1, device=CPU, dtype=torch.float32)
    rows = AttentionRows(np.arange(7, dtype=np.int32), lens, tables)
    plan = GatherAttention(device=CPU, dtype=torch.float32).plan(rows, None, cache)
    padded = [tuple(bucket.mask.shape[::3]) for bucket in plan.buckets]
    assert padded == [(2, 2000), (4, 16)]
