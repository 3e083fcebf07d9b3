"""Ranks with weights in few bits hold parts of what one device would hold, and compute the same."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers

from helix_mq.layers import LayerRange
from helix_mq.models.quantisation import Quantisation
from nodes.model.batch import RowSpec, SliceBatch
from nodes.model.parallel.ranks import ProcessRanks
from nodes.model.parallel.slice import LeadSlice
from nodes.model.quantised import Int8Linear
from nodes.model.slice import ModelSlice

CPU = torch.device("cpu")
LAYERS = LayerRange(0, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose halves groups of 32 divide."""
    folder = tmp_path_factory.mktemp("halves")
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=199,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        attention_bias=True,
        mlp_bias=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantise", [Quantisation.INT8, Quantisation.INT4])
def test_parts_are_parts_of_the_quantised_whole(
    folder: Path, over_ranks: Callable[..., LeadSlice], quantise: Quantisation
) -> None:
    one = ModelSlice.load(folder, LAYERS, device=CPU, dtype=torch.float32, quantise=quantise)
    two = over_ranks(folder, LAYERS, 2, quantise)
    [follower] = two.others.followers  # type: ignore[attr-defined]
    for number, layer in enumerate(one._weights.layers):
        for name in ("out", "down"):
            whole = getattr(layer, name)
            parts = [getattr(s._weights.layers[number], name).part for s in (two, follower.slice)]
            if isinstance(whole, Int8Linear):
                assert torch.equal(torch.cat([p.weight for p in parts], dim=1), whole.weight)
                assert all(torch.equal(p.scales, whole.scales) for p in parts)
            else:
                scales = torch.cat([p.scales_and_zeros for p in parts])
                assert torch.equal(scales, whole.scales_and_zeros)
    # Rank 0 embeds, so the two count for more than one; each holds far less than all.
    assert two.weight_bytes / 2 < 0.75 * one.weight_bytes
    assert two.weight_bytes == pytest.approx(2 * two._weights.nbytes, rel=0.02)
    caches = [part.new_cache(200, 4) for part in (one, two)]
    ids, at = [3, 1, 4, 1, 5, 9, 2, 6], 0
    for cache in caches:
        cache.pool.open("a", LAYERS)
    for _ in range(8):
        row, found = RowSpec("a", at, len(ids) - at, LAYERS, True), []
        for part, cache in zip((one, two), caches, strict=True):
            cache.pool.ensure("a", len(ids))
            found.append(part.forward(SliceBatch([row], torch.tensor(ids[at:])), cache).logits[0])
        # Each part of a sum is rounded to bfloat16 by itself.
        assert (found[0] - found[1]).norm() < 0.03 * found[0].norm()
        assert int(found[0].argmax()) == int(found[1].argmax())
        at = len(ids)
        ids.append(int(found[0].argmax()))


def test_the_largest_of_all_ranks_is_everywhere(tmp_path: Path) -> None:
    def largest(rank: int) -> list[float]:
        ranks = ProcessRanks(tmp_path / "meeting", rank, 2, CPU)
        return ranks.largest(torch.tensor([1.0 + rank, 2.5 - rank, -3.0])).tolist()

    with ThreadPoolExecutor(2) as both:
        assert list(both.map(largest, range(2))) == [[2.0, 2.5, -3.0]] * 2
