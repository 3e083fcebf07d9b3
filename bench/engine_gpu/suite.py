"""The parts in turn, each for itself: one that fails leaves its reason in the result."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bench.engine_gpu.attention import attention
from bench.engine_gpu.beside import beside_transformers
from bench.engine_gpu.parity import parity
from bench.engine_gpu.pipeline import pipeline
from bench.engine_gpu.ranks import ranks
from bench.engine_gpu.roofline import measure_ceilings
from bench.engine_gpu.setup import Part, Say, Setup, full_setup, tiny_setup
from bench.engine_gpu.steps import decode, peak_bytes, prefill
from helix_mq.errors import ConfigError

PARTS: Mapping[str, Callable[[Setup, Say], Part]] = {
    "attention": attention,
    "parity": parity,
    "decode": decode,
    "prefill": prefill,
    "transformers": beside_transformers,
    "pipeline": pipeline,
    "ranks": ranks,
}
LIMIT_S = 480.0
"""A part that has not begun by then is left out."""


def device_of(wanted: str) -> torch.device:
    """ConfigError where this machine has none such."""
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device {wanted}: torch {torch.__version__} sees no CUDA device here, and this "
            "suite measures one. For a trial of its parts without a GPU: --device cpu --tiny",
            param="device",
        )
    return device


def setup_of(device: torch.device, *, tiny: bool) -> Setup:
    """Measures the device's ceilings. ConfigError for the full size on a CPU."""
    if device.type == "cpu" and not tiny:
        raise ConfigError("--device cpu is for trials only: add --tiny", param="device")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    ceilings = measure_ceilings(device, dtype, small=tiny)
    return tiny_setup(device, ceilings) if tiny else full_setup(device, ceilings)


def run_suite(setup: Setup, names: Sequence[str], say: Say) -> dict[str, Any]:
    """The result as JSON. ConfigError for a part of an unknown name."""
    for name in names:
        if name not in PARTS:
            raise ConfigError(
                f"--parts {name!r:.40} is unknown; use {', '.join(PARTS)}", param="parts"
            )
    began = time.perf_counter()
    found: dict[str, Any] = {}
    for name in names:
        found[name] = _part(name, setup, say, began)
    return {
        "device": _device(setup),
        "model": setup.fields,
        "tiny": setup.tiny,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "parts": found,
        "seconds": time.perf_counter() - began,
    }


def _part(name: str, setup: Setup, say: Say, began: float) -> Part:
    started = time.perf_counter()
    if started - began > LIMIT_S:
        return {"passed": False, "reason": f"not begun within {LIMIT_S:.0f} s"}
    if setup.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setup.device)
    found: Part
    try:
        found = PARTS[name](setup, say)
    except Exception as e:  # Whatever a foreign library raises: the other parts go on.
        last = traceback.extract_tb(e.__traceback__)[-1]
        reason = f"{type(e).__name__}: {str(e).strip()[:500]} ({last.name}, line {last.lineno})"
        found = {"passed": False, "reason": reason}
        say(f"{name}: {reason}")
    found["seconds"] = time.perf_counter() - started
    found["peak_bytes"] = peak_bytes(setup.device)
    gc.collect()
    if setup.device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _device(setup: Setup) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "type": setup.device.type,
        "copy_bytes_per_s": setup.ceilings.bytes_per_s,
        "product_flop_per_s": setup.ceilings.flop_per_s,
        "torch": str(torch.__version__),
    }
    if setup.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setup.device)
        facts["name"] = properties.name
        facts["memory_bytes"] = properties.total_memory
        facts["cuda"] = str(torch.version.cuda)
    return facts
