"""A slice over several ranks computes what one computes, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import WeightForm
from nodes.model.batch import RowSpec, SliceBatch
from nodes.model.parallel.slice import LeadSlice
from nodes.model.parallel.split import rank_weight_bytes
from nodes.model.slice import ModelSlice

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("family", "size"),
    [
        ("llama3", 2),
        ("llama3", 4),  # Each head of keys and values is on two ranks.
        ("llama_linear_biased", 2),
        ("smollm2", 2),
        ("tinyllama", 8),
        ("qwen2_sliding", 2),
        ("qwen3", 4),
    ],
)
def test_greedy_tokens_and_logits_are_those_of_transformers(
    checkpoint: Callable[[str], Any], over_ranks: Callable[..., LeadSlice], family: str, size: int
) -> None:
    model = checkpoint(family)
    whole = LayerRange(0, model.num_layers)
    part = over_ranks(model.folder, whole, size)
    config = ModelConfig.from_folder(model.folder)
    for follower in part.others.followers:  # type: ignore[attr-defined]
        held = follower.slice.weight_bytes
        wanted = rank_weight_bytes(config, whole, 1, size, WeightForm(4))
        assert held == pytest.approx(wanted, rel=0.1)
        assert held < part.weight_bytes / size
    cache = part.new_cache(200, 4)
    prompts = {"a": [3, 1, 4, 1, 5, 9, 2, 6], "b": [2, 7, 1]}
    for seq in prompts:
        cache.pool.open(seq, whole)

    def step(rows: list[tuple[str, int, int]]) -> torch.Tensor:
        for seq, _, end in rows:
            cache.pool.ensure(seq, end)
        specs = [RowSpec(seq, at, end - at, whole, True) for seq, at, end in rows]
        ids = torch.tensor([t for seq, at, end in rows for t in prompts[seq][at:end]])
        return part.forward(SliceBatch(specs, ids), cache).logits

    step([("a", 0, 5)])
    for turn in range(8):
        rows = [
            ("b", 0 if not turn else len(prompts["b"]) - 1, len(prompts["b"])),
            ("a", 5 if not turn else len(prompts["a"]) - 1, len(prompts["a"])),
        ]
        logits = step(rows)
        for (seq, _, _), row in zip(rows, logits, strict=True):
            reference = model.reference_logits(prompts[seq])[-1]
            assert (row - reference).abs().max() < 1e-4
            assert int(row.argmax()) == int(reference.argmax())
            prompts[seq].append(int(row.argmax()))
        if turn == 3:
            cache.grow(300)
        if turn == 5:
            part.others.wait()  # type: ignore[attr-defined]
            cache.shrink(60)


def test_rows_of_different_layers_in_one_pass(
    checkpoint: Callable[[str], Any], over_ranks: Callable[..., LeadSlice]
) -> None:
    """Segments travel one by one, also in the middle of a model."""
    model = checkpoint("llama3")
    held = LayerRange(1, 4)
    one = ModelSlice.load(model.folder, held, device=CPU, dtype=torch.float32)
    two = over_ranks(model.folder, held, 2)
    hidden = torch.from_numpy(np.random.default_rng(1).standard_normal((9, 64), np.float32))
    rows = [
        RowSpec("a", 0, 4, LayerRange(1, 4), True),
        RowSpec("b", 0, 3, LayerRange(2, 3)),
        RowSpec("c", 0, 2, LayerRange(2, 4)),
    ]
    out = []
    for part in (one, two):
        cache = part.new_cache(40, 4)
        for row in rows:
            cache.pool.open(row.seq, row.layers)
            cache.pool.ensure(row.seq, row.count)
        out.append(part.forward(SliceBatch(rows, hidden=hidden), cache))
    assert (out[0].logits - out[1].logits).abs().max() < 1e-4
    assert out[0].hidden.shape == out[1].hidden.shape
    assert (out[0].hidden - out[1].hidden).abs().max() < 1e-4
