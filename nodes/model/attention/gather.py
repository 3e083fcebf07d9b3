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
from nodes.model.attention.base import AttentionRows, Index, as_index

_BUCKET_FILL = 0.7
"""A row shorter than this part of its bucket's longest starts a new bucket..."""
_BUCKET_MIN_SAVED_TOKENS = 64
"""...but only where that saves so much reading; a kernel call costs about as much."""


class GatherAttention:
    """The backend of CPUs, and of GPUs without kernels that read pages directly.

    Not thread-safe: plans share the backend's workspace, so one plan attends at a time.
    """

    name = "gather"
    page_multiple = 1
    layout = None

    def __init__(self, *, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._workspace = Workspace(device, dtype)

    def plan(
        self, rows: AttentionRows, window: int | None, cache: KvCache, *, decodes: bool = True
    ) -> GatherPlan:
        """`decodes`: whether rows of one token are part of the plan."""
        counts = rows.counts
        groups = _buckets(rows.kv_lens, counts, window) if decodes else []
        buckets = tuple(self._bucket(rows, g, window, cache) for g in groups)
        long = np.flatnonzero(counts > 1)
        chunks = tuple(self._chunk(rows, int(i), window, cache) for i in long)
        return GatherPlan(buckets, chunks, cache, self._workspace)

    def _bucket(
        self,
        rows: AttentionRows,
        members: npt.NDArray[np.intp],
        window: int | None,
        cache: KvCache,
    ) -> _Bucket:
        page_tokens = cache.page_tokens
        lens = rows.kv_lens[members]
        visible = _first_visible(lens - 1, window)
        first_page = visible // page_tokens
        pages = int((-(-lens // page_tokens) - first_page).max())
        columns = first_page[:, None] + np.arange(pages)
        tables = rows.tables[:, members]
        # Columns beyond a row's own pages read any of its pages; the mask hides them.
        np.minimum(columns, tables.shape[2] - 1, out=columns)
        picked = tables[:, np.arange(len(members))[:, None], columns]
        at = first_page[:, None] * page_tokens + np.arange(pages * page_tokens)
        hidden = (at >= lens[:, None]) | (at < visible[:, None])
        return _Bucket(
            tokens=as_index(rows.starts[members], self._device),
            gather=torch.from_numpy(cache.gather_index(picked)).to(self._device),
            mask=self._mask(hidden)[:, None, None, :],
        )

    def _chunk(self, rows: AttentionRows, row: int, window: int | None, cache: KvCache) -> _Chunk:
        page_tokens = cache.page_tokens
        start, end = int(rows.starts[row]), int(rows.starts[row + 1])
        length = int(rows.kv_lens[row])
        count = end - start
        if count == length and (window is None or window >= length):
            return _Chunk(slice(start, end), None, None)
        position = length - count
        first_page = int(_first_visible(np.array(position), window)) // page_tokens
        pages = rows.tables[:, row : row + 1, first_page : -(-length // page_tokens)]
        query_at = np.arange(position, length)[:, None]
        key_at = np.arange(first_page * page_tokens, (first_page + pages.shape[2]) * page_tokens)
        hidden = key_at > query_at
        if window is not None:
            hidden |= key_at <= query_at - window
        gather = torch.from_numpy(cache.gather_index(pages)).to(self._device)
        return _Chunk(slice(start, end), gather, self._mask(hidden))

    def _mask(self, hidden: npt.NDArray[np.bool_]) -> torch.Tensor:
        """0 where visible, -inf where hidden; additive, since a boolean mask is turned into this
        again in every call."""
        mask = torch.zeros(hidden.shape, dtype=self._dtype)
        mask.masked_fill_(torch.from_numpy(hidden), float("-inf"))
        return mask.to(self._device)


class Workspace:
    """Memory for gathered keys and values, kept between steps; as large as the largest bucket of
    one layer was."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._keys = torch.empty(0, device=device, dtype=dtype)
        self._values = torch.empty(0, device=device, dtype=dtype)

    def take(self, numel: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Two flat tensors of `numel` elements, with any content, valid until the next take."""
        if self._keys.numel() < numel:
            self._keys = self._keys.new_empty(numel + numel // 4)
            self._values = self._values.new_empty(numel + numel // 4)
        return self._keys[:numel], self._values[:numel]


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Decodes that share one kernel call. gather: of all layers; mask: [rows, 1, 1, tokens]."""

    tokens: Index
    gather: torch.Tensor
    mask: torch.Tensor

    def attend(
        self, layer: int, query: torch.Tensor, cache: KvCache, workspace: Workspace
    ) -> torch.Tensor:
        rows, _, _, tokens = self.mask.shape
        heads, width = query.shape[1:]
        out = workspace.take(rows * tokens * cache.kv_heads * width)
        keys, values = cache.gather(self.gather[layer], rows, out)
        q = query[self.tokens].unsqueeze(2)
        attend = F.scaled_dot_product_attention if q.dtype == torch.float32 else _by_products
        return attend(q, keys, values, attn_mask=self.mask, enable_gqa=True).view(
            rows, heads, width
        )


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One prefill chunk; without a gather it is a sequence's first, and attends to itself alone.
    mask: [tokens, keys]."""

    tokens: slice
    gather: torch.Tensor | None
    mask: torch.Tensor | None

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        new: tuple[torch.Tensor, torch.Tensor],
        cache: KvCache,
        workspace: Workspace,
    ) -> torch.Tensor:
        q = query[self.tokens].transpose(0, 1)[None]
        if self.gather is None or self.mask is None:
            keys, values = (part[self.tokens].transpose(0, 1)[None] for part in new)
            out = F.scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=True)
        else:
            space = workspace.take(self.mask.shape[1] * cache.kv_heads * query.shape[2])
            keys, values = cache.gather(self.gather[layer], 1, space)
            out = F.scaled_dot_product_attention(
                q, keys, values, attn_mask=self.mask, enable_gqa=True
            )
        return out[0].transpose(0, 1)


@dataclass(frozen=True, slots=True)
class GatherPlan:
    """Buckets of decodes and single chunks that together cover all query tokens."""

    buckets: tuple[_Bucket, ...]
    chunks: tuple[_Chunk, ...]
    cache: KvCache
    workspace: Workspace

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        new_keys: torch.Tensor,
        new_values: torch.Tensor,
    ) -> torch.Tensor:
        new = (new_keys, new_values)
        if not self.chunks and len(self.buckets) == 1 and isinstance(self.buckets[0].tokens, slice):
            return self.buckets[0].attend(layer, query, self.cache, self.workspace)
        if not self.buckets and len(self.chunks) == 1:
            return self.chunks[0].attend(layer, query, new, self.cache, self.workspace)
        out = torch.empty_like(query)
        self.attend_into(out, layer, query, new_keys, new_values)
        return out

    def attend_into(
        self,
        out: torch.Tensor,
        layer: int,
        query: torch.Tensor,
        new_keys: torch.Tensor,
        new_values: torch.Tensor,
    ) -> None:
        """Writes the plan's own tokens of `out`, which has the shape of `query`."""
        new = (new_keys, new_values)
        for bucket in self.buckets:
            out[bucket.tokens] = bucket.attend(layer, query, self.cache, self.workspace)
        for chunk in self.chunks:
            out[chunk.tokens] = chunk.attend(layer, query, new, self.cache, self.workspace)


def _by_products(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    attn_mask: torch.Tensor,
    enable_gqa: bool,
) -> torch.Tensor:
    """scaled_dot_product_attention of one query per head, as two batched products.

    PyTorch's CPU kernel takes 3 to 10 times as long in bfloat16 as in float32 for single queries;
    the batched product uses the processor's bfloat16 instructions. Softmax is in float32.
    """
    assert enable_gqa
    rows, heads, _, width = query.shape
    groups = rows * keys.shape[1]
    tokens = keys.shape[2]
    q = query.reshape(groups, -1, width)
    k = keys.reshape(groups, tokens, width)
    scores = torch.bmm(q, k.transpose(1, 2)).float().view(rows, heads, 1, tokens)
    weights = torch.softmax(scores.mul_(width**-0.5).add_(attn_mask), dim=-1).to(query.dtype)
    return torch.bmm(weights.view(groups, -1, tokens), values.reshape(groups, tokens, width))


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
