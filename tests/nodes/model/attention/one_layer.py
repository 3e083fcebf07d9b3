"""The model of one layer that kernels over pages are tried with."""

from __future__ import annotations

import torch

from helix_mq.models.config import ModelConfig

CPU = torch.device("cpu")
CONFIG = ModelConfig.from_dict(
    {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8,
        "max_position_embeddings": 64,
    }
)  # fmt: skip
