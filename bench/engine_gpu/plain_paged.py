"""Attention over page tables in plain PyTorch, for any device: the suite's stand-in for kernels.

Row by row and in float32; nothing here is fast.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from nodes.kv_cache import KvCache
from nodes.model.attention.paged import PagedRows


class PlainPaged:
    page_multiple = 1
    decodes_apart = False

    def __call__(
        self,
        query: torch.Tensor,
        cache: KvCache,
        rows: PagedRows,
        layer: int,
        window: int | None,
    ) -> torch.Tensor:
        out = torch.empty_like(query)
        starts, lens = rows.starts.tolist(), rows.kv_lens.tolist()
        for i, length in enumerate(lens):
            begin, end = starts[i], starts[i + 1]
            pages = rows.tables[layer, i, : -(-length // cache.page_tokens)].long()
            keys, values = (
                kept[pages].flatten(0, 1)[:length].float().transpose(0, 1)
                for kept in (cache.keys, cache.values)
            )
            at = torch.arange(length)[None, :]
            last = torch.arange(length - (end - begin), length)[:, None]
            seen = at <= last
            if window is not None:
                seen &= at > last - window
            q = query[begin:end].float().transpose(0, 1)
            found = F.scaled_dot_product_attention(
                q[None], keys[None], values[None], attn_mask=seen, enable_gqa=True
            )
            out[begin:end] = found[0].transpose(0, 1).to(query.dtype)
        return out
