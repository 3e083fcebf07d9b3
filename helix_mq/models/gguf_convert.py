"""Writes the Hugging Face folder of a GGUF file: configuration, tokenizer, weights in shards.

One shard's tensors are in memory at a time, so a large model converts on a small machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from helix_mq.errors import ModelFormatError
from helix_mq.models.config import ModelConfig, WeightsDtype
from helix_mq.models.files import INDEX_FILE, SINGLE_FILE
from helix_mq.models.gguf_metadata import (
    generation_config,
    model_config,
    tokenizer_config,
    vocabulary,
)
from helix_mq.models.gguf_reader import GgufTensor, read_gguf
from helix_mq.models.gguf_tensors import find_tensors, hf_values
from helix_mq.models.gguf_tokenizer import build_tokenizer
from helix_mq.models.tensor_names import slice_tensors

Progress = Callable[[float, str], None]
"""(fraction done, what is being done)"""

SHARD_BYTES = 2 << 30

_NUMPY = {WeightsDtype.FLOAT32: np.float32, WeightsDtype.FLOAT16: np.float16}


def convert(
    file: Path,
    folder: Path,
    dtype: WeightsDtype,
    progress: Progress,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Fills the empty `folder`; config.json is written last, so it marks a whole folder.

    Raises ModelFormatError for a file that is damaged or of a kind not served here.
    """
    if dtype not in _NUMPY:
        raise ModelFormatError(f"GGUF files are converted to float32 or float16, not {dtype.value}")
    progress(0.0, f"reading {file.name}")
    source = read_gguf(file)
    words = vocabulary(source.metadata)
    raw = {**model_config(source), "torch_dtype": dtype.value}
    generation = generation_config(source.metadata, words)
    # Everything is checked before the first weight is touched.
    config = ModelConfig.from_dict(raw, generation, source=f"{file.name}: config")
    tensors = find_tensors(source, config)
    _write_json(folder / "tokenizer_config.json", tokenizer_config(source.metadata, words))
    build_tokenizer(words).save(str(folder / "tokenizer.json"))
    _write_json(folder / "generation_config.json", generation)
    _write_weights(tensors, config, folder, dtype, progress, shard_bytes)
    _write_json(folder / "config.json", raw)
    for path in sorted(folder.iterdir()):
        _sync(path)
    _sync(folder)


def _write_weights(
    tensors: Mapping[str, GgufTensor | None],
    config: ModelConfig,
    folder: Path,
    dtype: WeightsDtype,
    progress: Progress,
    shard_bytes: int,
) -> None:
    shapes = slice_tensors(config, config.all_layers)
    shards = list(_shards(shapes, dtype.nbytes, shard_bytes))
    weight_map: dict[str, str] = {}
    done = 0
    for number, names in enumerate(shards, start=1):
        file_name = SINGLE_FILE
        if len(shards) > 1:
            file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        values: dict[str, npt.NDArray[Any]] = {}
        for name in names:
            progress(done / (len(shapes) + 1), f"converting {name}")
            values[name] = _cast(name, tensors[name], shapes[name], config, dtype)
            weight_map[name] = file_name
            done += 1
        progress(done / (len(shapes) + 1), f"writing {file_name}")
        save_file(values, str(folder / file_name), metadata={"format": "pt"})
    if len(shards) > 1:
        _write_json(folder / INDEX_FILE, {"metadata": {}, "weight_map": weight_map})


def _shards(
    shapes: Mapping[str, tuple[int, ...]], item_bytes: int, shard_bytes: int
) -> Iterator[list[str]]:
    """Names in order, cut where a shard would become larger than `shard_bytes`."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        tensor_bytes = int(np.prod(shape, dtype=np.int64)) * item_bytes
        if names and size + tensor_bytes > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor_bytes
    yield names


def _cast(
    name: str,
    stored: GgufTensor | None,
    shape: tuple[int, ...],
    config: ModelConfig,
    dtype: WeightsDtype,
) -> npt.NDArray[Any]:
    if stored is None:
        return np.zeros(shape, dtype=_NUMPY[dtype])
    values = hf_values(name, stored, config)
    if not np.isfinite(values).all():
        raise ModelFormatError(f"tensor {stored.name} holds values that are no numbers")
    if dtype is WeightsDtype.FLOAT32:
        return values
    if np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
        raise ModelFormatError(
            f"tensor {stored.name} holds values too large for float16: convert to float32"
        )
    return values.astype(np.float16)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    """The marker of a whole folder must not survive a power cut that its weights do not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
