"""Sequences on one slice of a whole model: prompts in, then greedy tokens, or given ones."""

from __future__ import annotations

import torch

from nodes.kv_cache import KvCache
from nodes.model.batch import RowSpec, SliceBatch
from nodes.model.slice import ModelSlice


class Sequences:
    """All run together, one row each per step."""

    def __init__(self, model: ModelSlice, prompts: list[list[int]], room: int) -> None:
        """room: tokens that each may grow to."""
        self._model = model
        pages = -(-room // model.page_tokens()) * len(model.layers)
        self._cache: KvCache = model.new_cache(pages * len(prompts))
        self.tokens = [list(prompt) for prompt in prompts]
        self._at = [0] * len(prompts)
        for i in range(len(prompts)):
            self._cache.pool.open(i, model.layers)

    def step(self) -> torch.Tensor:
        """float32 logits [sequences, vocab] of the last tokens, on the device."""
        rows, ids = [], []
        for i, tokens in enumerate(self.tokens):
            self._cache.pool.ensure(i, len(tokens))
            count = len(tokens) - self._at[i]
            rows.append(RowSpec(i, self._at[i], count, self._model.layers, True))
            ids += tokens[self._at[i] :]
            self._at[i] = len(tokens)
        return self._model.forward(SliceBatch(rows, torch.tensor(ids)), self._cache).logits

    def append(self, tokens: list[int]) -> None:
        for known, token in zip(self.tokens, tokens, strict=True):
            known.append(token)
