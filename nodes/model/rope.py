"""Rotary position embedding (Su et al., arXiv:2104.09864) in the half-split layout of Llama.

Angles are computed in float32 for the positions of a batch, once per pass, not as a table of the
whole context: a table for 128k positions would cost each slice tens of megabytes. Only the compiled
step of decodes keeps one, as far as positions have come and within bounds (native/decodes.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from helix_mq.models.config import LinearRope, Llama3Rope, ModelConfig


@dataclass(frozen=True, slots=True)
class Rotation:
    """Of a batch's tokens: cos and sin [tokens, 1, head_dim]; sin's first half is negated."""

    cos: torch.Tensor
    sin: torch.Tensor

    def rows(self, index: torch.Tensor | slice) -> Rotation:
        return Rotation(self.cos[index], self.sin[index])


def inverse_frequencies(config: ModelConfig) -> torch.Tensor:
    """float32 [head_dim / 2]: radians per position of each pair of dimensions."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if isinstance(scaling, LinearRope):
        return frequencies / scaling.factor
    if isinstance(scaling, Llama3Rope):
        return _llama3(frequencies, scaling)
    return frequencies


def rotation(inverse_freq: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> Rotation:
    """Of `positions` (int64 [tokens]), in `dtype`."""
    angles = positions.to(torch.float32)[:, None] * inverse_freq
    if angles.device.type == "cpu":
        # torch waits for all its threads to wake up: 0.6 ms of a step of 32 rows, in which what
        # they would compute takes 0.02.
        cos, sin = (torch.from_numpy(f(angles.numpy())) for f in (np.cos, np.sin))
    else:
        cos, sin = angles.cos(), angles.sin()
    return Rotation(
        torch.cat((cos, cos), dim=-1)[:, None, :].to(dtype),
        torch.cat((-sin, sin), dim=-1)[:, None, :].to(dtype),
    )


def rotate(heads: torch.Tensor, by: Rotation) -> torch.Tensor:
    """Rotated copy of `heads` [tokens, heads, head_dim]."""
    # Rolling by half swaps the two halves; the minus sign of one of them is in `sin`.
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
    return (heads * by.cos).addcmul_(swapped, by.sin)


def _llama3(frequencies: torch.Tensor, scaling: Llama3Rope) -> torch.Tensor:
    """Llama 3.1: wavelengths beyond the original context are stretched by `factor`, short ones are
    kept, a linear ramp joins them (reference implementation in meta-llama/llama-models)."""
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_context / wavelengths
    ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    ramp = ramp.clamp(0.0, 1.0)
    return (1 - ramp) * frequencies / scaling.factor + ramp * frequencies
