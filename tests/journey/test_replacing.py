"""A running cluster changes its placement under load: no request fails, no token differs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange
from router.gateway import GatewayServer
from router.settings import HttpSection
from tests.cluster import Cluster, Result, cluster, greedy

PLACEMENT = {"a": "0:3", "b": "3:6"}
FIRST = {"a": (0, 3), "b": (3, 6)}
OTHER = {"a": (0, 2), "b": (2, 6)}
PROMPTS = [tuple(range(3, 3 + n)) for n in (1, 17, 40, 41, 80, 150, 9, 23)]
TOKENS = 24


async def expected(folder: Path) -> list[tuple[int, ...]]:
    async with cluster(folder, {"a": "0:6"}) as alone:
        return [(await alone.run(greedy(p, TOKENS))).token_ids for p in PROMPTS]


def place(c: Cluster, ranges: Mapping[str, tuple[int, int]]) -> None:
    c.app.place({NodeId(n): LayerRange(*r) for n, r in ranges.items()})


def holds(c: Cluster, ranges: Mapping[str, tuple[int, int]]) -> bool:
    """The placement is made, and nothing is left of the one before."""
    picture = c.app.picture()
    layers = {n.node: n.layers for n in picture.nodes if n.layers}
    wanted = {n: f"{a}-{b - 1}" for n, (a, b) in ranges.items()}
    return layers == wanted and not picture.doing and not c.app.core.cluster.moves.unsettled


@asynccontextmanager
async def load(c: Cluster, results: dict[int, list[Result]]) -> AsyncIterator[None]:
    """Every prompt again and again until the block ends; the last of each runs to its end."""
    ending = asyncio.Event()

    async def one(number: int) -> None:
        while not ending.is_set():
            results.setdefault(number, []).append(await c.run(greedy(PROMPTS[number], TOKENS)))

    async with asyncio.TaskGroup() as streams:
        for number in range(len(PROMPTS)):
            streams.create_task(one(number))
        yield
        ending.set()


@pytest.mark.parametrize("zmq", [False, True])
async def test_all_nodes_change_under_load_and_nobody_notices(tiny_folder: Path, zmq: bool) -> None:
    right = await expected(tiny_folder)
    results: dict[int, list[Result]] = {}
    async with cluster(tiny_folder, PLACEMENT, zmq=zmq) as c:
        async with load(c, results):
            for target in (OTHER, FIRST, {"a": (2, 6), "b": (0, 2)}):
                place(c, target)
                await c.until(lambda: holds(c, target), "the placement is made")  # noqa: B023
        assert [n for n in c.app.status().nodes if n.state != "ready"] == []
    for number, runs in results.items():
        assert {r.token_ids for r in runs} == {right[number]}
        assert sum(r.finish.reroutes for r in runs) == 0


async def test_a_node_leaves_when_the_others_have_its_layers(tiny_folder: Path) -> None:
    right = await expected(tiny_folder)
    results: dict[int, list[Result]] = {}
    async with cluster(tiny_folder, {**PLACEMENT, "c": "0:6"}) as c:
        await c.until(lambda: holds(c, {**FIRST, "c": (0, 6)}), "all are ready")
        async with load(c, results):
            c.app.drain("a")
            await c.until(lambda: "a" not in c.app.core.cluster.membership, "a has left")
            await c.until(lambda: c.tasks["a"].done(), "its process has ended")
        assert "a" not in {n.node for n in c.app.picture().nodes}
        assert c.app.picture().serving
        c.tasks.pop("a").result()
        del c.daemons["a"]
    for number, runs in results.items():
        assert {r.token_ids for r in runs} == {right[number]}


async def test_placements_that_cannot_be_are_refused_in_words(tiny_folder: Path) -> None:
    async with cluster(tiny_folder, PLACEMENT) as c:
        with pytest.raises(ConfigError, match="layers 2-3 would be on no node"):
            place(c, {"a": (0, 2), "b": (4, 6)})
        with pytest.raises(ConfigError, match="z is not in the cluster"):
            place(c, {"a": (0, 6), "z": (0, 6)})
        with pytest.raises(ConfigError, match="the model has 6 layers"):
            place(c, {"a": (0, 9)})
        place(c, FIRST)
        assert holds(c, FIRST)


async def test_the_operators_pages(tiny_folder: Path) -> None:
    async with cluster(tiny_folder, PLACEMENT) as c:
        server = GatewayServer(c.app, HttpSection(port=0), c.app.metrics, operator=c.app)
        await server.start()
        try:
            async with httpx.AsyncClient(base_url=server.url, timeout=240) as http:
                state = (await http.get("/v1/helix/cluster")).json()
                assert state["serving"]
                assert {n["node"]: n["layers"] for n in state["nodes"]} == {"a": "0-2", "b": "3-5"}
                answer = await http.post("/v1/helix/placement", json={"slices": OTHER})
                assert answer.status_code == 202
                await c.until(lambda: holds(c, OTHER), "the placement is made")
                unknown = await http.post("/v1/helix/nodes/nobody/drain")
                assert unknown.status_code == 404
                said = unknown.json()["error"]["message"]
                assert said == "no node 'nobody' is in the cluster: there are a, b"
                for bad in (b"", b"[]", b'{"slices": {}}', b'{"slices": {"a": [3, 1]}}'):
                    refused = await http.post("/v1/helix/placement", content=bad)
                    assert refused.status_code == 400
                    assert "slices" in refused.json()["error"]["message"]
                busy = await http.post("/v1/helix/replan")
                assert busy.status_code == 202
                await c.until(lambda: not c.app.picture().doing, "the search has ended")
                assert "has not measured itself" in c.app.picture().verdict
        finally:
            await server.stop()
