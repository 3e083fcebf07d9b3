"""What was foreseen for slices that are freed."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodes.serving import ServingSlice
from tests.nodes.slices_bench import node_and_router

TOKENS = 40


async def test_of_slices_that_are_freed_no_frame_is_foreseen_while_others_still_stop(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, expected = ServingSlice.stop, []

    async def noted(self: ServingSlice) -> None:
        expected.append(len(node._plane.foreseen))
        await stop(self)

    async with node_and_router(tiny_folder) as (node, router):
        router.assign(1, (0, 3))
        await router.ready(1)
        router.assign(2)
        await router.ready(2)
        router.most = 10
        router.prompt(1, 2, TOKENS)
        await router.until(lambda: len(router.tokens.get(1, ())) == 10)
        assert node._plane.foreseen
        monkeypatch.setattr(ServingSlice, "stop", noted)
        router.retain()
        await router.until(lambda: not node.workers and len(expected) == 2)
        assert expected == [0, 0]
        monkeypatch.undo()
