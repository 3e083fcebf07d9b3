"""A pipeline of bare processes computes what one does, and says when a process of it ends."""

from __future__ import annotations

import asyncio
import struct
import time
from itertools import pairwise
from pathlib import Path
from unittest import mock
from unittest.mock import ANY

import pytest

from bench.chaos.tiny_model import write_tiny_model
from bench.pipeline_bare import BarePipeline, Hops, Stage, StageSpec
from helix_mq.errors import LocalError
from nodes.model.native.build import built
from nodes.model.native.ready import Ready

pytestmark = pytest.mark.skipif(
    built().library is None, reason=f"no compiled kernels here: {built().reason}"
)
ROWS, TOKENS = 3, 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def stages(model: Path, *cuts: int) -> list[Stage]:
    return [
        Stage(StageSpec(str(model), a, b, ROWS, TOKENS, 1, "float32", "", ""))
        for a, b in pairwise(cuts)
    ]


def answers(ring: list[Stage], steps: int) -> list[tuple[int, ...]]:
    """More steps than there are positions, fewer rows in some."""
    found = []
    for number in range(steps):
        count = ROWS - number % 2
        taken: memoryview | bytes = struct.pack(f"{count}i", *range(7, 7 + count))
        for stage in ring:
            taken = stage.step(memoryview(taken))
        found.append(struct.unpack(f"{count}i", taken))
    return found


def test_stages_compute_what_one_process_does(model: Path) -> None:
    whole = answers(stages(model, 0, 6), 2 * TOKENS + 1)
    assert answers(stages(model, 0, 2, 4, 6), 2 * TOKENS + 1) == whole
    assert len({tokens for row in whole for tokens in row}) > 1


def test_a_hop_is_what_is_not_computed(model: Path) -> None:
    (stage,) = stages(model, 0, 6)
    answers([stage], 3)
    stage.hops()
    began_s = time.thread_time()
    computed_s = 0.0
    now = stage._decodes.now

    def timed(ready: Ready | None) -> bool:
        nonlocal computed_s
        from_s = time.thread_time()
        done = now(ready)
        while time.thread_time() - from_s < 0.05:
            """As if it took that long."""
        computed_s += time.thread_time() - from_s
        return done

    with mock.patch.object(stage._decodes, "now", timed):
        answers([stage], 2)
    hops, all_s = stage.hops(), time.thread_time() - began_s
    assert hops.tokens == ROWS + ROWS - 1
    assert computed_s > 0.1
    assert 0 < hops.outside_s < all_s - computed_s + 0.01
    assert stage.hops().tokens == 0


async def test_tokens_go_round_and_hops_are_told_until_a_process_ends(
    model: Path, tmp_path: Path
) -> None:
    way = (model, 3, ROWS, TOKENS, 1, "float32", tmp_path / "bare.log")
    async with BarePipeline(*way) as bare:
        assert await bare.rate(ROWS, 0.05) > 0
        assert 1 < await bare.hop_us_per_token(ROWS, 0.05) < 1e5
        assert await bare._there(bare._told) == [Hops(0, ANY)] * 3
        bare.children[1].kill()
        with pytest.raises(LocalError, match="a stage ended"):
            await bare.rate(1, 60.0)


async def test_a_turn_that_is_cancelled_ends_before_its_sockets_do(
    model: Path, tmp_path: Path
) -> None:
    async with BarePipeline(model, 1, ROWS, TOKENS, 1, "float32", tmp_path / "bare.log") as bare:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await bare.rate(ROWS, 3600.0)
    assert all(child.returncode is not None for child in bare.children)
    assert bare._turn is not None
    assert bare._turn.done()


async def test_what_a_process_says_as_it_ends_is_told(model: Path, tmp_path: Path) -> None:
    unknown = (model, 1, ROWS, TOKENS, 1, "no_dtype", tmp_path / "bare.log")
    with pytest.raises(LocalError, match="no_dtype"):
        async with BarePipeline(*unknown):
            pass
