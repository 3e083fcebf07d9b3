"""Our side of each attention library, with the library emulated."""

from __future__ import annotations

import pytest

from nodes.model.attention.kernels import FlashAttention2, FlashAttention3, TorchVarlen
from nodes.model.attention.paged import PagedKernel
from tests.nodes.model.attention import packages


@pytest.fixture
def kernels() -> dict[str, PagedKernel]:
    return {
        "flash_attn_2": FlashAttention2(
            packages.flash_attn_varlen_func, packages.flash_attn_with_kvcache_2
        ),
        "flash_attn_3": FlashAttention3(packages.flash_attn_with_kvcache_3),
        "torch_varlen": TorchVarlen(packages.varlen_attn),
    }
