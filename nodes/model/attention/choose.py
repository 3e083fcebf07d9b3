"""Which attention backend a slice uses, and why, in words."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from helix_mq.errors import ConfigError
from nodes.model.attention.base import AttentionBackend
from nodes.model.attention.gather import GatherAttention

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """A backend, and the sentence that says why it was chosen."""

    backend: AttentionBackend
    reason: str


def choose_attention(
    device: torch.device, dtype: torch.dtype, override: str = AUTO
) -> AttentionChoice:
    """ConfigError when `override` names no backend, or one that cannot run here."""
    if override in (AUTO, GatherAttention.name):
        backend = GatherAttention(device=device, dtype=dtype)
        return AttentionChoice(backend, "the CPU runs PyTorch's attention over gathered pages")
    raise ConfigError(f"attention={override!r} is unknown", param="attention")
