"""The tensors of the KV pages where memory runs out on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import nodes.kv_cache
from helix_mq.layers import LayerRange
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


class Copies(TorchDispatchMode):
    """Bytes of each copy of some pages, which is there beside the pools."""

    def __init__(self) -> None:
        super().__init__()
        self.each: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.index_select.default:
            self.each.append(found.nbytes)
        return found


@pytest.mark.parametrize("total_pages", [45, 90])
def test_pages_are_copied_a_few_at_a_time(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, total_pages: int
) -> None:
    """A device that is full has no room for all of them once more."""
    config = ModelConfig.from_folder(tiny_folder)
    cache = KvCache.allocate(
        config, total_pages=60, device=torch.device("cpu"), dtype=torch.float32, page_tokens=4
    )
    for seq in range(2):
        cache.pool.open(seq, LayerRange(0, 2))
        cache.pool.ensure(seq, 4 * 15)
    cache.pool.free(0)
    page_bytes = cache.keys[0].nbytes
    monkeypatch.setattr(nodes.kv_cache, "_COPY_BYTES", 4 * page_bytes)
    with Copies() as copies:
        (cache.shrink if total_pages < 60 else cache.grow)(total_pages)
    assert max(copies.each) == 4 * page_bytes
    assert sum(copies.each) >= 2 * 30 * page_bytes
