"""One transformer block of the Llama family: norm, attention, norm, gated MLP, two residuals.

The families differ only in what a LayerWeights holds (biases, head norms), so there is one block.
Everything here works on [tokens, width] without padding.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from helix_mq.models.config import ModelConfig
from nodes.kv_cache import KvCache
from nodes.model.rope import Rotation, rotate
from nodes.model.weights import LayerWeights


class Block:
    """The widths of a model, and the two halves of the block around attention."""

    def __init__(self, config: ModelConfig) -> None:
        self._heads = config.num_heads
        self._kv_heads = config.num_kv_heads
        self._head_dim = config.head_dim
        self._eps = config.rms_eps

    def project(
        self, x: torch.Tensor, w: LayerWeights, rotation: Rotation
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated queries, rotated keys, values: [tokens, (kv_)heads, head_dim]."""
        fused = w.qkv(self.norm(x, w.attention_norm))
        heads = fused.view(len(x), -1, self._head_dim)
        rotated_heads = self._heads + self._kv_heads
        to_rotate, values = heads[:, :rotated_heads], heads[:, rotated_heads:]
        if w.q_norm is not None and w.k_norm is not None:
            query = self.norm(to_rotate[:, : self._heads], w.q_norm)
            keys = self.norm(to_rotate[:, self._heads :], w.k_norm)
            to_rotate = torch.cat((query, keys), dim=1)
        rotated = rotate(to_rotate, rotation)
        return rotated[:, : self._heads], rotated[:, self._heads :], values

    def project_into(
        self,
        x: torch.Tensor,
        w: LayerWeights,
        rotation: Rotation,
        cache: KvCache,
        slots: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """project(), with keys and values stored at `slots` of the cache."""
        query, keys, values = self.project(x, w, rotation)
        cache.write(slots, keys, values)
        return query, keys, values

    def finish(self, x: torch.Tensor, w: LayerWeights, attended: torch.Tensor) -> torch.Tensor:
        """The residual stream after the layer, a new tensor; attended [tokens, heads, head_dim]."""
        x = x + w.out(attended.reshape(len(x), -1))
        gate, up = w.gate_up(self.norm(x, w.mlp_norm)).chunk(2, dim=-1)
        return x + w.down(F.silu(gate).mul_(up))

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMSNorm over the last dimension (Zhang and Sennrich, arXiv:1910.07467)."""
        return F.rms_norm(x, weight.shape, weight, self._eps)
