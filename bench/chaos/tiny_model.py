"""A random Llama with a byte tokenizer, written without torch: small enough to load in no time.

Its weights are wide (0.2), so that greedy tokens depend on the whole context and the best two
logits lie well apart: a token lost or repeated anywhere changes the rest.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from bench.byte_tokenizer import byte_tokenizer
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.tensor_names import slice_tensors

EOS = 256
NUM_LAYERS = 6
_WIDTH = 0.2
_CHAT = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"


def write_tiny_model(folder: Path, seed: int = 0) -> Path:
    """A Hugging Face folder of NUM_LAYERS layers with a vocabulary of 260; the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "eos_token_id": EOS,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    names = slice_tensors(ModelConfig.from_folder(folder), LayerRange(0, NUM_LAYERS))
    draw = np.random.default_rng(seed)
    tensors = {
        name: np.ones(shape, np.float32)
        if name.endswith("norm.weight")
        else (draw.standard_normal(shape) * _WIDTH).astype(np.float32)
        for name, shape in sorted(names.items())
    }
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    tokenizer = byte_tokenizer(("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "chat_template": _CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
