"""Whole layers in one call give the bits that their kernels give one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helix_mq.layers import LayerRange
from nodes.model import slice as slice_module
from nodes.model.batch import RowSpec, SliceBatch
from nodes.model.native import build
from nodes.model.native import layers as layers_module
from nodes.model.native.layers import NativeLayers
from nodes.model.native.products import products_for
from nodes.model.slice import ModelSlice

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(
    products_for(torch.float32) is None or products_for(torch.bfloat16) is None,
    reason=f"no compiled products: {build.built().reason}",
)

ALL, SHORT = LayerRange(0, 4), LayerRange(0, 3)
PROMPTS = {"a": (20, ALL), "b": (18, ALL), "c": (37, ALL), "d": (25, SHORT)}

families = pytest.mark.parametrize(
    "family", ["llama_linear_biased", "mistral", "qwen2_sliding", "qwen3_wide_heads"]
)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@dtypes
@pytest.mark.parametrize(
    ("family", "threads"),
    [
        ("llama_linear_biased", 1),
        ("mistral", 1),
        ("qwen2_sliding", 2),
        # More than there are cores: whoever is not there is not waited for.
        ("qwen3_wide_heads", 5),
    ],
    indirect=["threads"],
)
def test_decodes_have_the_bits_of_kernels_one_by_one(
    checkpoint: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    threads: int,
    dtype: torch.dtype,
) -> None:
    """Rows that leave early among them, and rows without logits."""
    monkeypatch.setattr(layers_module, "WORTH_THREADS_BYTES", 0)
    calls: list[int] = []
    run = NativeLayers.run

    def counted(self: NativeLayers, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(len(x))
        return run(self, x, *rest)

    monkeypatch.setattr(NativeLayers, "run", counted)
    whole = _decodes(_Story(checkpoint(family).folder, dtype))
    assert calls
    calls.clear()
    monkeypatch.setattr(slice_module, "layers_for", lambda *_: None)
    one_by_one = _decodes(_Story(checkpoint(family).folder, dtype))
    assert not calls
    for one, other in zip(one_by_one, whole, strict=True):
        assert torch.equal(one, other)


@dtypes
@families
def test_tokens_of_one_row_have_the_bits_of_decodes(
    checkpoint: Callable[[str], Any], family: str, dtype: torch.dtype
) -> None:
    """So that drafts which are verified together change nothing, nor does a prompt's way."""
    folder = checkpoint(family).folder
    ids = torch.randint(0, 151, (60,), generator=torch.Generator().manual_seed(2))
    found = []
    for sizes in ([1] * 60, [1, 2, 3, 4, 5, 16, 13, 1, 15], [60], [49, 11]):
        story = _Story(folder, dtype)
        logits, at = [], PROMPTS["a"][0]
        for size in sizes:
            row = RowSpec("a", at, size, ALL, True, size)
            done = at - PROMPTS["a"][0]
            logits.append(story.run([row], ids[done : done + size])[0])
            at += size
        found.append(torch.cat(logits))
    assert all(torch.equal(found[0], other) for other in found[1:])


@dtypes
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    "family", ["llama_linear_biased", "mistral_broad", "qwen2_sliding", "qwen3_wide_heads"]
)
def test_a_prompt_has_the_same_bits_however_it_is_cut_and_whatever_is_beside(
    checkpoint: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    dtype: torch.dtype,
) -> None:
    """So that a request which is computed anew elsewhere, in other pieces, goes on as it would
    have."""
    monkeypatch.setattr(layers_module, "WORTH_THREADS_BYTES", 0)
    folder = checkpoint(family).folder
    ids = torch.randint(0, 151, (150,), generator=torch.Generator().manual_seed(3))
    found = []
    for sizes, beside in (
        ([150], False),
        ([150], True),
        ([64, 86], True),
        ([7, 1, 52, 48, 41, 1], False),
        ([1] * 150, False),
    ):
        story = _Story(folder, dtype)
        story.open("new", ALL)
        at = 0
        for turn, size in enumerate(sizes):
            # Of all pieces but the last nothing is wanted but what they leave in the cache.
            piece = RowSpec("new", at, size, ALL, at + size == len(ids))
            rows, tokens = [piece], ids[at : at + size]
            if beside:
                others = [
                    RowSpec("b", PROMPTS["b"][0] + turn, 1, ALL, True),
                    RowSpec("c", PROMPTS["c"][0] + 2 * turn, 2, ALL, False),
                    RowSpec("d", PROMPTS["d"][0] + turn, 1, SHORT, False),
                ]
                rows, tokens = (
                    [others[0], piece, *others[1:]],
                    torch.cat([torch.tensor([turn]), tokens, torch.arange(3) + turn]),
                )
            logits = story.run(rows, tokens)[0]
            at += size
        found.append(torch.cat([logits[-1:], story.decoded("new", at)]))
    assert all(torch.equal(found[0], other) for other in found[1:])


class _Story:
    """A slice with the prompts run."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._part = ModelSlice.load(folder, ALL, device=CPU, dtype=dtype)
        self._cache = self._part.new_cache(200)
        self._generator = torch.Generator().manual_seed(1)
        for seq, (count, layers) in PROMPTS.items():
            self._cache.pool.open(seq, layers)
            self.run([RowSpec(seq, 0, count, layers, layers is ALL)])

    def open(self, seq: str, layers: LayerRange) -> None:
        self._cache.pool.open(seq, layers)

    def decoded(self, seq: str, position: int) -> torch.Tensor:
        """Logits of three tokens more, which see all that there is of the sequence."""
        rows = [RowSpec(seq, position + i, 1, ALL, True) for i in range(3)]
        return torch.cat([self.run([row], torch.tensor([7 + i]))[0] for i, row in enumerate(rows)])

    def run(
        self, rows: list[RowSpec], ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and what leaves early; of random tokens without `ids`."""
        for row in rows:
            self._cache.pool.ensure(row.seq, row.position + row.count)
        if ids is None:
            count = sum(row.count for row in rows)
            ids = torch.randint(0, 151, (count,), generator=self._generator)
        out = self._part.forward(SliceBatch(rows, ids), self._cache)
        return out.logits, out.hidden


def _decodes(story: _Story) -> list[torch.Tensor]:
    out: list[torch.Tensor] = []
    for at in range(8):
        out += story.run(
            [
                RowSpec(seq, count + at, 1, layers, layers is ALL and at % 3 < 2)
                for seq, (count, layers) in PROMPTS.items()
            ]
        )
    return out
