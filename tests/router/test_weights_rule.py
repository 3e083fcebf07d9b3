"""Nodes of a cluster hold weights in the same bits, and the router counts the bytes they take."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec.structs import replace as with_fields

from helix_mq.errors import ConfigError
from helix_mq.ids import Epoch, NodeId
from helix_mq.layers import LayerRange, Placement
from helix_mq.messages.control import Assign, Rejected
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import Quantisation, WeightForm, matrix_bytes
from router import events as ev
from router.cluster_core import ClusterCore, ClusterSettings
from router.live_problem import kv_room
from router.placing import Candidate, FixedPlacer, split_by_memory
from router.weights_rule import Allowed, weights_refusal
from tests.router.world import CONFIG, DIGEST, World, register

WIDE = replace(
    CONFIG, num_layers=12, hidden_size=256, intermediate_size=512, head_dim=64, num_heads=4
)
INT4, INT8 = WeightForm(2, Quantisation.INT4), WeightForm(2, Quantisation.INT8)
PLAIN = WeightForm(2)


def answer_to(quantise: str, allowed: Allowed) -> object:
    clock = World().clock
    placer = FixedPlacer(Placement(6, {NodeId("a"): LayerRange(0, 6)}))
    settings = ClusterSettings(quantise=allowed)
    core = ClusterCore(CONFIG, DIGEST, settings, placer, clock, Epoch(1))
    said = with_fields(register("a", 1), quantise=quantise)
    change = core.handle(ev.NodeRegistered(said))
    return next(
        e.message
        for e in change.effects
        if isinstance(e, ev.ToNode) and isinstance(e.message, Assign | Rejected)
    )


@pytest.mark.parametrize(
    ("quantise", "allowed"),
    [("none", "none"), ("int8", "int8"), ("int4", "mixed"), ("none", "mixed")],
)
def test_nodes_of_the_clusters_weights_join(quantise: str, allowed: Allowed) -> None:
    assert isinstance(answer_to(quantise, allowed), Assign)


@pytest.mark.parametrize(("quantise", "allowed"), [("int4", "none"), ("none", "int8")])
def test_others_are_rejected_with_what_to_do(quantise: str, allowed: Allowed) -> None:
    no = answer_to(quantise, allowed)
    assert isinstance(no, Rejected)
    assert no.code == "wrong_weights"
    assert f'"{quantise}"' in no.reason
    assert f'"{allowed}"' in no.reason
    assert 'quantise = "mixed" at the router' in no.reason


def test_weights_of_a_later_release_are_rejected_even_where_all_may_mix() -> None:
    said = with_fields(register("a", 1), quantise="int2")
    reason = weights_refusal(said, "mixed")
    assert reason is not None
    assert "'int2'" in reason
    assert "same release" in reason


def test_a_matrix_takes_its_bits_and_its_scales() -> None:
    assert matrix_bytes(10, 128, Quantisation.NONE, 2) == 2560
    assert matrix_bytes(10, 128, Quantisation.INT8, 2) == 10 * (128 + 2)
    assert matrix_bytes(10, 128, Quantisation.INT4, 2) == 10 * (64 + 4 * 4)
    assert matrix_bytes(10, 96, Quantisation.INT4, 4) == 10 * (48 + 3 * 4)
    with pytest.raises(ValueError, match="rows of 100"):
        matrix_bytes(10, 100, Quantisation.INT4, 4)


def layers_held(config: ModelConfig, memory_bytes: int, form: WeightForm) -> int:
    return len(kv_room(config, memory_bytes, form))


def test_a_node_of_fewer_bits_has_room_for_more_layers() -> None:
    memory = 4 * PLAIN.layer_bytes(WIDE) + PLAIN.embed_bytes(WIDE) + (1 << 20)
    plain, int8, int4 = (layers_held(WIDE, memory, form) for form in (PLAIN, INT8, INT4))
    assert plain < int8 < int4


def test_layers_that_fit_only_in_fewer_bits_are_placed() -> None:
    memory = int(PLAIN.slice_bytes(WIDE, WIDE.all_layers) / 2 / 0.75 * 0.7)
    plain = [Candidate(NodeId(n), memory, 2) for n in "ab"]
    with pytest.raises(ConfigError, match="add nodes or memory"):
        split_by_memory(WIDE, plain)
    fewer = [replace(c, quantise=Quantisation.INT8) for c in plain]
    assert sum(len(r) for r in split_by_memory(WIDE, fewer).values()) == 12


def test_a_tied_head_of_fewer_bits_counts_beside_the_embedding() -> None:
    tied = replace(WIDE, tie_embeddings=True)
    whole = INT8.slice_bytes(tied, tied.all_layers)
    parts = [INT8.slice_bytes(tied, LayerRange(a, b)) for a, b in ((0, 5), (5, 12))]
    assert whole == sum(parts)
    assert PLAIN.slice_bytes(tied, tied.all_layers) == tied.slice_weight_bytes(tied.all_layers, 2)
