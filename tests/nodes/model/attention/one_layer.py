"""The model of one layer that kernels over pages are tried with."""

from __future__ import annotations

import torch

from helix_mq.models.config import ModelConfig

CPU = torch.device("cpu")


def one_layer(heads: int, *, head_dim: int) -> ModelConfig:
    """Of so many query heads, and two for keys and values."""
    return ModelConfig.from_dict(
        {
            "model_type": "llama", "hidden_size": heads * head_dim, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": 2,
            "vocab_size": 8, "max_position_embeddings": 64,
        }
    )  # fmt: skip


CONFIG = one_layer(4, head_dim=16)
