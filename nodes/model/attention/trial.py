"""Tries an attention backend on the device before it is trusted with a model.

Kernels differ by version, head size and GPU in what they accept and in what their arguments mean.
A backend that raises, or that differs from the exact computation, is not used: a slower right
answer beats a fast wrong one.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from helix_mq.models.config import ModelConfig
from nodes.kv_cache import KvCache
from nodes.kv_pages import DEFAULT_PAGE_TOKENS
from nodes.model.attention.base import AttentionBackend, AttentionRows
from nodes.model.attention.gather import GatherAttention

_Sizes = tuple[tuple[int, int], ...]

_MIXED = ((1, 1), (1, 70), (1, 301), (5, 5), (7, 40), (33, 290))
"""(queries, keys): decodes, first chunks and later ones, within and across pages of 16 and 256."""
_DECODES = ((1, 1), (1, 70), (1, 301), (1, 1500))
"""Alone they take other kernels, which divide long rows among the device's processors."""
_WINDOW = 37
_TOLERANCE = 3e-2
"""Of outputs of size about 1: bfloat16 keeps 8 bits, and a wrong mask is off by 0.1 or more."""


def find_fault(
    backend: AttentionBackend, config: ModelConfig, device: torch.device, dtype: torch.dtype
) -> str | None:
    """What is wrong with `backend` for this model here; None when it computes attention."""
    try:
        for sizes, window in itertools.product((_MIXED, _DECODES), (None, _WINDOW)):
            error = _largest_error(backend, config, device, dtype, sizes, window)
            if not error <= _TOLERANCE:
                what = "attention" if window is None else "sliding-window attention"
                return f"its {what} is off by {error:.2g}"
    except (
        Exception
    ) as error:  # what a foreign kernel raises is unknown, and any of it disqualifies
        text = (str(error) or type(error).__name__).strip().splitlines()[0]
        return f"it fails here: {text[:200]}"
    return None


def _largest_error(
    backend: AttentionBackend,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    sizes: _Sizes,
    window: int | None,
) -> float:
    page_tokens = -(-DEFAULT_PAGE_TOKENS // backend.page_multiple) * backend.page_multiple
    rows, total_pages = _rows(sizes, page_tokens)
    cache = KvCache.allocate(
        config,
        total_pages=total_pages,
        device=device,
        dtype=dtype,
        page_tokens=page_tokens,
        layout=backend.layout,
    )
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    cache.keys.copy_(noise(*cache.keys.shape))
    cache.values.copy_(noise(*cache.values.shape))
    query = noise(rows.num_tokens, config.num_heads, config.head_dim)
    # Rows whose keys are all new attend to what is handed in, so that has to be what is cached.
    new_keys, new_values = _written(cache, rows)
    got = backend.plan(rows, window, cache).attend(0, query, new_keys, new_values)
    exact_cache = KvCache(cache.pool, cache.layout, cache.keys.float(), cache.values.float())
    exact = GatherAttention(device=device, dtype=torch.float32).plan(rows, window, exact_cache)
    wanted = exact.attend(0, query.float(), new_keys.float(), new_values.float())
    return float((got.float() - wanted).abs().max())


def _rows(sizes: _Sizes, page_tokens: int) -> tuple[AttentionRows, int]:
    """Rows over pages in random order, and the number of pages."""
    pages = [-(-keys // page_tokens) for _, keys in sizes]
    ids = np.random.default_rng(2).permutation(sum(pages)).astype(np.int32)
    tables = np.empty((1, len(sizes), max(pages)), np.int32)
    at = 0
    for i, count in enumerate(pages):
        tables[0, i] = ids[at]
        tables[0, i, :count] = ids[at : at + count]
        at += count
    starts = np.cumsum([0] + [queries for queries, _ in sizes]).astype(np.int32)
    return AttentionRows(starts, np.array([k for _, k in sizes], np.int32), tables), sum(pages)


def _written(cache: KvCache, rows: AttentionRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [tokens, kv_heads, head_dim] in the cache at the queries' own positions."""
    counts = rows.counts
    row_of = np.repeat(np.arange(len(counts)), counts)
    positions = np.arange(rows.num_tokens) - rows.starts[row_of] + (rows.kv_lens - counts)[row_of]
    pages = rows.tables[:, row_of, positions // cache.page_tokens]
    slots = torch.from_numpy(cache.slots(pages, positions % cache.page_tokens)[0])
    return cache.read(slots.to(cache.keys.device))
