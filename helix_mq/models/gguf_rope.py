"""How a GGUF file stretches the rotary embedding, as Hugging Face's `rope_scaling`.

Linear scaling is in the metadata. Llama 3's is not: the file holds its effect, a factor for each
frequency (tensor `rope_freqs.weight`), from which the published parameters are found again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from helix_mq.errors import ModelFormatError
from helix_mq.models.gguf_reader import GgufFile

FREQUENCY_FACTORS = "rope_freqs.weight"

_LOW, _HIGH = 1.0, 4.0
_ORIGINAL_CONTEXT = 8192
"""The same in all models of Meta's that scale so: Llama 3.1, 3.2 and 3.3."""


def rope_scaling(
    file: GgufFile, architecture: str, head_dim: int, theta: float
) -> dict[str, Any] | None:
    """None for plain rotation; ModelFormatError for a scaling that cannot be expressed."""
    metadata = file.metadata
    key = f"{architecture}.rope.scaling.type"
    kind = metadata.get(key, str, "none")
    factors = file.tensors.get(FREQUENCY_FACTORS)
    if kind == "linear":
        factor = metadata.get(f"{architecture}.rope.scaling.factor", float)
        return {"rope_type": "linear", "factor": factor}
    if kind != "none":
        raise metadata.refuse(
            key, "is not supported from GGUF files: use the model's Hugging Face folder"
        )
    if factors is None:
        # Files from before 2023-10 give the linear factor without a type.
        scale = metadata.get(f"{architecture}.rope.scale_linear", float, 1.0)
        return {"rope_type": "linear", "factor": scale} if scale != 1.0 else None
    return _llama3(factors.values(), head_dim, theta)


def _llama3(stored: npt.NDArray[np.float32], head_dim: int, theta: float) -> dict[str, Any]:
    factor = float(stored.max()) if stored.size else math.nan
    parameters = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _ORIGINAL_CONTEXT,
    }
    if stored.shape == (head_dim // 2,) and math.isfinite(factor):
        expected = llama3_factors(head_dim, theta, factor)
        if np.allclose(stored, expected, rtol=1e-3):
            return parameters
    raise ModelFormatError(
        f"the frequency factors in {FREQUENCY_FACTORS} are not those of Llama 3's scaling: use the "
        "model's Hugging Face folder, whose config.json says what they are"
    )


def llama3_factors(head_dim: int, theta: float, factor: float) -> npt.NDArray[np.float64]:
    """[head_dim / 2]: by how much Llama 3.1's scaling divides each frequency.

    Wavelengths over the original context are stretched by `factor`, those under a fourth of it not
    at all, with a ramp between (Meta's llama-models, `apply_scaling`).
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    wavelengths = 2 * math.pi / frequencies
    smooth = np.clip((_ORIGINAL_CONTEXT / wavelengths - _LOW) / (_HIGH - _LOW), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)
