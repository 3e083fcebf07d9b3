"""A GGUF file, converted once to a Hugging Face folder in the cache.

Reading and dequantising are the `gguf` package's; here names and layouts are put back to Hugging
Face's. Several processes may ask for the same file at once: one converts, the others wait, and a
folder appears whole or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from helix_mq.errors import ModelFormatError
from helix_mq.models.gguf_metadata import Metadata, model_config, tokenizer_config, vocabulary
from helix_mq.models.gguf_tokenizer import build_tokenizer

CONVERTER_VERSION = 1
"""Part of the cache key: raise it when the converted result changes."""

Progress = Callable[[float, str], None]
"""(fraction done, what is being done)"""

_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NOT_WEIGHTS = frozenset({"rope_freqs.weight"})
"""Llama 3's frequency factors: the config's rope_scaling says the same."""


def cached_folder(file: Path, cache: Path) -> Path:
    """Where the converted folder of `file` is or will be."""
    stat = file.stat()
    key = f"{CONVERTER_VERSION}:{file.name}:{stat.st_size}:{stat.st_mtime_ns}"
    return cache / "gguf" / f"{file.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def import_gguf(file: Path, cache: Path, progress: Progress | None = None) -> Path:
    """The Hugging Face folder of a GGUF file, converting it if the cache has none.

    Raises ModelFormatError when it is no GGUF file or of an architecture not served here.
    """
    report = progress or (lambda fraction, text: None)
    target = cached_folder(file, cache)
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        report(0.0, f"waiting for another process to convert {file.name}")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (target / "config.json").is_file():
            return target
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            _convert(file, work, report)
            os.replace(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    report(1.0, f"converted {file.name}")
    return target


def _convert(file: Path, folder: Path, report: Progress) -> None:
    report(0.0, f"reading {file.name}")
    try:
        reader = gguf.GGUFReader(str(file))
    except (ValueError, OSError, IndexError, KeyError, UnicodeDecodeError) as e:
        raise ModelFormatError(f"{file} is not a readable GGUF file: {e}") from None
    metadata = Metadata(file.name, {name: f.contents() for name, f in reader.fields.items()})
    names = {t.name for t in reader.tensors}
    config = model_config(metadata, tied="output.weight" not in names)
    words = vocabulary(metadata)
    _write_json(folder / "tokenizer_config.json", tokenizer_config(metadata, words))
    build_tokenizer(words).save(str(folder / "tokenizer.json"))
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for done, tensor in enumerate(reader.tensors):
        report(done / len(reader.tensors), f"dequantising {file.name}")
        name = hf_name(tensor.name)
        if name is not None:
            tensors[name] = _dequantise(tensor, config)
    report(0.99, "writing weights")
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    # Last, because its presence says that the folder is whole.
    _write_json(folder / "config.json", config)


def hf_name(name: str) -> str | None:
    """Hugging Face's name of a GGUF tensor, None for one that is no weight of ours.

    Raises ModelFormatError for a name that belongs to no family served here.
    """
    if name in _NOT_WEIGHTS:
        return None
    if name in _TENSORS:
        return _TENSORS[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[1].isdecimal():
        layer = _LAYER_TENSORS.get(parts[2])
        if layer is not None and parts[3] in ("weight", "bias"):
            return f"model.layers.{parts[1]}.{layer}.{parts[3]}"
    raise ModelFormatError(f"tensor {name!r} belongs to no architecture that is served here")


def _dequantise(tensor: Any, config: dict[str, Any]) -> npt.NDArray[np.float32]:
    try:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    except (NotImplementedError, ValueError) as e:
        raise ModelFormatError(
            f"tensor {tensor.name!r} is stored as {tensor.tensor_type.name}, which cannot be "
            f"dequantised: {e}"
        ) from None
    shape = tuple(int(n) for n in reversed(tensor.shape))
    values = values.reshape(shape)
    # llama.cpp stores the query and key projections of the llama architecture with the two halves
    # of each head's rotation interleaved.
    if config["model_type"] in ("llama", "mistral"):
        if ".attn_q." in tensor.name:
            values = _uninterleave(values, config["num_attention_heads"])
        elif ".attn_k." in tensor.name:
            values = _uninterleave(values, config["num_key_value_heads"])
    return np.ascontiguousarray(values)


def _uninterleave(values: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows (r0, r1, r2, ...) of each head back to (r0, r2, ..., r1, r3, ...)."""
    rows = values.shape[0] // heads
    split = values.reshape(heads, rows // 2, 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
