"""The tensors of the KV pages where memory runs out on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import nodes.kv_cache
from helix_mq.models.config import ModelConfig
from nodes.kv_cache import KvCache


def test_a_page_that_is_nobodys_is_in_both_tensors_when_memory_ran_out_between_them(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padded rows write to it: beyond the end of one of them a GPU's process is lost."""
    config = ModelConfig.from_folder(tiny_folder)
    cache = KvCache.allocate(config, total_pages=6, device=torch.device("cpu"), dtype=torch.float32)
    assert cache.spare_page == 6
    larger, calls = nodes.kv_cache._larger, 0

    def second_fails(*of: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return larger(*of)  # type: ignore[arg-type]

    monkeypatch.setattr(nodes.kv_cache, "_larger", second_fails)
    with pytest.raises(torch.OutOfMemoryError):
        cache.grow(20)
    assert cache.pool.total_pages == 6
    assert cache.spare_page == 6
    assert cache.spare_page < min(len(cache.keys), len(cache.values))
    cache.grow(12)
    assert cache.spare_page == 12 == cache.pool.total_pages
    assert len(cache.keys) == len(cache.values) == 13
