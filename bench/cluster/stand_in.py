"""A model in the emulated one's place: as many layers, as wide on the wire, next to no work.

Activations have the size in bytes that the emulated model's have, so links carry what they would;
one narrow head and a narrow MLP keep the real computing small beside the emulated step times.
Weights are zeros but for the norms' ones: lengths are fixed by `max_tokens`, texts mean nothing.
"""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.numpy import save_file

from bench.byte_tokenizer import byte_tokenizer
from helix_mq.errors import ConfigError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.tensor_names import slice_tensors
from helix_mq.slice_room import WORKSPACE_SHARE
from nodes.kv_cache import KvCache
from nodes.kv_pages import DEFAULT_PAGE_TOKENS
from nodes.model.weights import held_bytes

VOCABULARY: Final = 260
MAX_CONTEXT: Final = 8192
ELEMENT_BYTES: Final = 4
"""float32, in which CPUs compute fastest without help from their instruction sets."""
_NARROW: Final = 16
MOST_SEQUENCES: Final = 64
"""Of the full context: no node makes a larger KV pool (nodes.loading)."""


def write_stand_in(folder: Path, num_layers: int, activation_bytes: int) -> Path:
    """A Hugging Face folder whose activations take `activation_bytes` per token on the wire.

    ConfigError for a size that is no multiple of an element's.
    """
    if activation_bytes <= 0 or activation_bytes % ELEMENT_BYTES:
        raise ConfigError(
            f"activation_bytes={activation_bytes}: must be a multiple of {ELEMENT_BYTES}, as the "
            "emulation computes in float32; choose a model with an even hidden size",
            param="model",
        )
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": activation_bytes // ELEMENT_BYTES,
        "head_dim": _NARROW,
        "intermediate_size": _NARROW,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": MAX_CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    names = slice_tensors(ModelConfig.from_folder(folder), LayerRange(0, num_layers))
    tensors = {
        name: (np.ones if name.endswith("norm.weight") else np.zeros)(shape, np.float32)
        for name, shape in sorted(names.items())
    }
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}", "utf-8")


def most_pages(layers: int) -> int:
    """Layer-pages that a node with so many layers of the stand-in makes at most."""
    return MOST_SEQUENCES * layers * (MAX_CONTEXT // DEFAULT_PAGE_TOKENS)


def memory_for(folder: Path, layers: LayerRange, kv_pages: int) -> int:
    """The `memory` setting with which a node that holds `layers` of the stand-in has exactly so
    many layer-pages; at most `most_pages`."""
    config, dtype = ModelConfig.from_folder(folder), torch.float32
    weights = held_bytes(config, layers, device=torch.device("cpu"), dtype=dtype)
    page = KvCache.page_bytes(config, dtype, DEFAULT_PAGE_TOKENS)
    return ceil((weights + (kv_pages + 0.5) * page) / (1 - WORKSPACE_SHARE))
