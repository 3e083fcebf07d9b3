"""A node whose slice is computed by two processes, in a cluster, until it loses one of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from helix_mq.errors import LocalError
from router.service import Delta
from tests.cluster import cluster, greedy
from tests.journey.test_cluster import reference


@pytest.mark.alone
async def test_a_node_of_two_ranks_serves_and_ends_when_one_is_lost(tiny_folder: Path) -> None:
    """What was open goes on elsewhere, as after the loss of any node."""
    prompt = tuple(range(40))
    before = set(psutil.Process().children())
    async with cluster(tiny_folder, {"a": "0:6"}, tensor_parallel=2) as c:
        [process] = set(psutil.Process().children()) - before
        # Few tokens: ranks wait for each other a dozen times in each, and where other processes run
        # every such wait costs a turn of the scheduler.
        result = await c.run(greedy(prompt, 8))
        wanted = reference(tiny_folder, prompt, 24)
        assert result.token_ids == wanted[:8]
        node, task = c.daemons.pop("a"), c.tasks.pop("a")
        assert node.loaded is not None
        one = node.loaded.engine._model._weights.nbytes
        assert node.loaded.weight_bytes == 2 * one
        assert node.loaded.held_bytes == 2 * one + node.loaded.kv_pages * 16 * 2 * 2 * 16 * 4

        def kill_in_mid_stream(delta: Delta) -> None:
            if delta.index == 3:
                process.kill()

        stream = asyncio.create_task(c.run(greedy(prompt, 24), kill_in_mid_stream))
        with pytest.raises(LocalError, match=r"a stops: rank 1 of 2 has ended \(exit status -9\)"):
            await task
        assert set(psutil.Process().children()) == before
        await c.add_node("a")
        assert (await stream).token_ids == wanted
