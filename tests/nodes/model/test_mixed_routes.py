"""Sequences with different routes over overlapping slices, meeting in the same passes at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from helix_mq.layers import LayerRange
from nodes.model.batch import RowSpec

CUTS = [(0, 3), (2, 4), (0, 4), (1, 4), (0, 2)]
ROUTES = [
    [(2, 0, 4)],
    [(0, 0, 3), (1, 3, 4)],
    [(0, 0, 2), (1, 2, 4)],
    [(4, 0, 2), (3, 2, 3), (1, 3, 4)],
    [(4, 0, 1), (3, 1, 4)],
    [(2, 0, 1), (3, 1, 2), (1, 2, 4)],
    [(0, 0, 1), (2, 1, 4)],
    [(2, 0, 3), (3, 3, 4)],
]


@dataclass
class Travel:
    """One sequence on its way: ids [position, end) are at hop `hop` of its route."""

    name: str
    route: list[tuple[int, int, int]]
    ids: list[int]
    ends: list[int]
    expected: torch.Tensor
    hop: int = 0
    chunk: int = 0
    hidden: torch.Tensor | None = None
    checked: int = field(default=0)

    @property
    def done(self) -> bool:
        return self.chunk == len(self.ends)

    @property
    def position(self) -> int:
        return self.ends[self.chunk - 1] if self.chunk else 0

    def row(self) -> RowSpec:
        _, first, end = self.route[self.hop]
        count = self.ends[self.chunk] - self.position
        wants = end == 4 and (count == 1 or self.chunk % 2 == 0)
        # Of all tokens, of the last two, or of the last: what verifies drafts, and what does not.
        most = (count, min(count, 2), 1)[self.chunk % 3] if wants and self.position else 1
        return RowSpec(self.name, self.position, count, LayerRange(first, end), wants, most)


def _travel(rng: random.Random, n: int, reference: Any) -> Travel:
    ids = rng.choices(range(151), k=rng.randint(8, 40))
    ends = [rng.randint(1, 6)]
    while ends[-1] < len(ids):
        ends.append(min(len(ids), ends[-1] + rng.choice([1, 1, 1, 2, 9])))
    return Travel(f"s{n}", rng.choice(ROUTES), ids, ends, reference(ids))


def _pass(nodes: Any, at: int, here: list[Travel]) -> None:
    rows = [t.row() for t in here]
    starting = [t for t in here if t.hop == 0]
    ids = [token for t in starting for token in t.ids[t.position : t.ends[t.chunk]]]
    hidden = [t.hidden for t in here if t.hop > 0]
    out = nodes.run(
        at,
        rows,
        torch.tensor(ids) if starting else None,
        torch.cat([h for h in hidden if h is not None]) if hidden else None,
    )
    left, answered = 0, 0
    for t, row in zip(here, rows, strict=True):
        if row.wants_logits:
            last, most = t.ends[t.chunk], row.logit_tokens
            error = (out.logits[answered : answered + most] - t.expected[last - most : last]).abs()
            assert error.max() <= 1e-4
            t.checked += most
            answered += most
        if row.layers.end < 4:
            t.hidden = out.hidden[left : left + row.count]
            left += row.count
            t.hop += 1
        else:
            t.hop, t.hidden, t.chunk = 0, None, t.chunk + 1
    assert left == len(out.hidden)
    assert answered == len(out.logits)


@pytest.mark.parametrize("family", ["llama3", "mistral", "qwen2_sliding", "qwen3"])
@pytest.mark.parametrize("page_tokens", [1, 16])
def test_rows_of_any_route_share_passes(
    checkpoint: Callable[[str], Any], chain: Callable[..., Any], family: str, page_tokens: int
) -> None:
    model = checkpoint(family)
    nodes = chain(model, CUTS, page_tokens)
    rng = random.Random(f"{family}{page_tokens}")
    travels = [_travel(rng, n, model.reference_logits) for n in range(14)]
    mixed_passes = 0
    while pending := [t for t in travels if not t.done]:
        at = rng.choice(sorted({t.route[t.hop][0] for t in pending}))
        here = [t for t in pending if t.route[t.hop][0] == at]
        rng.shuffle(here)
        here = here[: rng.randint(1, len(here))]
        mixed_passes += len({t.route[t.hop] for t in here}) > 1
        _pass(nodes, at, here)
        for t in here:
            if t.done:
                for cache in nodes.caches:
                    if t.name in cache.pool:
                        cache.pool.free(t.name)
    assert mixed_passes > 20
    assert all(t.checked > 0 for t in travels)
