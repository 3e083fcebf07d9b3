"""A node whose KV pool fills its memory makes room for another slice: nobody loses anything."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nodes.kv_cache
from helix_mq.layers import LayerRange
from nodes.kv_cache import KvCache, KvLayout
from tests.nodes.slices_bench import LAYERS, node_and_router
from tests.nodes.test_slices import TOKENS, alone, budget, measured
from tests.router.world import CONFIG


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    freed=st.sets(st.integers(0, 5)),
    spare=st.integers(0, 10),
    layout=st.sampled_from(list(KvLayout)),
    copied=st.sampled_from([1, 5000, nodes.kv_cache._COPY_BYTES]),
)
def test_contents_survive_a_smaller_pool(
    lengths: list[int], freed: set[int], spare: int, layout: KvLayout, copied: int
) -> None:
    cache = KvCache.allocate(
        CONFIG,
        total_pages=80,
        device=torch.device("cpu"),
        dtype=torch.float32,
        page_tokens=4,
        layout=layout,
    )
    torch.nn.init.normal_(cache.keys)
    torch.nn.init.normal_(cache.values)
    for seq, length in enumerate(lengths):
        cache.pool.open(seq, LayerRange(0, 1))
        cache.pool.ensure(seq, length)
    for seq in freed & set(range(len(lengths))):
        cache.pool.free(seq)

    def contents() -> dict[object, tuple[torch.Tensor, torch.Tensor]]:
        found = {}
        for seq in cache.pool.sequences():
            pages = torch.from_numpy(cache.pool.table(seq).ravel().astype("int64"))
            found[seq] = (cache.keys[pages].clone(), cache.values[pages].clone())
        return found

    before = contents()
    used = cache.pool.total_pages - cache.pool.free_pages
    fewer = max(1, used + spare)
    with mock.patch.object(nodes.kv_cache, "_COPY_BYTES", copied):
        cache.shrink(fewer)
    assert len(cache.keys) == len(cache.values) == cache.pool.total_pages + 1 == fewer + 1
    for seq, (keys, values) in contents().items():
        assert torch.equal(keys, before[seq][0])
        assert torch.equal(values, before[seq][1])
    cache.pool.check()
    if used > 1:
        with pytest.raises(ValueError, match="too few"):
            cache.shrink(used - 1)


async def test_a_full_node_makes_room_for_a_slice_and_gets_its_pages_back(
    tiny_folder: Path,
) -> None:
    right = await alone(tiny_folder, 1, 2)
    whole = await measured(tiny_folder)
    memory = budget(whole, 0.9)
    async with node_and_router(tiny_folder, memory_bytes=memory) as (node, router):
        router.assign(1)
        full = await router.ready(1)
        router.prompt(1, 1, TOKENS)
        router.prompt(2, 1, TOKENS)
        await router.until(lambda: len(router.tokens.get(1, ())) > 2)
        router.assign(2, (0, LAYERS - 1))
        other = await router.ready(2)
        cut = next(r for r in router.readies if r.epoch == 1 and r.kv_pages < full.kv_pages)
        assert cut.held_bytes < full.held_bytes
        assert cut.held_bytes + other.held_bytes <= memory
        assert [await router.finished(r) for r in (1, 2)] == right
        node.worker.check()
        router.retain(1)
        await router.until(lambda: router.readies[-1].kv_pages == full.kv_pages)
        assert router.readies[-1].epoch == 1
        router.prompt(3, 1, TOKENS)
        assert await router.finished(3)
