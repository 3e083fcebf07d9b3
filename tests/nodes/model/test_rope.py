"""Rotary frequencies equal transformers' for every scaling, and rotation is a rotation."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from helix_mq.models.config import LinearRope, Llama3Rope, ModelConfig, RopeScaling
from nodes.model.rope import inverse_frequencies, rotate, rotation

CONTEXT = 131_072


def _config(scaling: RopeScaling) -> ModelConfig:
    base = {
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 8, "max_position_embeddings": CONTEXT,
        "rope_theta": 500000.0,
    }  # fmt: skip
    if isinstance(scaling, LinearRope):
        base["rope_scaling"] = {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Rope):
        base["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_context,
        }
    return ModelConfig.from_dict(base)


@pytest.mark.parametrize("scaling", [None, LinearRope(4.0), Llama3Rope(8.0, 1.0, 4.0, 8192)])
def test_rotation_equals_transformers(scaling: RopeScaling) -> None:
    ours = _config(scaling)
    parameters: dict[str, object] = {"rope_theta": 500000.0, "rope_type": "default"}
    if isinstance(scaling, LinearRope):
        parameters |= {"rope_type": "linear", "factor": 4.0}
    if isinstance(scaling, Llama3Rope):
        parameters |= {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }  # fmt: skip
    theirs = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=2, max_position_embeddings=CONTEXT,
        rope_parameters=parameters,
    )  # fmt: skip
    positions = torch.tensor([0, 1, 7, 4095, 8192, 100_000, CONTEXT - 1])
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(len(positions), 3, 128, generator=generator)
    cos, sin = LlamaRotaryEmbedding(theirs)(heads, positions[None])
    expected, _ = apply_rotary_pos_emb(
        heads.transpose(0, 1)[None], heads.transpose(0, 1)[None], cos, sin
    )
    got = rotate(heads, rotation(inverse_frequencies(ours), positions, torch.float32))
    assert torch.allclose(got, expected[0].transpose(0, 1), atol=1e-5, rtol=0)


def test_scores_depend_on_distance_only() -> None:
    config = _config(None)
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 1, 1, 128, generator=generator, dtype=torch.float64)
    inverse = inverse_frequencies(config)

    def score(at_q: int, at_k: int) -> float:
        turns = rotation(inverse, torch.tensor([at_q, at_k]), torch.float64)
        both = rotate(torch.cat((q, k)), turns)
        return float((both[0] * both[1]).sum())

    assert score(17, 5) == pytest.approx(score(1017, 1005), abs=1e-3)
    assert score(17, 5) != pytest.approx(score(17, 6), abs=1e-3)
