"""ModelSlice: the layers a node holds, and the forward pass of any batch over any parts of them.

One pass walks the slice's layers once, whatever mixture of layer ranges the rows have: rows join at
their first layer and leave at their last. A batch is checked before anything is written; KV pages
are the caller's business and must be there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from helix_mq.errors import ModelFormatError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import Quantisation
from nodes.kv_cache import KvCache
from nodes.kv_pages import DEFAULT_PAGE_TOKENS
from nodes.model.attention.base import AttentionPlan
from nodes.model.attention.choose import AUTO, AttentionChoice, choose_attention
from nodes.model.attention.native import NativeAttention
from nodes.model.attention.paged import PagedAttention
from nodes.model.batch import BatchError, SliceBatch, SliceOutput
from nodes.model.checks import check_batch
from nodes.model.graphs import DecodeGraphs, SliceParts
from nodes.model.metadata import LastTokens, SegmentIndex, index_segment, last_of
from nodes.model.native.block import block_for
from nodes.model.native.decodes import NativeDecodes, decodes_for
from nodes.model.native.layers import NativeLayers, layers_for
from nodes.model.native.products import NativeLinear
from nodes.model.recorders import Recorder
from nodes.model.rope import inverse_frequencies, rotation
from nodes.model.segments import Segment, split
from nodes.model.stream import HiddenStream
from nodes.model.weights import Progress, SliceWeights, TensorReader, load_slice


class ModelSlice:
    """Not thread-safe: one thread runs forward() and owns the KV cache it is given."""

    def __init__(
        self,
        config: ModelConfig,
        layers: LayerRange,
        weights: SliceWeights,
        attention: AttentionChoice,
    ) -> None:
        """load() builds one from a folder."""
        self.config = config
        self.layers = layers
        self.attention = attention
        self._weights = weights
        norm = weights.layers[0].attention_norm
        self.device = norm.device
        self.dtype = norm.dtype
        self._block = block_for(config, self.device, self.dtype)
        self._inverse_freq = inverse_frequencies(config).to(self.device)
        self._native: NativeLayers | None = None
        if isinstance(attention.backend, NativeAttention):
            self._native = layers_for(config, layers, weights.layers)
        self._decodes = decodes_for(self._native, layers, weights)
        self.graphs: DecodeGraphs | None = None

    @classmethod
    def load(
        cls,
        folder: Path | str,
        layers: LayerRange,
        *,
        device: torch.device,
        dtype: torch.dtype,
        attention: str = AUTO,
        progress: Progress | None = None,
        reader: TensorReader | None = None,
        quantise: Quantisation = Quantisation.NONE,
    ) -> ModelSlice:
        """Reads the tensors of `layers` and no others; computes in `dtype` on `device`.

        ModelFormatError when the folder is not what config.json says or `layers` reach beyond the
        model; ConfigError when `attention` names a backend that cannot run here, or weights cannot
        be held as `quantise` says.
        """
        folder = Path(folder)
        config = ModelConfig.from_folder(folder)
        if layers.end > config.num_layers:
            raise ModelFormatError(
                f"{layers} were asked for, but the model in {folder} has {config.num_layers}",
                param="layers",
            )
        choice = choose_attention(config, device, dtype, attention)
        weights = load_slice(
            folder,
            config,
            layers,
            device=device,
            dtype=dtype,
            progress=progress,
            reader=reader,
            quantise=quantise,
        )
        return cls(config, layers, weights, choice)

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights as they are held here."""
        return self._weights.nbytes

    def page_tokens(self, at_least: int = DEFAULT_PAGE_TOKENS) -> int:
        """Tokens per KV page that the attention backend can read: `at_least`, or more."""
        multiple = self.attention.backend.page_multiple
        return -(-at_least // multiple) * multiple

    def new_cache(self, total_pages: int, page_tokens: int | None = None) -> KvCache:
        """A KV cache that fits this slice's model, device, dtype and attention backend."""
        return KvCache.allocate(
            self.config,
            total_pages=total_pages,
            device=self.device,
            dtype=self.dtype,
            page_tokens=page_tokens or self.page_tokens(),
            layout=self.attention.backend.layout,
        )

    def decodes(self, cache: KvCache) -> NativeDecodes | None:
        """Steps of decodes in one compiled call on a cache of new_cache(), without tensors; None
        where there is no such call for this slice."""
        self._check_cache(cache)
        return self._decodes

    def record_decodes(self, recorder: Recorder) -> bool:
        """Has decode steps recorded from now on, each size when it first comes; False where the
        attention backend reads no page tables on the device."""
        backend = self.attention.backend
        if not isinstance(backend, PagedAttention):
            return False
        parts = SliceParts(
            self.config,
            self.layers,
            self._weights,
            self._block,
            self._inverse_freq,
            backend,
            self.device,
            self.dtype,
        )
        self.graphs = DecodeGraphs(parts, recorder, self._forward)
        return True

    def watch(self, lost: Callable[[str], None]) -> None:
        """`lost` will be told, in words and from another thread, when what this slice computes
        with is gone. Of a slice in one process nothing can go."""

    def close(self) -> None:
        """Ends what was started to compute this slice."""

    def forward(self, batch: SliceBatch, cache: KvCache, *, brief: bool = False) -> SliceOutput:
        """Runs every row over its layers and stores its keys and values.

        brief: the results are needed until the next pass only, which may use their memory again.

        Each row's sequence must be open in `cache.pool` with room for position + count tokens, and
        its earlier tokens must have been run. BatchError, with nothing executed, otherwise.
        """
        if not torch.is_inference_mode_enabled():
            with torch.inference_mode():
                return self.forward(batch, cache, brief=brief)
        self._check_cache(cache)
        if self._decodes is not None:
            output = self._decodes.run(batch, cache, brief=brief)
            if output is not None:
                return output
        check_batch(batch, self.layers, self.config, cache.pool)
        if self.graphs is not None:
            output = self.graphs.run(batch, cache)
            if output is not None:
                return output
        return self._forward(batch, cache)

    def _forward(self, batch: SliceBatch, cache: KvCache) -> SliceOutput:
        rows = batch.rows
        stream = HiddenStream(rows, self._embed(batch.token_ids), self._to_compute(batch.hidden))
        logits = self._empty_logits()
        for segment in split(rows):
            index = index_segment(segment, rows, cache)
            x = stream.take(segment.rows)
            if segment.layers.end < self.config.num_layers:
                stream.put(segment.rows, self._run(x, segment, index, cache, None))
                continue
            wanted = last_of(rows, segment.rows)
            x = self._run(x, segment, index, cache, wanted)
            if len(wanted.rows):
                logits = self._logits(x, np.repeat(wanted.batch_rows, wanted.counts).tolist())
        leaving = [i for i, r in enumerate(rows) if r.layers.end < self.config.num_layers]
        hidden = stream.take(leaving) if leaving else self._empty_hidden()
        return SliceOutput(hidden, logits)

    def _run(
        self,
        x: torch.Tensor,
        segment: Segment,
        index: SegmentIndex,
        cache: KvCache,
        wanted: LastTokens | None,
    ) -> torch.Tensor:
        """The stream after the segment's layers: of all tokens, or of those `wanted` where that is
        given (then the segment ends the model)."""
        turn = rotation(self._inverse_freq, self._on_device(index.positions), self.dtype)
        if len(index.fresh_pages):
            cache.clear_pages(self._on_device(index.fresh_pages))
        if self._native is not None and self._native.takes(cache):
            kept = None
            if wanted is not None and wanted.tokens < x.shape[0]:
                kept = wanted.numbers(index.attention.starts)
            return self._native.run(x, segment.layers, index, turn, cache, kept)
        backend = self.attention.backend
        windows = {self.config.window_of(layer) for layer in _numbers(segment.layers)}
        plans: dict[int | None, AttentionPlan] = {
            window: backend.plan(index.attention, window, cache) for window in windows
        }
        slots = self._on_device(index.slots)
        few = wanted is not None and wanted.tokens < len(x)
        # Before the first layer: a copy to a device waits for what it computes.
        tail = self._tail(segment, index, cache, wanted) if few else None
        for at, layer in enumerate(_numbers(segment.layers)):
            weights = self._weights.layers[layer - self.layers.first]
            plan, plan_layer = plans[self.config.window_of(layer)], at
            query, keys, values = self._block.project_into(x, weights, turn, cache, slots[at])
            if few and layer == segment.layers.end - 1:
                # What follows the KV write in the model's last layer serves only the logits.
                if tail is None:
                    return x[:0]
                ids, plan = tail
                x, query, plan_layer = x[ids], query[ids], 0
            x = self._block.finish(x, weights, plan.attend(plan_layer, query, keys, values))
        return x

    def _tail(
        self,
        segment: Segment,
        index: SegmentIndex,
        cache: KvCache,
        wanted: LastTokens | None,
    ) -> tuple[torch.Tensor, AttentionPlan] | None:
        """Which tokens (int64 [n], on the device) the model's last layer goes on with, and how they
        attend; None for none."""
        if wanted is None or not wanted.tokens:
            return None
        rows = index.attention.last_tokens(wanted.rows, wanted.counts)
        window = self.config.window_of(segment.layers.end - 1)
        plan = self.attention.backend.plan(rows, window, cache)
        return self._on_device(wanted.numbers(index.attention.starts)), plan

    def _logits(self, x: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
        """float32 logits of x [tokens, hidden]; `order` says of which batch row each is, the result
        is in the batch's order."""
        weights = self._weights
        assert weights.final_norm is not None
        assert weights.head is not None
        ranks = sorted(range(len(order)), key=order.__getitem__)
        if ranks != list(range(len(order))):
            x = x[torch.tensor(ranks, device=self.device)]
        normed = self._block.norm(x, weights.final_norm)
        if isinstance(weights.head, NativeLinear):
            return weights.head.floats(normed)
        return weights.head(normed).float()

    def _check_cache(self, cache: KvCache) -> None:
        backend = self.attention.backend
        if backend.layout not in (None, cache.layout):
            raise BatchError(f"{backend.name} attention reads no {cache.layout.value} KV pages")
        if cache.page_tokens % backend.page_multiple:
            raise BatchError(
                f"{backend.name} attention reads pages of a multiple of {backend.page_multiple} "
                f"tokens, not {cache.page_tokens}"
            )
        if cache.keys.dtype != self.dtype or cache.keys.device != self.device:
            raise BatchError(
                f"the KV cache is {cache.keys.dtype} on {cache.keys.device}, the slice computes in "
                f"{self.dtype} on {self.device}"
            )

    def _embed(self, token_ids: torch.Tensor | None) -> torch.Tensor | None:
        table = self._weights.embedding
        if token_ids is None or table is None:
            return None
        return F.embedding(token_ids.to(self.device), table)

    def _to_compute(self, hidden: torch.Tensor | None) -> torch.Tensor | None:
        if hidden is None:
            return None
        # The host goes on while pinned memory is read; converted on the device.
        return hidden.to(self.device, non_blocking=True).to(self.dtype)

    def _on_device(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def _empty_hidden(self) -> torch.Tensor:
        return torch.empty((0, self.config.hidden_size), dtype=self.dtype, device=self.device)

    def _empty_logits(self) -> torch.Tensor:
        return torch.empty((0, self.config.vocab_size), device=self.device)


def _numbers(layers: LayerRange) -> range:
    return range(layers.first, layers.end)
