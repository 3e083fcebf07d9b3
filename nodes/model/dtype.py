"""Which number format a node computes in: what was asked for, or the best that loses nothing.

`auto` on a CPU never goes below the precision of the weights on disk, and takes 16 bits only where
a measurement with the model's own shapes says that it is not slower. On CUDA 16 bits always win,
and the FlashAttention kernels know nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from helix_mq.errors import ConfigError
from helix_mq.models.config import ModelConfig, WeightsDtype
from nodes.model.linear import can_pack, make_linear

DTYPES = {d.value: getattr(torch, d.value) for d in WeightsDtype}
AUTO = "auto"

_ROWS = (1, 8, 128)
"""Decode alone, decode in a batch, prefill."""
_MAX_WEIGHT_ELEMENTS = 1 << 24
_REPEATS = 3

Measure = Callable[[ModelConfig, torch.dtype, int], float]
"""Seconds of one matmul: (model, dtype, rows)."""


class DtypeChoice(NamedTuple):
    """The compute dtype, and the sentence that says why."""

    dtype: torch.dtype
    reason: str


def choose_dtype(
    requested: str, config: ModelConfig, device: torch.device, measure: Measure | None = None
) -> DtypeChoice:
    """`requested`: auto, float32, bfloat16 or float16; ConfigError for anything else.

    measure: how long a matmul takes; by default it is run, which takes about 0.1 s.
    """
    if requested != AUTO:
        if requested not in DTYPES:
            raise ConfigError(
                f"dtype={requested!r} is unknown; use auto, {', '.join(DTYPES)}", param="dtype"
            )
        return DtypeChoice(DTYPES[requested], "as asked for")
    stored = config.weights_dtype
    if device.type == "cuda":
        return _on_cuda(stored)
    if stored is WeightsDtype.FLOAT32:
        return DtypeChoice(torch.float32, "the weights are float32")
    return _by_measurement(stored, config, measure or measure_matmul)


def measure_matmul(config: ModelConfig, dtype: torch.dtype, rows: int) -> float:
    """Seconds of the model's widest layer product for `rows` rows, as the slice would run it.

    The best of a few runs: what disturbs a run only ever makes it longer.
    """
    wide = max(1, min(2 * config.intermediate_size, _MAX_WEIGHT_ELEMENTS // config.hidden_size))
    device = torch.device("cpu")
    weight = torch.ones((wide, config.hidden_size), dtype=dtype)
    linear = make_linear(weight, None, packed=can_pack(device, dtype))
    x = torch.ones((rows, config.hidden_size), dtype=dtype)
    linear(x)
    best = math.inf
    for _ in range(_REPEATS):
        started_s = time.perf_counter()
        linear(x)
        best = min(best, time.perf_counter() - started_s)
    return best


def _on_cuda(stored: WeightsDtype) -> DtypeChoice:
    if stored is WeightsDtype.FLOAT16:
        return DtypeChoice(torch.float16, "the weights are float16")
    # Emulated bfloat16 (before Ampere) is slower than float32.
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return DtypeChoice(torch.bfloat16, f"CUDA, weights in {stored.value}")
    return DtypeChoice(torch.float16, f"this GPU has no bfloat16; weights in {stored.value}")


def _by_measurement(stored: WeightsDtype, config: ModelConfig, measure: Measure) -> DtypeChoice:
    """16 bits unless float32 is faster in the geometric mean over the row counts."""
    half: torch.dtype = DTYPES[stored.value]
    ratios = {
        rows: measure(config, torch.float32, rows) / measure(config, half, rows) for rows in _ROWS
    }
    gain = math.exp(sum(math.log(r) for r in ratios.values()) / len(ratios))
    figures = ", ".join(f"{r:.2f}x with {rows} rows" for rows, r in ratios.items())
    measured = f"{stored.value} runs at {figures} the speed of float32"
    if gain >= 1.0:
        return DtypeChoice(half, f"{measured} on this CPU")
    return DtypeChoice(torch.float32, f"{measured} on this CPU, so the weights are widened")
