"""The interface between the transformer block and the attention kernels.

A backend turns the rows of a segment into a plan once; the plan then attends in every layer of the
segment. Keys and values of the rows' own tokens are in the cache before `attend` is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from helix_mq.errors import LocalError
from nodes.kv_cache import KvCache, KvLayout

I32 = npt.NDArray[np.int32]
Index = slice | torch.Tensor


def as_index(tokens: npt.NDArray[np.integer[Any]], device: torch.device) -> Index:
    """Ascending token numbers as an index: a slice where they are consecutive, since slicing makes
    a view and indexing copies."""
    first, n = int(tokens[0]), len(tokens)
    if int(tokens[-1]) - first == n - 1:
        return slice(first, first + n)
    return torch.from_numpy(tokens.astype(np.int64)).to(device)


class BackendUnavailable(LocalError):
    """An attention backend cannot exist here; the text says why."""

    code = "attention_unavailable"


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """Rows of one segment, in the order of their tokens in the tensors. Host memory.

    starts: int32 [rows + 1], offset of each row's first query token, and the total.
    kv_lens: int32 [rows], tokens that the row's last query sees (causal: query i of n sees
    kv_lens - n + 1 + i).
    tables: int32 [layers, rows, max_pages], page ids; entries beyond a row's pages repeat one of
    its own, so that reading them is harmless.
    """

    starts: I32
    kv_lens: I32
    tables: I32

    @property
    def counts(self) -> I32:
        """int32 [rows]: query tokens of each row."""
        return np.diff(self.starts)

    @property
    def num_tokens(self) -> int:
        return int(self.starts[-1])

    def last_tokens(self, rows: I32, counts: I32) -> AttentionRows:
        """Only the last so many queries of each of `rows`, in the segment's last layer."""
        starts = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(counts, out=starts[1:])
        return AttentionRows(
            starts=starts,
            kv_lens=self.kv_lens[rows],
            tables=self.tables[-1:, rows],
        )


class AttentionPlan(Protocol):
    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        new_keys: torch.Tensor,
        new_values: torch.Tensor,
    ) -> torch.Tensor:
        """Output [tokens, heads, head_dim] of `query` (same shape) in the segment's `layer`-th
        layer. new_keys, new_values: [tokens, kv_heads, head_dim], what this pass has just written;
        a plan may read them instead of the cache."""
        ...


class AttentionBackend(Protocol):
    @property
    def name(self) -> str:
        """Short and stable; what an override names."""
        ...

    @property
    def page_multiple(self) -> int:
        """KV pages must hold a multiple of this many tokens."""
        ...

    @property
    def layout(self) -> KvLayout | None:
        """The one layout of KV pages that it can read; None when it reads either."""
        ...

    def plan(self, rows: AttentionRows, window: int | None, cache: KvCache) -> AttentionPlan:
        """window: tokens that a query sees, itself included; None for all."""
        ...
