"""The suite's parts by name: where each one is, and how long it may take.

They are imported one by one, where they run: what one of them cannot import fails that part alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from bench.engine_gpu.setup import Part, Say, Setup
from helix_mq.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Place:
    """function: of `module`, takes (setup, say). limit_s: some five times what it should take;
    parity may have to compile the CPU's kernels first."""

    module: str
    function: str
    limit_s: float


PARTS: Mapping[str, Place] = {
    "attention": Place("bench.engine_gpu.attention", "attention", 75.0),
    "parity": Place("bench.engine_gpu.parity", "parity", 150.0),
    "decode": Place("bench.engine_gpu.steps", "decode", 120.0),
    "transformers": Place("bench.engine_gpu.beside", "beside_transformers", 120.0),
    "prefill": Place("bench.engine_gpu.steps", "prefill", 75.0),
    "ranks": Place("bench.engine_gpu.ranks", "ranks", 75.0),
    "pipeline": Place("bench.engine_gpu.pipeline", "pipeline", 300.0),
}
"""In the order they run; what takes longest comes last, in case time runs out."""


def check_names(names: list[str]) -> None:
    """ConfigError for a part of an unknown name."""
    for name in names:
        if name not in PARTS:
            raise ConfigError(
                f"--parts {name!r:.40} is unknown; use {', '.join(PARTS)}", param="parts"
            )


def find_part(place: Place) -> Callable[[Setup, Say], Part]:
    """ImportError where it lacks a package."""
    found: Callable[[Setup, Say], Part] = getattr(import_module(place.module), place.function)
    return found
