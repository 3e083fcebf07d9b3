"""Attention on the CPU straight from the pages, by a compiled kernel.

Gathering reads keys and values, writes them and reads them again; this reads them where they are,
for decodes and for each token of a prompt alike, so that a token has the same bits either way.
Where registers are narrow prompts go the way of GatherAttention: their products are large, and
PyTorch's kernels better at them there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nodes.kv_cache import KvCache, KvLayout
from nodes.model.attention.base import (
    AttentionPlan,
    AttentionRows,
    BackendUnavailable,
    Index,
    as_index,
)
from nodes.model.attention.gather import GatherAttention, GatherPlan
from nodes.model.native.build import built
from nodes.model.native.kernels import ATTEND_WIDTHS, Kernels, kernels_for


class NativeAttention:
    """Not thread-safe, as GatherAttention is not. BackendUnavailable where there is no kernel."""

    name = "native"
    page_multiple = 1
    layout = KvLayout.HEAD_MAJOR

    def __init__(self, width: int, *, device: torch.device, dtype: torch.dtype) -> None:
        """width: of a head."""
        if width not in ATTEND_WIDTHS:
            raise BackendUnavailable(f"heads of {width} are not among {ATTEND_WIDTHS}")
        kernels = kernels_for(dtype)
        if kernels is None:
            raise BackendUnavailable(f"no compiled kernels for {dtype} here: {built().reason}")
        self._kernels = kernels
        self._device = device
        self._chunks = GatherAttention(device=device, dtype=dtype)

    def plan(self, rows: AttentionRows, window: int | None, cache: KvCache) -> AttentionPlan:
        counts = rows.counts
        if self._kernels.wide or rows.num_tokens == len(counts):
            return self._whole(rows, window, cache)
        decodes = np.flatnonzero(counts == 1)
        of_decodes = AttentionRows(
            np.arange(len(decodes) + 1, dtype=np.int32),
            rows.kv_lens[decodes],
            rows.tables[:, decodes],
        )
        return SplitPlan(
            tokens=as_index(rows.starts[decodes], self._device) if len(decodes) else None,
            decodes=self._whole(of_decodes, window, cache),
            chunks=self._chunks.plan(rows, window, cache, decodes=False),
        )

    def _whole(self, rows: AttentionRows, window: int | None, cache: KvCache) -> NativePlan:
        ends, owners = rows.kv_lens.astype(np.int32), None
        if rows.num_tokens > len(ends):
            own = np.repeat(np.arange(len(ends), dtype=np.int32), rows.counts)
            # Less those of the row's tokens that come after each.
            at = np.arange(1, rows.num_tokens + 1, dtype=np.int32)
            ends, owners = ends[own] - (rows.starts[1:][own] - at), torch.from_numpy(own)
        firsts = np.zeros_like(ends) if window is None else np.maximum(ends - window, 0)
        return NativePlan(
            kernels=self._kernels,
            cache=cache,
            tables=torch.from_numpy(np.ascontiguousarray(rows.tables, dtype=np.int32)),
            owners=owners,
            firsts=torch.from_numpy(firsts.astype(np.int32)),
            ends=torch.from_numpy(ends.astype(np.int32)),
        )


@dataclass(frozen=True, slots=True)
class NativePlan:
    """tables: int32 [layers, rows, pages]; owners, the row of each token, None where each is one,
    firsts, ends: int32 [tokens]."""

    kernels: Kernels
    cache: KvCache
    tables: torch.Tensor
    owners: torch.Tensor | None
    firsts: torch.Tensor
    ends: torch.Tensor

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        new_keys: torch.Tensor,
        new_values: torch.Tensor,
    ) -> torch.Tensor:
        """New keys and values are read in the cache, as all others."""
        return self.kernels.attend(
            _rows(query),
            self.cache.keys,
            self.cache.values,
            self.tables[layer],
            self.firsts,
            self.ends,
            self.owners,
        )


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """tokens: the decodes', None without any; chunks: all other rows."""

    tokens: Index | None
    decodes: NativePlan
    chunks: GatherPlan

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        new_keys: torch.Tensor,
        new_values: torch.Tensor,
    ) -> torch.Tensor:
        if self.tokens is None:
            return self.chunks.attend(layer, query, new_keys, new_values)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        self.chunks.attend_into(out, layer, query, new_keys, new_values)
        out[self.tokens] = self.decodes.attend(layer, query[self.tokens], new_keys, new_values)
        return out


def _rows(query: torch.Tensor) -> torch.Tensor:
    """With heads and their width in one piece; rows may be apart."""
    width = query.shape[2]
    return query if query.stride()[1:] == (width, 1) else query.contiguous()
