"""A rank's ModelSlice: narrower, and in step with the others.

Rank 0's is what the node's engine runs; everything that one of its passes needs goes to the others
segment by segment. Each has its own KV cache, of its heads, with the pages that rank 0's pool says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import Quantisation, WeightForm
from nodes.kv_cache import KvCache
from nodes.model.attention.base import AttentionRows
from nodes.model.attention.choose import AttentionChoice
from nodes.model.metadata import LastTokens, SegmentIndex
from nodes.model.parallel.orders import Allocate, Array, Cut, Enlarge, Order, RunSegment
from nodes.model.parallel.ranks import Ranks
from nodes.model.parallel.split import node_weight_bytes, rank_config
from nodes.model.recorders import Recorder
from nodes.model.segments import Segment
from nodes.model.slice import ModelSlice
from nodes.model.weights import SliceWeights

I64 = npt.NDArray[np.int64]


class Others(ABC):
    """The other ranks, as rank 0 commands them. Each may raise what says that one is lost."""

    @abstractmethod
    def tell(self, order: Order, arrays: Sequence[Array] = ()) -> None:
        """All of them, without waiting."""

    @abstractmethod
    def have(self, order: Order, arrays: Sequence[Array] = ()) -> None:
        """All of them, until they have done it. torch.OutOfMemoryError when one could not."""

    @abstractmethod
    def broken(self, reason: str) -> None:
        """The ranks are out of step, for good."""

    @abstractmethod
    def listen(self, listener: Callable[[str], None]) -> None:
        """`listener` is told of the loss of one, past or to come, in words."""

    @abstractmethod
    def close(self) -> None:
        """Ends them."""


class FollowerSlice(ModelSlice):
    """Of the ranks above 0."""

    def __init__(
        self,
        config: ModelConfig,
        layers: LayerRange,
        weights: SliceWeights,
        attention: AttentionChoice,
        ranks: Ranks,
    ) -> None:
        """config: of the whole model."""
        super().__init__(rank_config(config, ranks.size), layers, weights, attention)
        self._ranks = ranks

    @torch.inference_mode()
    def follow(self, order: RunSegment, arrays: Sequence[Array], cache: KvCache) -> None:
        """Runs one segment beside rank 0."""
        starts, kv_lens, tables, positions, slots, fresh, *last = arrays
        segment = Segment(LayerRange(order.first, order.end), order.rows)
        index = SegmentIndex(AttentionRows(starts, kv_lens, tables), positions, slots, fresh)
        shape = (index.attention.num_tokens, self.config.hidden_size)
        x = torch.empty(shape, dtype=self.dtype, device=self.device)
        self._ranks.spread(x)
        wanted = LastTokens(*last) if order.ends_model else None
        x = self._run(x, segment, index, cache, wanted)
        if wanted is not None and len(wanted.rows):
            # In the same order as rank 0's: the head's parts are put side by side.
            self._logits(x, np.repeat(wanted.batch_rows, wanted.counts).tolist())


class LeadSlice(ModelSlice):
    """Rank 0's. Use it as any ModelSlice; close() it at the end."""

    def __init__(
        self,
        config: ModelConfig,
        layers: LayerRange,
        weights: SliceWeights,
        attention: AttentionChoice,
        ranks: Ranks,
        others: Others,
        quantise: Quantisation = Quantisation.NONE,
    ) -> None:
        """config: of the whole model; self.config is that of one rank."""
        super().__init__(rank_config(config, ranks.size), layers, weights, attention)
        self._ranks = ranks
        self.others = others
        form = WeightForm(self.dtype.itemsize, quantise)
        self._node_bytes = node_weight_bytes(config, layers, ranks.size, form)

    @property
    def weight_bytes(self) -> int:
        """Of the node: the most that one rank holds, times ranks."""
        return max(self._node_bytes, self._ranks.size * self._weights.nbytes)

    def new_cache(self, total_pages: int, page_tokens: int | None = None) -> KvCache:
        pages = page_tokens or self.page_tokens()
        self.others.have(Allocate(total_pages=total_pages, page_tokens=pages))
        own = super().new_cache(total_pages, pages)
        return LeadCache(own.pool, own.layout, own.keys, own.values, self.others)

    def record_decodes(self, recorder: Recorder) -> bool:
        # All ranks would have to record, and replay, the same steps at the same time.
        return False

    def decodes(self, cache: KvCache) -> None:
        """None: the other ranks would hear nothing of such steps."""

    def watch(self, lost: Callable[[str], None]) -> None:
        self.others.listen(lost)

    def close(self) -> None:
        """Ends the other ranks."""
        self.others.close()

    def _run(
        self,
        x: torch.Tensor,
        segment: Segment,
        index: SegmentIndex,
        cache: KvCache,
        wanted: LastTokens | None,
    ) -> torch.Tensor:
        order = RunSegment(
            first=segment.layers.first,
            end=segment.layers.end,
            rows=tuple(segment.rows),
            ends_model=wanted is not None,
        )
        rows, none = index.attention, np.empty(0, np.int32)
        last = (none,) * 3 if wanted is None else (wanted.rows, wanted.batch_rows, wanted.counts)
        arrays = (
            rows.starts, rows.kv_lens, rows.tables,
            index.positions, index.slots, index.fresh_pages, *last,
        )  # fmt: skip
        self.others.tell(order, arrays)
        try:
            self._ranks.spread(x.contiguous())
            return super()._run(x, segment, index, cache, wanted)
        except Exception as e:
            self.others.broken(f"a step failed on rank 0: {e}")
            raise

    def _logits(self, x: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
        try:
            return super()._logits(x, order)
        except Exception as e:
            self.others.broken(f"a step failed on rank 0: {e}")
            raise


@dataclass(slots=True)
class LeadCache(KvCache):
    """Rank 0's KV cache: those of the others change with it."""

    others: Others

    def enlarge(self, total_pages: int, used_pages: I64) -> None:
        # The others first: where they cannot, this one stays as it is.
        self.others.have(Enlarge(total_pages=total_pages), (used_pages,))
        KvCache.enlarge(self, total_pages, used_pages)

    def cut(self, total_pages: int, from_pages: I64, to_pages: I64, used_pages: I64) -> None:
        self.others.have(Cut(total_pages=total_pages), (from_pages, to_pages, used_pages))
        KvCache.cut(self, total_pages, from_pages, to_pages, used_pages)
