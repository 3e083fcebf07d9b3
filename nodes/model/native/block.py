"""The transformer block with compiled kernels around its products; same interface as Block."""

from __future__ import annotations

import torch

from helix_mq.models.config import ModelConfig
from nodes.kv_cache import KvCache, KvLayout
from nodes.model.layers import Block
from nodes.model.native.kernels import HeadNorms, Kernels, kernels_for
from nodes.model.rope import Rotation
from nodes.model.weights import LayerWeights


class NativeBlock(Block):
    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__(config)
        self._kernels = kernels

    def project_into(
        self,
        x: torch.Tensor,
        w: LayerWeights,
        rotation: Rotation,
        cache: KvCache,
        slots: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if cache.layout is not KvLayout.HEAD_MAJOR:
            return super().project_into(x, w, rotation, cache, slots)
        qkv = w.qkv(self.norm(x, w.attention_norm)).view(len(x), -1, self._head_dim)
        self._kernels.rotate_store(
            qkv,
            self._heads,
            rotation.cos,
            rotation.sin,
            slots,
            cache.keys,
            cache.values,
            HeadNorms(w.q_norm, w.k_norm, self._eps),
        )
        rotated = self._heads + self._kv_heads
        return qkv[:, : self._heads], qkv[:, self._heads : rotated], qkv[:, rotated:]

    def finish(self, x: torch.Tensor, w: LayerWeights, attended: torch.Tensor) -> torch.Tensor:
        out = w.out(attended.reshape(len(x), -1))
        x, normed = self._kernels.add_norm(x.contiguous(), out, w.mlp_norm, self._eps)
        return x.add_(w.down(self._kernels.silu_mul(w.gate_up(normed))))

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if x.dim() != 2 or not x.is_contiguous():
            return super().norm(x, weight)
        return self._kernels.norm(x, weight, self._eps)


def block_for(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Block:
    """The fastest block that works here."""
    kernels = kernels_for(dtype) if device.type == "cpu" else None
    return NativeBlock(config, kernels) if kernels is not None else Block(config)
