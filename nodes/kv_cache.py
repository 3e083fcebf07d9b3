"""The KV memory of one slice: two tensors of pages, and the pool that says whose they are.

Allocated at start, and once more where room has come free since. Each page holds `page_tokens`
tokens of one layer, in one of two layouts; only this module knows how a token's place becomes a row
of the tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
import torch

from helix_mq.models.config import ModelConfig
from nodes.kv_pages import DEFAULT_PAGE_TOKENS, LayerPagePool

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class KvLayout(Enum):
    """Order of a page's dimensions.

    TOKEN_MAJOR [page_tokens, kv_heads, head_dim] is what FlashAttention reads. HEAD_MAJOR
    [kv_heads, page_tokens, head_dim] lets a gather produce each head's tokens as one contiguous
    run, which CPU kernels read up to a third faster.
    """

    TOKEN_MAJOR = "token_major"
    HEAD_MAJOR = "head_major"


_COPY_BYTES = 64 << 20
"""Of pages that are copied at once, where a pool grows or shrinks."""


@dataclass(slots=True)
class KvCache:
    """keys, values: [total_pages + 1, ...page], in the compute dtype; `...page` as `layout` says.

    The last page is nobody's: rows that only fill a batch up write there.
    """

    pool: LayerPagePool
    layout: KvLayout
    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        *,
        total_pages: int,
        device: torch.device,
        dtype: torch.dtype,
        page_tokens: int = DEFAULT_PAGE_TOKENS,
        layout: KvLayout | None = None,
    ) -> KvCache:
        """Room for `total_pages` layer-pages. ModelSlice.new_cache() passes the page size and
        layout that its attention wants; without `layout` the device decides."""
        if layout is None:
            layout = KvLayout.HEAD_MAJOR if device.type == "cpu" else KvLayout.TOKEN_MAJOR
        page: tuple[int, ...] = (page_tokens, config.num_kv_heads, config.head_dim)
        if layout is KvLayout.HEAD_MAJOR:
            page = (config.num_kv_heads, page_tokens, config.head_dim)
        # zeros, not empty: no page may hold a NaN at first (see clear_pages). On the CPU it is
        # free, since the operating system hands out zero pages lazily.
        keys = torch.zeros((total_pages + 1, *page), dtype=dtype, device=device)
        values = torch.zeros((total_pages + 1, *page), dtype=dtype, device=device)
        return cls(LayerPagePool(total_pages, page_tokens), layout, keys, values)

    @staticmethod
    def page_bytes(config: ModelConfig, dtype: torch.dtype, page_tokens: int) -> int:
        """Bytes of one layer-page, keys and values together."""
        return page_tokens * config.kv_bytes_per_token_per_layer(dtype.itemsize)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def grow(self, total_pages: int) -> None:
        """Room for `total_pages`, not less than now; what is in use keeps its ids and contents.

        One tensor after the other, so that never more than one and a half pools are beside the new
        one. When memory runs out on the way (torch.OutOfMemoryError) the pool stays as large as it
        was.
        """
        if total_pages < self.pool.total_pages:
            raise ValueError(f"cannot grow from {self.pool.total_pages} to {total_pages} pages")
        self.enlarge(total_pages, self.pool.used().astype(np.int64))
        # Growing moves no page.
        self.pool.resize(total_pages)

    def shrink(self, total_pages: int) -> None:
        """Room for `total_pages` at most; contents in use move below that. ValueError, with all as
        it was, when more are in use.

        By way of main memory: a device that is full has no room for both pools.
        """
        sources, targets = (ids.astype(np.int64) for ids in self.pool.resize(total_pages))
        self.cut(total_pages, sources, targets, self.pool.used().astype(np.int64))

    def enlarge(self, total_pages: int, used_pages: I64) -> None:
        """The tensors' part of grow(); the pool stays as it is."""
        used = torch.from_numpy(used_pages)
        self.keys = _larger(self.keys, total_pages + 1, used)
        self.values = _larger(self.values, total_pages + 1, used)

    def cut(self, total_pages: int, from_pages: I64, to_pages: I64, used_pages: I64) -> None:
        """The tensors' part of shrink(): `from_pages` move to `to_pages`, then `used_pages` are
        kept, all int64 [n]."""
        sources, targets = torch.from_numpy(from_pages), torch.from_numpy(to_pages)
        used = torch.from_numpy(used_pages)
        for name in ("keys", "values"):
            pages = getattr(self, name)
            _copy(pages, sources, pages, targets)
            shape, device, dtype = pages.shape[1:], pages.device, pages.dtype
            kept, places = torch.empty((len(used), *shape), dtype=dtype), torch.arange(len(used))
            _copy(pages, used, kept, places)
            # The last references: the old pool must go before the new one comes.
            setattr(self, name, kept)
            del pages
            fewer = torch.zeros((total_pages + 1, *shape), dtype=dtype, device=device)
            _copy(kept, places, fewer, used)
            setattr(self, name, fewer)

    @property
    def page_tokens(self) -> int:
        return self.pool.page_tokens

    @property
    def spare_page(self) -> int:
        """Id of the page that is nobody's. One of the two tensors is longer where memory ran out
        when they grew."""
        return min(len(self.keys), len(self.values)) - 1

    @property
    def kv_heads(self) -> int:
        return self.keys.shape[1 if self.layout is KvLayout.HEAD_MAJOR else 2]

    def clear_pages(self, pages: torch.Tensor) -> None:
        """Zeroes `pages` (int64 [n]): a page that will be read before it is full must not carry a
        former owner's NaN or infinity, since 0 * NaN is NaN even where the mask hides it."""
        self.keys.index_fill_(0, pages, 0)
        self.values.index_fill_(0, pages, 0)

    def slots(self, pages: I32, offsets: I64) -> I64:
        """What write() takes: [layers, ...] from each token's page [layers, tokens] and its offset
        in it [tokens]."""
        if self.layout is KvLayout.TOKEN_MAJOR:
            return pages.astype(np.int64) * self.page_tokens + offsets
        heads = np.arange(self.kv_heads)
        rows = pages[:, :, None].astype(np.int64) * self.kv_heads + heads
        return (rows * self.page_tokens + offsets[:, None]).reshape(len(pages), -1)

    def write(self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Stores [tokens, kv_heads, head_dim] keys and values; slots: one layer of slots()."""
        unit = keys.shape[1:] if self.layout is KvLayout.TOKEN_MAJOR else keys.shape[2:]
        self.keys.view(-1, *unit).index_copy_(0, slots, keys.reshape(-1, *unit))
        self.values.view(-1, *unit).index_copy_(0, slots, values.reshape(-1, *unit))

    def read(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [tokens, kv_heads, head_dim] at `slots`, as write() takes them."""
        heads, width = self.kv_heads, self.keys.shape[3]
        unit = (heads, width) if self.layout is KvLayout.TOKEN_MAJOR else (width,)
        keys, values = (
            pages.view(-1, *unit).index_select(0, slots).view(-1, heads, width)
            for pages in (self.keys, self.values)
        )
        return keys, values

    def gather_index(self, pages: I32) -> I32:
        """What gather() takes: [layers, ...] from page ids [layers, rows, pages per row]."""
        if self.layout is KvLayout.TOKEN_MAJOR:
            return np.ascontiguousarray(pages.reshape(len(pages), -1))
        heads = np.arange(self.kv_heads, dtype=np.int32)[:, None]
        return (pages[:, :, None, :] * np.int32(self.kv_heads) + heads).reshape(len(pages), -1)

    def gather(
        self, index: torch.Tensor, rows: int, out: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [rows, kv_heads, tokens, head_dim] of one layer of gather_index().

        out: two flat tensors of the cache's dtype and of exactly the result's size to write to;
        allocating them anew costs page faults that exceed the copy itself.
        """
        if self.layout is KvLayout.TOKEN_MAJOR:
            shape = (rows, -1, *self.keys.shape[2:])
            keys, values = (
                _select(pages, pages[0].numel(), index, into).view(shape).transpose(1, 2)
                for pages, into in ((self.keys, out[0]), (self.values, out[1]))
            )
            return keys, values
        shape = (rows, self.kv_heads, -1, self.keys.shape[3])
        width = self.page_tokens * self.keys.shape[3]
        return (
            _select(self.keys, width, index, out[0]).view(shape),
            _select(self.values, width, index, out[1]).view(shape),
        )


def _larger(pages: torch.Tensor, total_pages: int, used: torch.Tensor) -> torch.Tensor:
    """A tensor of `total_pages` pages, zeros but for those `used` (int64 [n])."""
    larger = torch.zeros((total_pages, *pages.shape[1:]), dtype=pages.dtype, device=pages.device)
    _copy(pages, used, larger, used)
    return larger


def _copy(
    source: torch.Tensor, from_pages: torch.Tensor, target: torch.Tensor, to_pages: torch.Tensor
) -> None:
    """Some pages to others', of this tensor or of one elsewhere. A few at a time: neither end may
    have room for all of them once more. No page is at both ends."""
    page_bytes = source.shape[1:].numel() * source.element_size()
    at_once = max(1, _COPY_BYTES // page_bytes)
    for start in range(0, len(from_pages), at_once):
        part = slice(start, start + at_once)
        found = source.index_select(0, from_pages[part].to(source.device))
        target.index_copy_(0, to_pages[part].to(target.device), found.to(target.device))


def _select(
    pages: torch.Tensor, width: int, index: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    into = out.view(len(index), width)
    return torch.index_select(pages.view(-1, width), 0, index, out=into)
