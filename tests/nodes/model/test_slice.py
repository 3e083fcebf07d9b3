"""Logits of slices, alone and chained, against transformers on the same weights."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nodes.model.batch import RowSpec

TOLERANCE = 1e-4
FAMILIES = (
    "llama2", "llama3", "llama_linear_biased", "smollm2", "tinyllama", "mistral",
    "mistral_wide_heads", "qwen2", "qwen2_sliding", "qwen3", "llama3-sharded", "smollm2-sharded",
)  # fmt: skip

MakeChain = Callable[..., Any]
GetCheckpoint = Callable[[str], Any]


def _ids(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(151), k=count)


def _step(chain: Any, work: list[tuple[str, list[int], int]], wants: bool = True) -> torch.Tensor:
    """Runs `(sequence, all ids, position)` rows through every slice; logits of their last token."""
    hidden = None
    for at, part in enumerate(chain.slices):
        rows = [
            RowSpec(
                s,
                p,
                len(ids) - p,
                part.layers,
                wants and part.layers.end == chain.config.num_layers,
            )
            for s, ids, p in work
        ]
        token_ids = None
        if part.layers.first == 0:
            token_ids = torch.tensor([t for _, ids, p in work for t in ids[p:]])
        out = chain.run(at, rows, token_ids, hidden)
        hidden = out.hidden
    logits = out.logits
    assert isinstance(logits, torch.Tensor)
    return logits


def _cuts(layers: int, parts: int) -> list[tuple[int, int]]:
    bounds = [round(i * layers / parts) for i in range(parts + 1)]
    return list(itertools.pairwise(bounds))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_chained_slices_equal_transformers(
    checkpoint: GetCheckpoint, chain: MakeChain, family: str, parts: int
) -> None:
    model = checkpoint(family)
    nodes = chain(model, _cuts(model.num_layers, parts))
    a, b, c = _ids(1, 41), _ids(2, 9), _ids(3, 23)
    full = {
        "a": model.reference_logits(a),
        "b": model.reference_logits(b),
        "c": model.reference_logits(c),
    }

    def check(logits: torch.Tensor, *wanted: tuple[str, int]) -> None:
        expected = torch.stack([full[s][i] for s, i in wanted])
        assert (logits - expected).abs().max() <= TOLERANCE

    # full prefill; chunked prefill beside a decode; decodes of three lengths; all mixed.
    check(_step(nodes, [("a", a[:30], 0)]), ("a", 29))
    check(_step(nodes, [("b", b[:1], 0), ("a", a[:31], 30)]), ("b", 0), ("a", 30))
    check(
        _step(nodes, [("a", a[:32], 31), ("c", c[:10], 0), ("b", b[:4], 1)]),
        ("a", 31),
        ("c", 9),
        ("b", 3),
    )
    check(_step(nodes, [("c", c[:17], 10)]), ("c", 16))
    for i in range(5):
        check(
            _step(
                nodes,
                [("b", b[: 5 + i], 4 + i), ("c", c[: 18 + i], 17 + i), ("a", a[: 33 + i], 32 + i)],
            ),
            ("b", 4 + i),
            ("c", 17 + i),
            ("a", 32 + i),
        )
    assert _step(nodes, [("a", a[:40], 37)], wants=False).shape == (0, 151)
    check(_step(nodes, [("a", a, 40)]), ("a", 40))
