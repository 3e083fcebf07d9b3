"""What one request has computed others go on from: same tokens, whatever the route."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange
from helix_mq.sampling import SamplingParams
from router.service import Generation
from tests.cluster import Cluster, cluster, greedy
from tests.journey.test_cluster import reference

SYSTEM = tuple(range(200))
TAILS = [(201, 7, 9), (250,), (3, 3, 3, 3, 8), (17, 99)]


def computed(c: Cluster) -> int:
    """Tokens that nodes have run, each once per node."""
    return sum(w.statistics().tokens for d in c.daemons.values() for w in d.workers)


async def drop_kept(c: Cluster, name: str) -> None:
    """The node loses what it keeps, as it does when it makes room, and nobody is told."""
    for held in c.daemons[name]._slices._holdings:
        await held.slice.shrink(held.slice.loaded.kv_pages - 1)


PLACEMENTS = {
    "one node": {"a": "0:6"},
    "partial layers": {"a": "0:3", "b": "0:4", "c": "2:6", "d": "4:6"},
}


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS.keys())
async def test_tokens_equal_transformers_with_what_others_computed(
    tiny_folder: Path, placement: dict[str, str]
) -> None:
    async with cluster(tiny_folder, placement) as c:
        results = [await c.run(greedy((*SYSTEM, *tail), 8)) for tail in TAILS * 2]
        hits = c.app.core.statistics().prefixes
    for tail, result in zip(TAILS * 2, results, strict=True):
        assert result.token_ids == reference(tiny_folder, (*SYSTEM, *tail), 8)
        assert result.finish.cached_tokens in (0, 64, 128, 192)
        assert result.finish.reroutes == 0
    assert results[0].finish.cached_tokens == 0
    assert hits.hit_tokens == sum(r.finish.cached_tokens for r in results)
    # With several routes each has to compute the prompt once.
    assert hits.hit_tokens >= 192 * (len(results) - len(placement))
    assert hits.misses == 0


async def test_what_is_kept_is_not_run_again(tiny_folder: Path) -> None:
    async with cluster(tiny_folder, {"a": "0:3", "b": "3:6"}) as c:
        await c.run(greedy((*SYSTEM, 1), 1))
        before = computed(c)
        result = await c.run(greedy((*SYSTEM, 2), 1))
        assert computed(c) - before == 2 * (len(SYSTEM) + 1 - 192)
        assert result.finish.cached_tokens == 192
        assert result.finish.prompt_tokens == 201


async def test_a_prompt_that_is_kept_whole_still_runs_its_last_tokens(tiny_folder: Path) -> None:
    prompt = SYSTEM[:128]
    async with cluster(tiny_folder, {"a": "0:3", "b": "3:6"}) as c:
        cold, hot = await c.run(greedy(prompt, 8)), await c.run(greedy(prompt, 8))
    assert hot.finish.cached_tokens == 64
    assert hot.token_ids == cold.token_ids == reference(tiny_folder, prompt, 8)


async def test_many_with_one_prompt_at_once(tiny_folder: Path) -> None:
    wanted = reference(tiny_folder, SYSTEM, 10)
    async with cluster(tiny_folder, {"a": "0:4", "b": "2:6", "c": "0:2"}) as c:
        found: set[int] = set()
        # A route that was not taken before finds nothing kept; measured speeds may move all eight
        # to another one, but there are only a few.
        for _ in range(20):
            results = await asyncio.gather(*(c.run(greedy(SYSTEM, 10)) for _ in range(8)))
            assert {r.token_ids for r in results} == {wanted}
            found |= {r.finish.cached_tokens for r in results}
            if 192 in found:
                break
        assert {192} <= found <= {0, 192}


async def test_a_node_that_keeps_it_no_more_costs_nobody_anything(tiny_folder: Path) -> None:
    wanted = reference(tiny_folder, SYSTEM, 10)
    async with cluster(tiny_folder, {"a": "0:3", "b": "3:6"}) as c:
        await c.run(greedy(SYSTEM, 10))
        await drop_kept(c, "b")
        again = await c.run(greedy(SYSTEM, 10))
        assert again.token_ids == wanted
        assert again.finish.cached_tokens == 0
        assert again.finish.reroutes == 0
        assert c.app.core.statistics().prefixes.misses == 1
        after = await c.run(greedy(SYSTEM, 10))
        assert after.finish.cached_tokens == 192
        assert after.token_ids == wanted


async def test_a_node_that_restarts_is_not_believed_to_keep_anything(tiny_folder: Path) -> None:
    wanted = reference(tiny_folder, SYSTEM, 10)
    async with cluster(tiny_folder, {"a": "0:3", "b": "3:6"}, dead_after_s=0.5) as c:
        await c.run(greedy(SYSTEM, 10))
        await c.kill("b")
        await c.add_node("b")
        again = await c.run(greedy(SYSTEM, 10))
        assert again.token_ids == wanted
        assert again.finish.cached_tokens == 0


async def test_what_is_kept_gives_way_to_requests(tiny_folder: Path) -> None:
    """Room for less than two prompts: nobody is refused for what is only kept."""
    prompts = [tuple((i + 40 * n) % 256 for i in range(190)) for n in range(4)]
    async with cluster(tiny_folder, {"a": "0:6"}, memory_bytes=1_500_000) as c:
        pages = c.daemons["a"].workers[0].statistics().kv_total_pages
        assert 6 * 13 <= pages < 2 * 6 * 13, pages
        for prompt in prompts * 2:
            result = await c.run(greedy(prompt, 8))
            assert result.token_ids == reference(tiny_folder, prompt, 8)
            assert result.finish.reroutes == 0


async def test_keys_do_not_share(tiny_folder: Path) -> None:
    async with cluster(tiny_folder, {"a": "0:6"}) as c:
        seen = [
            (await c.run(greedy(SYSTEM, 2, owner=owner))).finish.cached_tokens
            for owner in ("ann", "bob", "ann", "", "bob")
        ]
    assert seen == [0, 0, 192, 0, 192]


async def test_sampling_sees_the_whole_prompt(tiny_folder: Path) -> None:
    """Penalties look at tokens that were not run."""
    sampling = SamplingParams(
        temperature=0.9, seed=11, max_tokens=24, repetition_penalty=1.5, presence_penalty=0.5
    )
    generation = Generation((*SYSTEM, *SYSTEM[:30]), sampling)
    async with cluster(tiny_folder, {"a": "0:3", "b": "3:6"}) as c:
        cold, hot = await c.run(generation), await c.run(generation)
        other = msgspec.structs.replace(sampling, repetition_penalty=1.0, presence_penalty=0.0)
        plain = await c.run(replace(generation, sampling=other))
    assert hot.finish.cached_tokens == 192
    assert hot.token_ids == cold.token_ids
    assert plain.token_ids != cold.token_ids, "the penalties change nothing: nothing was tested"


async def test_other_layers_are_computed_anew(tiny_folder: Path) -> None:
    """A re-placement changes one node's slice; the other's stays, with what it keeps."""
    wanted = reference(tiny_folder, SYSTEM, 6)
    async with cluster(tiny_folder, {"a": "0:3", "b": "3:6"}) as c:
        await c.run(greedy(SYSTEM, 6))
        c.app.place({NodeId("a"): LayerRange(0, 3), NodeId("b"): LayerRange(2, 6)})
        await c.until(lambda: _moved(c), "they have moved")
        seen = [await c.run(greedy(SYSTEM, 6)) for _ in range(2)]
        assert [r.token_ids for r in seen] == [wanted, wanted]
        assert [r.finish.cached_tokens for r in seen] == [0, 192]
        assert c.app.core.statistics().prefixes.misses == 0


def _moved(c: Cluster) -> bool:
    layers = {n.node: n.layers for n in c.app.picture().nodes}
    return layers == {"a": "0-2", "b": "2-5"} and not c.app.core.cluster.moves.unsettled
