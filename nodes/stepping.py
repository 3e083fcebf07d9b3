"""Steps of a slice made up for measuring: rows of given positions and lengths, timed to the end.

Used when a node warms up and by `helix-mq profile`. Blocking; whoever calls owns the slice and its
KV cache. Contents are random: zeros would be read from one shared page on CPUs and draw less power
on GPUs, so both would look faster than they are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from nodes.kv_cache import KvCache
from nodes.kv_pages import SeqKey
from nodes.model.batch import RowSpec, SliceBatch
from nodes.model.slice import ModelSlice

_FILL_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Span:
    """`count` tokens of one sequence that has `position` tokens in the cache."""

    position: int
    count: int

    @property
    def end(self) -> int:
        return self.position + self.count


def pages_for(spans: Sequence[Span], layers: int, page_tokens: int) -> int:
    """Layer-pages that a step of these rows needs."""
    return sum(layers * -(-span.end // page_tokens) for span in spans)


class Stepper:
    """Makes steps on one slice, one at a time; between two of them it holds no sequence."""

    def __init__(self, model: ModelSlice, cache: KvCache) -> None:
        self._model = model
        self._cache = cache
        self._filled_pages = 0
        self._random = torch.Generator().manual_seed(0)

    @property
    def num_layers(self) -> int:
        return len(self._model.layers)

    def fits(self, spans: Sequence[Span]) -> bool:
        """Whether the pages are there, and each row ends within the model's context."""
        needed = pages_for(spans, self.num_layers, self._cache.page_tokens)
        longest = max(span.end for span in spans)
        return needed <= self._cache.pool.free_pages and longest <= self._model.config.max_context

    @contextmanager
    def step(self, spans: Sequence[Span]) -> Iterator[Step]:
        """A step that can be run and timed again and again; its pages are freed at the end.

        KvExhausted when there are too few.
        """
        opened: list[SeqKey] = []
        try:
            for number, span in enumerate(spans):
                seq: SeqKey = ("step", number)
                self._cache.pool.open(seq, self._model.layers)
                opened.append(seq)
                self._cache.pool.ensure(seq, span.end)
            if any(span.position > 0 for span in spans):
                self._fill(1 + max(int(self._cache.pool.table(seq).max()) for seq in opened))
            yield Step(self._model, self._cache, self._batch(opened, spans))
        finally:
            for seq in reversed(opened):
                self._cache.pool.free(seq)

    def _fill(self, pages: int) -> None:
        """Gives the first so many pages contents; the pool hands out low pages first."""
        if pages <= self._filled_pages:
            return
        for tensor in (self._cache.keys, self._cache.values):
            page_bytes = tensor[0].numel() * tensor.element_size()
            stride = max(1, _FILL_BYTES // page_bytes)
            # Drawn once and copied: drawing gigabytes would take longer than the steps. From no
            # generator that others draw from: up to PyTorch 2.11 the device's own cannot be used
            # while another thread captures a graph there, nor after a capture that failed.
            drawn = torch.Generator(tensor.device).manual_seed(0)
            block = torch.empty_like(tensor[: min(stride, pages)]).normal_(generator=drawn)
            for first in range(self._filled_pages, pages, stride):
                last = min(first + stride, pages)
                tensor[first:last].copy_(block[: last - first])
        self._filled_pages = max(self._filled_pages, pages)

    def _batch(self, seqs: Sequence[SeqKey], spans: Sequence[Span]) -> SliceBatch:
        config, layers = self._model.config, self._model.layers
        rows = [
            RowSpec(
                seq=seq,
                position=span.position,
                count=span.count,
                layers=layers,
                wants_logits=layers.end == config.num_layers,
            )
            for seq, span in zip(seqs, spans, strict=True)
        ]
        tokens = sum(span.count for span in spans)
        if layers.first == 0:
            ids = torch.randint(config.vocab_size, (tokens,), generator=self._random)
            return SliceBatch(rows, token_ids=ids)
        hidden = torch.randn((tokens, config.hidden_size), generator=self._random)
        return SliceBatch(rows, hidden=hidden.to(self._model.dtype))


class Step:
    """One batch with its pages reserved."""

    def __init__(self, model: ModelSlice, cache: KvCache, batch: SliceBatch) -> None:
        self._model = model
        self._cache = cache
        self._batch = batch

    def run_s(self) -> float:
        """Seconds from handing the batch over to the device's last operation."""
        started_s = time.perf_counter()
        self._model.forward(self._batch, self._cache)
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return max(time.perf_counter() - started_s, 1e-9)
