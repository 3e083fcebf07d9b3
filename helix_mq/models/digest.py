"""A short digest by which router and nodes tell that they mean the same model.

Over the fields that decide the mathematics and the shapes, plus the tokenizer: not over the
weights, which are gigabytes. Two fine-tunes of one model differ in `weights_id`, taken from the
sizes and header of the weight files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from helix_mq.models.config import ModelConfig


def model_digest(folder: Path) -> str:
    """Hex digest (32 characters) of the model in `folder`.

    Raises ModelFormatError when its config.json cannot be read.
    """
    config = ModelConfig.from_folder(folder)
    state = {
        field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)
    }
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file():
        digest.update(tokenizer.read_bytes())
    for weights in sorted(folder.glob("*.safetensors")):
        digest.update(f"{weights.name}:{weights.stat().st_size}".encode())
        digest.update(_sample(weights))
    return digest.hexdigest()[:32]


_SAMPLE_BYTES = 64 * 1024


def _sample(weights: Path) -> bytes:
    """The start and the end of a weight file: header, names, and some numbers."""
    with weights.open("rb") as f:
        head = f.read(_SAMPLE_BYTES)
        f.seek(max(0, weights.stat().st_size - _SAMPLE_BYTES))
        return head + f.read(_SAMPLE_BYTES)


def _plain(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value
