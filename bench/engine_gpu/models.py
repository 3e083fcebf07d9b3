"""Models of random weights, made where they are used: no file of 16 GB is written or read.

Every tensor is drawn from a seed of its own name, so that a slice has the weights that the whole
model has, in whatever process it is made.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import torch

from bench.engine_gpu.plain_paged import PlainPaged
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from nodes.model.attention.choose import AttentionChoice, choose_attention
from nodes.model.attention.paged import PagedAttention
from nodes.model.linear import Linear, can_pack, make_linear
from nodes.model.recorders import CallAgain, CudaGraphs, Recorder
from nodes.model.slice import ModelSlice
from nodes.model.weights import LayerWeights, SliceWeights

_STD: Final = 0.02

LLAMA_8B: Final[dict[str, Any]] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SMALL: Final[dict[str, Any]] = LLAMA_8B | {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
}
TINY: Final[dict[str, Any]] = SMALL | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "head_dim": 16,
    "vocab_size": 260,
    "torch_dtype": "float32",
}


def config_of(fields: dict[str, Any]) -> ModelConfig:
    return ModelConfig.from_dict(fields)


def write_config(fields: dict[str, Any], folder: Path) -> None:
    """What a router and a node read of a model, but for weights and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields), "utf-8")


def random_slice(
    config: ModelConfig,
    layers: LayerRange,
    device: torch.device,
    dtype: torch.dtype,
    attention: AttentionChoice | None = None,
    *,
    drawn_on: torch.device | None = None,
) -> ModelSlice:
    """drawn_on: where numbers are drawn (default: `device`); those of two kinds of device differ.
    attention: default: the fastest that works there."""
    draw = _Draw(device, dtype, drawn_on or device)
    weights = _weights(config, layers, draw)
    choice = attention or choose_attention(config, device, dtype)
    return ModelSlice(config, layers, weights, choice)


def paged_on_cpu() -> AttentionChoice:
    """Attention that reads page tables where there is no GPU, so that decodes can be recorded."""
    cpu = torch.device("cpu")
    return AttentionChoice(PagedAttention("plain_paged", PlainPaged(), cpu), "plain, for trial")


def recorder_for(device: torch.device) -> Recorder:
    return CudaGraphs(device) if device.type == "cuda" else CallAgain()


class _Draw:
    def __init__(self, device: torch.device, dtype: torch.dtype, drawn_on: torch.device) -> None:
        self.device = device
        self.dtype = dtype
        self._on = drawn_on
        self._packed = can_pack(device, dtype)

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        generator = torch.Generator(self._on).manual_seed(seed)
        drawn = torch.randn(shape, generator=generator, device=self._on, dtype=torch.float32)
        # Rounded to 16 bits in any case: models of other dtypes have the same weights.
        rounded = drawn.mul_(_STD).to(torch.bfloat16)
        return rounded.to(self.device, self.dtype)

    def ones(self, size: int) -> torch.Tensor:
        return torch.ones(size, device=self.device, dtype=self.dtype)

    def linear(self, name: str, rows: int, columns: int) -> Linear:
        return make_linear(self.normal(name, rows, columns), None, packed=self._packed)


def _weights(config: ModelConfig, layers: LayerRange, draw: _Draw) -> SliceWeights:
    hidden, inner = config.hidden_size, config.intermediate_size
    blocks = tuple(
        LayerWeights(
            attention_norm=draw.ones(hidden),
            qkv=draw.linear(f"{i}.qkv", config.q_size + 2 * config.kv_size, hidden),
            q_norm=None,
            k_norm=None,
            out=draw.linear(f"{i}.out", hidden, config.q_size),
            mlp_norm=draw.ones(hidden),
            gate_up=draw.linear(f"{i}.gate_up", 2 * inner, hidden),
            down=draw.linear(f"{i}.down", hidden, inner),
        )
        for i in range(layers.first, layers.end)
    )
    ends = layers.end == config.num_layers
    embedding = draw.normal("embedding", config.vocab_size, hidden) if not layers.first else None
    return SliceWeights(
        blocks,
        embedding,
        draw.ones(hidden) if ends else None,
        draw.linear("head", config.vocab_size, hidden) if ends else None,
        config.slice_weight_bytes(layers, draw.dtype.itemsize),
    )
