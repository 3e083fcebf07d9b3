"""Per-segment index tensors of a forward pass: positions, slots, tables, and the rows' places.

Built once per segment with numpy, in no loop over layers; torch sees only the finished arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nodes.kv_cache import KvCache
from nodes.model.attention.base import AttentionRows
from nodes.model.batch import RowSpec
from nodes.model.segments import Segment

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SegmentIndex:
    """attention: what backends plan with. positions: int64 [tokens]. slots: int64
    [layers, ...], where each token's keys and values go. fresh_pages: int64, pages that get their
    first token now and stay partly empty."""

    attention: AttentionRows
    positions: I64
    slots: I64
    fresh_pages: I64


@dataclass(frozen=True, slots=True)
class LastTokens:
    """Of a segment that ends the model, the tokens whose logits are wanted. int32 [rows that want
    some]: rows as numbers in the segment and in the batch, and how many of their last tokens."""

    rows: I32
    batch_rows: I32
    counts: I32

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    def numbers(self, starts: I32) -> I64:
        """Those tokens' numbers in a segment whose rows begin at `starts` and at the next's."""
        ends = starts[1:][self.rows].astype(np.int64)
        if len(ends) == self.tokens:
            return ends - 1
        past = np.cumsum(self.counts)
        return np.arange(past[-1]) + np.repeat(ends - past, self.counts)


def last_of(rows: Sequence[RowSpec], segment: Sequence[int]) -> LastTokens:
    """Of the batch rows of a segment, in its order."""
    wanting = [
        (at, i, rows[i].logit_tokens) for at, i in enumerate(segment) if rows[i].wants_logits
    ]
    chosen = np.array(wanting, np.int32).reshape(-1, 3)
    return LastTokens(chosen[:, 0], chosen[:, 1], chosen[:, 2])


def index_segment(segment: Segment, rows: Sequence[RowSpec], cache: KvCache) -> SegmentIndex:
    """Of the segment's rows, in its order."""
    pool, page_tokens = cache.pool, cache.page_tokens
    active = [rows[i] for i in segment.rows]
    first = np.array([r.position for r in active], np.int64)
    counts = np.array([r.count for r in active], np.int64)
    ends = first + counts
    starts = np.zeros(len(active) + 1, np.int32)
    counts.cumsum(out=starts[1:])
    pages = -(-ends // page_tokens)
    tables = np.empty((len(segment.layers), len(active), int(pages.max())), np.int32)
    for i, row in enumerate(active):
        skip = segment.layers.first - pool.layers(row.seq).first
        table = pool.table(row.seq)[skip : skip + len(segment.layers), : pages[i]]
        tables[:, i, : pages[i]] = table
        tables[:, i, pages[i] :] = table[:, :1]
    if len(active) == int(starts[-1]):
        row_of, positions = np.arange(len(active)), first
    else:
        row_of = np.repeat(np.arange(len(active)), counts)
        positions = np.arange(starts[-1]) - starts[row_of] + first[row_of]
    slots = cache.slots(tables[:, row_of, positions // page_tokens], positions % page_tokens)
    last_page_at = (pages - 1) * page_tokens
    (fresh,) = ((first <= last_page_at) & (ends < last_page_at + page_tokens)).nonzero()
    return SegmentIndex(
        attention=AttentionRows(starts, ends.astype(np.int32), tables),
        positions=positions,
        slots=slots,
        fresh_pages=tables[:, fresh, pages[fresh] - 1].astype(np.int64).ravel(),
    )
