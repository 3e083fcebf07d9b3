"""Placing: shares of memory, whole layers, refusals in words, spares for those gone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement, uncovered
from helix_mq.models.config import Family, ModelConfig
from helix_mq.models.quantisation import WeightForm
from router.placing import (
    KV_SHARE,
    Candidate,
    FixedPlacer,
    ProportionalPlacer,
    slice_bytes,
    split_by_memory,
)

CONFIG = ModelConfig(
    family=Family.LLAMA,
    num_layers=12,
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=500,
    max_context=512,
    rms_eps=1e-5,
    rope_theta=1e4,
)
LAYER = CONFIG.layer_weight_bytes(2)
MIB = 1 << 20


def node(name: str, memory_bytes: int, dtype_bytes: int = 2) -> Candidate:
    return Candidate(NodeId(name), memory_bytes, dtype_bytes)


def counts(slices: dict[NodeId, LayerRange]) -> dict[str, int]:
    return {name: len(layers) for name, layers in slices.items()}


def test_layers_follow_memory_and_the_largest_comes_first() -> None:
    slices = split_by_memory(
        CONFIG, [node("s", 10 * MIB), node("l", 20 * MIB), node("m", 10 * MIB)]
    )
    assert slices == {"l": LayerRange(0, 6), "m": LayerRange(6, 9), "s": LayerRange(9, 12)}


def could_fit(nodes: list[Candidate], dtype_bytes: int) -> bool:
    """Whether some split in the order of memory fits: its last node is any, with the head."""
    order = sorted(nodes, key=lambda n: (-n.memory_bytes, n.name))
    layer = CONFIG.layer_weight_bytes(dtype_bytes)
    for last in range(len(order)):
        room = 0
        for i, one in enumerate(order[: last + 1]):
            ends = CONFIG.embed_bytes(dtype_bytes) if i == 0 else 0
            ends += CONFIG.head_bytes(dtype_bytes) if i == last else 0
            fits = int((one.memory_bytes * (1 - KV_SHARE) - ends) // layer)
            if fits < 1 and i in (0, last):
                break
            room += max(0, fits)
        else:
            if room >= CONFIG.num_layers:
                return True
    return False


@given(st.lists(st.integers(1, 64), min_size=1, max_size=20), st.sampled_from([1, 2, 4]))
def test_every_layer_is_held_once_and_what_is_held_fits(
    memories: list[int], dtype_bytes: int
) -> None:
    nodes = [node(f"n{i:02}", m * 60_000, dtype_bytes) for i, m in enumerate(memories)]
    try:
        slices = split_by_memory(CONFIG, nodes)
    except ConfigError as e:
        assert "add nodes or memory" in e.message
        assert not could_fit(nodes, dtype_bytes)
        return
    assert uncovered(12, slices.values()) == ()
    assert sum(counts(slices).values()) == 12
    for candidate in nodes:
        if candidate.name in slices:
            need = slice_bytes(CONFIG, slices[candidate.name], WeightForm(dtype_bytes))
            assert need <= candidate.memory_bytes * (1 - KV_SHARE)


@given(st.permutations([5, 9, 9, 14, 20, 20, 31]))
def test_the_order_of_joining_does_not_matter(memories: list[int]) -> None:
    named = {m: [f"n{m}-{i}" for i in range(2)] for m in memories}
    nodes = [node(named[m].pop(), m * MIB) for m in memories]
    assert split_by_memory(CONFIG, nodes) == split_by_memory(CONFIG, sorted(nodes, key=str))


def test_a_model_that_does_not_fit_is_refused_in_words() -> None:
    with pytest.raises(ConfigError) as caught:
        split_by_memory(CONFIG, [node("tiny", 6 * LAYER), node("small", 6 * LAYER)])
    text = str(caught.value)
    assert "MiB of weights" in text
    assert "small" in text or "tiny" in text
    assert "add nodes or memory" in text
    with pytest.raises(ConfigError, match="no node offers memory"):
        split_by_memory(CONFIG, [node("none", 0)])


def test_a_small_last_node_hands_layers_over_to_make_room_for_the_head() -> None:
    """By share it would hold 3 layers, and with the head beside them they do not fit."""
    config = replace(CONFIG, vocab_size=2000)
    small = round((2 * LAYER + config.head_bytes(2)) / (1 - KV_SHARE)) + 1
    slices = split_by_memory(config, [node("big", 3 * small), node("small", small)])
    assert counts(slices) == {"big": 10, "small": 2}


def test_nothing_is_placed_before_enough_nodes_are_there() -> None:
    placer = ProportionalPlacer(CONFIG, 3)
    two = [node("a", 10 * MIB), node("b", 10 * MIB)]
    assert placer.place(two) == {}
    assert placer.waiting_for(two) == "1 more node to join"
    assert placer.waiting_for(two[:1]) == "2 more nodes to join"
    three = [*two, node("c", 10 * MIB)]
    assert counts(dict(placer.place(three))) == {"a": 4, "b": 4, "c": 4}
    assert placer.waiting_for(three) == ""
    assert placer.waiting_for(two) == "node c to come back"


def test_a_spare_takes_over_only_what_it_can_hold() -> None:
    placer = ProportionalPlacer(CONFIG, 2)
    a, b = node("a", 10 * MIB), node("b", 10 * MIB)
    before = dict(placer.place([a, b]))
    assert placer.place([a, b, node("late", 10 * MIB)]) == before
    tiny = node("tiny", LAYER)
    assert dict(placer.place([a, tiny])) == {"a": before[NodeId("a")]}
    spare = node("spare", 10 * MIB)
    after = dict(placer.place([a, tiny, spare]))
    assert after == {"a": before[NodeId("a")], "spare": before[NodeId("b")]}
    assert dict(placer.place([a, b, spare])) == after, "who comes back finds its place taken"


def test_a_failed_split_is_tried_again_with_more_nodes() -> None:
    placer = ProportionalPlacer(CONFIG, 1)
    small = node("small", 6 * LAYER)
    with pytest.raises(ConfigError):
        placer.place([small])
    assert counts(dict(placer.place([small, node("large", 100 * LAYER)])))["large"] >= 11


def test_a_fixed_placement_is_followed_by_name() -> None:
    placement = Placement(12, {NodeId("a"): LayerRange(0, 8), NodeId("b"): LayerRange(6, 12)})
    placer = FixedPlacer(placement)
    here = [node("b", 1), node("stranger", 1 << 40)]
    assert placer.place(here) == {"b": LayerRange(6, 12)}
    assert placer.waiting_for(here) == "node a to join"
    with pytest.raises(ConfigError, match="layers 8-11") as caught:
        FixedPlacer(Placement(12, {NodeId("a"): LayerRange(0, 8)}))
    assert caught.value.param == "placement.nodes"
