"""The KV memory of one slice: two tensors of pages, and the pool that says whose they are.

Allocation happens once, at start; writing is by slot (page * page_tokens + offset). Every page is
finite before it is first read, so that masked positions can never turn a result into NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from helix_mq.models.config import ModelConfig
from nodes.kv_pages import DEFAULT_PAGE_TOKENS, LayerPagePool


@dataclass(frozen=True, slots=True)
class KvCache:
    """keys, values: [total_pages, page_tokens, kv_heads, head_dim] in the compute dtype."""

    pool: LayerPagePool
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
    ) -> KvCache:
        """Room for `total_pages` layer-pages; page_tokens must suit the attention backend."""
        pool = LayerPagePool(total_pages, page_tokens)
        shape = (total_pages, page_tokens, config.num_kv_heads, config.head_dim)
        # zeros, not empty: on the CPU the kernel maps zero pages lazily, so it costs no more.
        keys = torch.zeros(shape, dtype=dtype, device=device)
        values = torch.zeros(shape, dtype=dtype, device=device)
        return cls(pool, keys, values)

    @staticmethod
    def page_bytes(config: ModelConfig, dtype: torch.dtype, page_tokens: int) -> int:
        """Bytes of one layer-page, keys and values together."""
        return page_tokens * config.kv_bytes_per_token_per_layer(dtype.itemsize)

    @property
    def page_tokens(self) -> int:
        return self.pool.page_tokens

    def clear_pages(self, pages: torch.Tensor) -> None:
        """Zeroes `pages` (int64 [n]): a page that will be read before it is full must not carry a
        former owner's NaN or infinity, since 0 * NaN is NaN even where the mask hides it."""
        self.keys.index_fill_(0, pages, 0)
        self.values.index_fill_(0, pages, 0)

    def write(self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Stores [tokens, kv_heads, head_dim] keys and values at `slots` (int64 [tokens])."""
        self.keys.view(-1, *self.keys.shape[2:]).index_copy_(0, slots, keys)
        self.values.view(-1, *self.values.shape[2:]).index_copy_(0, slots, values)
