"""Every request scheduler in a running cluster: other routes, the same tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from helix_mq.layers import Route
from router.schedulers_base import METHODS, Method
from router.settings import SchedulingSection
from tests.cluster import Cluster, Result, cluster, greedy

PLACEMENT = {"a": "0:3", "b": "0:4", "c": "2:6", "d": "4:6"}
PROMPTS = [tuple(range(3, 3 + n)) for n in (1, 17, 40, 41, 80, 150)]


async def all_ready(c: Cluster) -> None:
    """Two of the nodes are enough to serve, and would get everything."""
    await c.until(
        lambda: [n.state for n in c.app.status().nodes] == ["ready"] * len(PLACEMENT), "all ready"
    )


async def serve(folder: Path, method: Method) -> tuple[list[Result], set[str]]:
    """All prompts at once; what came, and the nodes that were used."""
    used: set[str] = set()
    async with cluster(folder, PLACEMENT, scheduling=SchedulingSection(method=method, seed=5)) as c:
        await all_ready(c)
        scheduler = c.app.core._scheduler
        choose = scheduler.choose

        def watched(work: int, room: object) -> Route | None:
            route = choose(work, room)  # type: ignore[arg-type]
            used.update(route.nodes if route is not None else ())
            return route

        scheduler.choose = watched  # type: ignore[method-assign,assignment]
        results = await asyncio.gather(*(c.run(greedy(p, 24)) for p in PROMPTS))
    return list(results), used


async def test_every_scheduler_gives_the_same_tokens(tiny_folder: Path) -> None:
    async with cluster(tiny_folder, {"a": "0:6"}) as alone:
        expected = [(await alone.run(greedy(p, 24))).token_ids for p in PROMPTS]
    for method in METHODS:
        results, used = await serve(tiny_folder, method)
        assert [r.token_ids for r in results] == expected, method
        # What the max flow uses depends on what the nodes have measured.
        assert used == set(PLACEMENT) or method == "maxflow"


@pytest.mark.parametrize("method", ["swarm", "shortest-queue"])
async def test_requests_outlive_a_node_whatever_the_scheduler(
    tiny_folder: Path, method: Method
) -> None:
    prompt = tuple(range(5, 30))
    async with cluster(tiny_folder, PLACEMENT, scheduling=SchedulingSection(method=method)) as c:
        await all_ready(c)
        before = await c.run(greedy(prompt, 24))
        runs = [asyncio.create_task(c.run(greedy(prompt, 24))) for _ in range(4)]
        await c.until(lambda: c.app.core.sessions(), "requests run")
        await c.kill("a")
        results = await asyncio.gather(*runs)
    assert {r.token_ids for r in results} == {before.token_ids}
