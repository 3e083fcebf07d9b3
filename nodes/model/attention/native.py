"""Attention of decodes on the CPU straight from the pages, by a compiled kernel.

Gathering reads keys and values, writes them and reads them again; this reads them once. Prompt
chunks go the way of GatherAttention: their products are large, and PyTorch's kernels good at them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nodes.kv_cache import KvCache, KvLayout
from nodes.model.attention.base import AttentionRows, BackendUnavailable, Index, as_index
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

    def plan(self, rows: AttentionRows, window: int | None, cache: KvCache) -> NativePlan:
        counts = rows.counts
        decodes = np.flatnonzero(counts == 1)
        chunks = (
            self._chunks.plan(rows, window, cache, decodes=False)
            if len(decodes) < len(counts)
            else None
        )
        ends = rows.kv_lens[decodes].astype(np.int32)
        firsts = np.zeros_like(ends) if window is None else np.maximum(ends - window, 0)
        tables = np.ascontiguousarray(rows.tables[:, decodes], dtype=np.int32)
        return NativePlan(
            kernels=self._kernels,
            cache=cache,
            tokens=as_index(rows.starts[decodes], self._device) if len(decodes) else None,
            tables=torch.from_numpy(tables),
            firsts=torch.from_numpy(np.ascontiguousarray(firsts, dtype=np.int32)),
            ends=torch.from_numpy(ends),
            chunks=chunks,
        )


@dataclass(frozen=True, slots=True)
class NativePlan:
    """tokens: the decodes', None without any; tables: int32 [layers, decodes, pages]; firsts, ends:
    int32 [decodes]; chunks: all other rows, None without any."""

    kernels: Kernels
    cache: KvCache
    tokens: Index | None
    tables: torch.Tensor
    firsts: torch.Tensor
    ends: torch.Tensor
    chunks: GatherPlan | None

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        new_keys: torch.Tensor,
        new_values: torch.Tensor,
    ) -> torch.Tensor:
        if self.tokens is None:
            assert self.chunks is not None
            return self.chunks.attend(layer, query, new_keys, new_values)
        attended = self.kernels.attend(
            _rows(query[self.tokens]),
            self.cache.keys,
            self.cache.values,
            self.tables[layer],
            self.firsts,
            self.ends,
        )
        if self.chunks is None:
            return attended
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        self.chunks.attend_into(out, layer, query, new_keys, new_values)
        out[self.tokens] = attended
        return out


def _rows(query: torch.Tensor) -> torch.Tensor:
    """With heads and their width in one piece; rows may be apart."""
    width = query.shape[2]
    return query if query.stride()[1:] == (width, 1) else query.contiguous()
