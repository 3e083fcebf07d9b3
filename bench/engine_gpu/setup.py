"""What the suite runs with: on a GPU a model of 8 billion weights, for a trial a tiny one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.engine_gpu.models import LLAMA_8B, SMALL, TINY, config_of, paged_on_cpu
from bench.engine_gpu.roofline import Ceilings
from helix_mq.models.config import ModelConfig
from nodes.model.attention.choose import AttentionChoice

Say = Callable[[str], None]
Part = dict[str, Any]
"""What one part found out, as JSON; `passed` where there is something to pass."""


@dataclass(frozen=True, slots=True)
class Setup:
    """fields, parity_fields: config.json of the model, and of the one that a CPU runs beside.
    context: tokens that decodes have behind them. tries: steps of which the median is taken."""

    device: torch.device
    dtype: torch.dtype
    tiny: bool
    fields: dict[str, Any]
    parity_fields: dict[str, Any]
    batches: tuple[int, ...]
    context: int
    prompts: tuple[int, ...]
    beside_batch: int
    new_tokens: int
    tries: int
    ceilings: Ceilings

    @property
    def config(self) -> ModelConfig:
        return config_of(self.fields)

    def attention(self) -> AttentionChoice | None:
        """None: the fastest that works; without a GPU a stand-in that reads page tables."""
        return paged_on_cpu() if self.device.type == "cpu" else None


def dtype_of(device: torch.device) -> torch.dtype:
    """That is measured in."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def fields_of(*, tiny: bool) -> dict[str, Any]:
    """config.json of the model that is measured."""
    return TINY if tiny else LLAMA_8B


def full_setup(device: torch.device, ceilings: Ceilings) -> Setup:
    return Setup(
        device=device,
        dtype=dtype_of(device),
        tiny=False,
        fields=fields_of(tiny=False),
        parity_fields=SMALL,
        batches=(1, 8, 32, 128),
        context=1024,
        prompts=(512, 2048, 8192),
        beside_batch=32,
        new_tokens=64,
        tries=20,
        ceilings=ceilings,
    )


def tiny_setup(device: torch.device, ceilings: Ceilings) -> Setup:
    return Setup(
        device=device,
        dtype=dtype_of(device),
        tiny=True,
        fields=fields_of(tiny=True),
        parity_fields=TINY,
        batches=(1, 3),
        context=20,
        prompts=(24,),
        beside_batch=2,
        new_tokens=4,
        tries=2,
        ceilings=ceilings,
    )
