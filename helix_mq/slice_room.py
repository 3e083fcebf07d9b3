"""When a slice fits beside those that a node holds: the node's rule, and what the router counts on.

Both must agree, or the router orders what nodes refuse; so the figures are here and nowhere else.
"""

from __future__ import annotations

from typing import Final

from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig

WORKSPACE_SHARE: Final = 0.05
"""Of a node's memory, for a step's own tensors."""
LEAST_BESIDE_TOKENS: Final = 1024
"""Of one sequence: a slice that is to take over from another must be able to serve someone."""
KEPT_PER_USED_PAGE: Final = 2
"""A KV pool that is cut down to make room keeps at least so many pages for each in use."""


def usable_bytes(memory_bytes: int) -> float:
    """What weights and KV pools of all slices may take together."""
    return memory_bytes * (1 - WORKSPACE_SHARE)


def least_tokens(config: ModelConfig) -> int:
    """KV room in tokens, below which a slice is not loaded beside another."""
    return min(config.max_context, LEAST_BESIDE_TOKENS)


def least_kv_bytes(config: ModelConfig, layers: LayerRange, dtype_bytes: int) -> int:
    """The same in bytes, up to rounding to pages."""
    return len(layers) * least_tokens(config) * config.kv_bytes_per_token_per_layer(dtype_bytes)
