"""Attention by kernels that read KV pages through a block table: one plan for all of them.

The kernels' own calling conventions are in kernels.py; this module prepares what they have in
common, once per segment, on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from nodes.kv_cache import KvCache, KvLayout
from nodes.model.attention.base import AttentionRows, Index, as_index


@dataclass(frozen=True, slots=True)
class PagedRows:
    """Rows as kernels take them; tensors are int32 on the device.

    starts [rows + 1]: offset of each row's first query. kv_starts [rows + 1]: the same over keys.
    kv_lens [rows]: keys of each row. tables [layers, rows, pages]: page ids.
    """

    starts: torch.Tensor
    kv_starts: torch.Tensor
    kv_lens: torch.Tensor
    tables: torch.Tensor
    max_count: int
    max_kv_len: int


class PagedKernel(Protocol):
    @property
    def page_multiple(self) -> int:
        """Pages must hold a multiple of this many tokens."""
        ...

    @property
    def decodes_apart(self) -> bool:
        """Whether single queries are better called apart from longer rows."""
        ...

    def __call__(
        self,
        query: torch.Tensor,
        cache: KvCache,
        rows: PagedRows,
        layer: int,
        window: int | None,
    ) -> torch.Tensor:
        """Causal attention, aligned to each row's last key: [tokens, heads, head_dim] of `query`,
        which is contiguous and of the same shape. window: keys seen, the query's own included."""
        ...


class PagedAttention:
    """The backend around any PagedKernel."""

    layout = KvLayout.TOKEN_MAJOR

    def __init__(self, name: str, kernel: PagedKernel, device: torch.device) -> None:
        self.name = name
        self._kernel = kernel
        self._device = device

    @property
    def page_multiple(self) -> int:
        return self._kernel.page_multiple

    def plan(self, rows: AttentionRows, window: int | None, cache: KvCache) -> PagedPlan:
        counts = rows.counts
        everything = np.arange(len(counts))
        groups = [everything]
        if self._kernel.decodes_apart and counts.min() == 1 < counts.max():
            groups = [np.flatnonzero(counts == 1), np.flatnonzero(counts > 1)]
        parts = tuple(self._part(rows, members) for members in groups)
        return PagedPlan(parts, self._kernel, cache, window)

    def plan_decodes(self, rows: PagedRows, window: int | None, cache: KvCache) -> PagedPlan:
        """Of rows of one query each that are on the device already."""
        everything = slice(0, len(rows.kv_lens))
        return PagedPlan((_Part(everything, rows),), self._kernel, cache, window)

    def _part(self, rows: AttentionRows, members: npt.NDArray[np.intp]) -> _Part:
        counts, lens = rows.counts[members], rows.kv_lens[members]
        tokens = np.concatenate([np.arange(rows.starts[i], rows.starts[i + 1]) for i in members])
        return _Part(
            tokens=as_index(tokens, self._device),
            rows=PagedRows(
                starts=self._offsets(counts),
                kv_starts=self._offsets(lens),
                kv_lens=torch.from_numpy(lens).to(self._device),
                tables=torch.from_numpy(np.ascontiguousarray(rows.tables[:, members])).to(
                    self._device
                ),
                max_count=int(counts.max()),
                max_kv_len=int(lens.max()),
            ),
        )

    def _offsets(self, sizes: npt.NDArray[np.int32]) -> torch.Tensor:
        offsets = np.zeros(len(sizes) + 1, np.int32)
        np.cumsum(sizes, out=offsets[1:])
        return torch.from_numpy(offsets).to(self._device)


@dataclass(frozen=True, slots=True)
class _Part:
    tokens: Index
    rows: PagedRows


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """Parts that together cover all query tokens, one kernel call each."""

    parts: tuple[_Part, ...]
    kernel: PagedKernel
    cache: KvCache
    window: int | None

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        new_keys: torch.Tensor,
        new_values: torch.Tensor,
    ) -> torch.Tensor:
        # Queries are a strided part of the fused projection; not every kernel honours strides.
        if len(self.parts) == 1:
            return self._call(query.contiguous(), self.parts[0], layer)
        out = torch.empty_like(query)
        for part in self.parts:
            out[part.tokens] = self._call(query[part.tokens].contiguous(), part, layer)
        return out

    def _call(self, query: torch.Tensor, part: _Part, layer: int) -> torch.Tensor:
        return self.kernel(query, self.cache, part.rows, layer, self.window)
