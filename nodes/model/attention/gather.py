"""Exact attention on any device: gather the pages, then PyTorch's scaled_dot_product_attention.

Decodes are batched: rows of similar length share one padded gather and one kernel call, so that the
hot path has no loop over requests. Prefill chunks go one by one; a sequence's first chunk needs no
gather at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from nodes.kv_cache import KvCache
from nodes.model.attention.base import AttentionRows

_BUCKET_FILL = 0.7
"""A row shorter than this part of its bucket's longest starts a new bucket..."""
_BUCKET_MIN_SAVED_TOKENS = 64
"""...but only where that saves so much reading; a kernel call costs about as much."""

Index = slice | torch.Tensor


class GatherAttention:
    """The backend of CPUs, and of GPUs without kernels that read pages directly."""

    name = "gather"
    page_multiple = 1

    def __init__(self, *, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype

    def plan(self, rows: AttentionRows, window: int | None) -> GatherPlan:
        counts = rows.counts
        buckets = [self._bucket(rows, b, window) for b in _buckets(rows.kv_lens, counts, window)]
        chunks = [self._chunk(rows, int(i), window) for i in np.flatnonzero(counts > 1)]
        return GatherPlan(tuple(buckets), tuple(chunks), rows.num_tokens)

    def _bucket(
        self, rows: AttentionRows, members: npt.NDArray[np.intp], window: int | None
    ) -> _Bucket:
        lens = rows.kv_lens[members]
        visible = _first_visible(lens - 1, window)
        first_page = visible // rows.page_tokens
        pages = int((-(-lens // rows.page_tokens) - first_page).max())
        columns = first_page[:, None] + np.arange(pages)
        tables = rows.tables[:, members]
        np.minimum(columns, tables.shape[2] - 1, out=columns)
        picked = np.take_along_axis(
            tables, np.broadcast_to(columns, (len(tables), *columns.shape)), 2
        )
        at = first_page[:, None] * rows.page_tokens + np.arange(pages * rows.page_tokens)
        hidden = (at >= lens[:, None]) | (at < visible[:, None])
        return _Bucket(
            tokens=_as_index(rows.starts[members], self._device),
            pages=self._to_device(picked.reshape(len(tables), -1)),
            mask=self._mask(hidden)[:, None, None, :],
        )

    def _chunk(self, rows: AttentionRows, row: int, window: int | None) -> _Chunk:
        start, end = int(rows.starts[row]), int(rows.starts[row + 1])
        length = int(rows.kv_lens[row])
        count = end - start
        if count == length and (window is None or window >= length):
            return _Chunk(slice(start, end), None, None)
        position = length - count
        first_page = int(_first_visible(np.array(position), window)) // rows.page_tokens
        pages = rows.tables[:, row, first_page : -(-length // rows.page_tokens)]
        query_at = np.arange(position, length)
        key_at = np.arange(first_page * rows.page_tokens, length)
        hidden = key_at > query_at[:, None]
        if window is not None:
            hidden |= key_at <= query_at[:, None] - window
        return _Chunk(slice(start, end), self._to_device(pages), self._mask(hidden))

    def _mask(self, hidden: npt.NDArray[np.bool_]) -> torch.Tensor:
        """0 where visible, -inf where hidden; additive, since a boolean mask is turned into this
        again in every call."""
        mask = torch.zeros(hidden.shape, dtype=self._dtype)
        mask.masked_fill_(torch.from_numpy(hidden), float("-inf"))
        return mask.to(self._device)

    def _to_device(self, ids: npt.NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(ids)).to(self._device)


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Decodes that share one kernel call. pages: int32 [layers, rows * pages per row];
    mask: [rows, 1, 1, tokens]."""

    tokens: Index
    pages: torch.Tensor
    mask: torch.Tensor

    def attend(self, layer: int, query: torch.Tensor, cache: KvCache) -> torch.Tensor:
        rows, (heads, width) = len(self.mask), query.shape[1:]
        keys, values = _gathered(cache, self.pages[layer], rows)
        q = query[self.tokens].view(rows, heads, 1, width)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask, enable_gqa=True)
        return out.view(rows, heads, width)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One prefill chunk; without pages it is a sequence's first, and attends to itself alone.
    pages: int32 [layers, pages]; mask: [tokens, keys]."""

    tokens: slice
    pages: torch.Tensor | None
    mask: torch.Tensor | None

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        new_keys: torch.Tensor,
        new_values: torch.Tensor,
        cache: KvCache,
    ) -> torch.Tensor:
        q = query[self.tokens].transpose(0, 1)[None]
        if self.pages is None or self.mask is None:
            keys = new_keys[self.tokens].transpose(0, 1)[None]
            values = new_values[self.tokens].transpose(0, 1)[None]
            out = F.scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=True)
        else:
            keys, values = _gathered(cache, self.pages[layer], 1)
            length = self.mask.shape[1]
            out = F.scaled_dot_product_attention(
                q,
                keys[:, :, :length],
                values[:, :, :length],
                attn_mask=self.mask,
                enable_gqa=True,
            )
        return out[0].transpose(0, 1)


@dataclass(frozen=True, slots=True)
class GatherPlan:
    """Buckets of decodes and single chunks that together cover `num_tokens` query tokens."""

    buckets: tuple[_Bucket, ...]
    chunks: tuple[_Chunk, ...]
    num_tokens: int

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        new_keys: torch.Tensor,
        new_values: torch.Tensor,
        cache: KvCache,
    ) -> torch.Tensor:
        if not self.chunks and len(self.buckets) == 1 and isinstance(self.buckets[0].tokens, slice):
            return self.buckets[0].attend(layer, query, cache)
        if not self.buckets and len(self.chunks) == 1:
            return self.chunks[0].attend(layer, query, new_keys, new_values, cache)
        out = torch.empty_like(query)
        for bucket in self.buckets:
            out[bucket.tokens] = bucket.attend(layer, query, cache)
        for chunk in self.chunks:
            out[chunk.tokens] = chunk.attend(layer, query, new_keys, new_values, cache)
        return out


def _buckets(
    kv_lens: npt.NDArray[np.int32], counts: npt.NDArray[np.int32], window: int | None
) -> list[npt.NDArray[np.intp]]:
    """Row numbers of the decodes, in groups of similar length; each group ascending."""
    members = np.flatnonzero(counts == 1)
    if len(members) < 2:
        return [members] if len(members) else []
    reach = kv_lens[members] if window is None else np.minimum(kv_lens[members], window)
    order = np.argsort(-reach, kind="stable")
    groups: list[npt.NDArray[np.intp]] = []
    begin = 0
    for i in range(1, len(order) + 1):
        if i < len(order):
            longest, this = int(reach[order[begin]]), int(reach[order[i]])
            saved = (longest - this) * (len(order) - i)
            if this >= _BUCKET_FILL * longest or saved < _BUCKET_MIN_SAVED_TOKENS:
                continue
        groups.append(np.sort(members[order[begin:i]]))
        begin = i
    return groups


def _first_visible(query_at: npt.NDArray[np.int32], window: int | None) -> npt.NDArray[np.int32]:
    if window is None:
        return np.zeros_like(query_at)
    return np.maximum(query_at - window + 1, 0)


def _as_index(tokens: npt.NDArray[np.int32], device: torch.device) -> Index:
    """A slice where the tokens are consecutive: slicing makes a view, indexing copies."""
    first, n = int(tokens[0]), len(tokens)
    if int(tokens[-1]) - first == n - 1:
        return slice(first, first + n)
    return torch.from_numpy(tokens.astype(np.int64)).to(device)


def _gathered(cache: KvCache, pages: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [rows, kv_heads, tokens, head_dim] of `pages` (rows * pages per row)."""
    shape = (rows, -1, *cache.keys.shape[2:])
    keys = cache.keys.index_select(0, pages).view(shape)
    values = cache.values.index_select(0, pages).view(shape)
    return keys.transpose(1, 2), values.transpose(1, 2)
