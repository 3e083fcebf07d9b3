"""What operators see of a running cluster: the real router and nodes, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from router.gateway import GatewayServer
from router.settings import HttpSection
from tests.cluster import Cluster, cluster, greedy

TWO_WAYS = {"a": "0:3", "b": "0:4", "c": "2:6", "d": "4:6"}


@asynccontextmanager
async def watched(folder: Path, **options: Any) -> AsyncIterator[tuple[Cluster, httpx.AsyncClient]]:
    async with cluster(folder, TWO_WAYS, **options) as c:
        gateway = GatewayServer(c.app, HttpSection(port=0), c.app.metrics, operator=c.app)
        await gateway.start()
        try:
            async with httpx.AsyncClient(base_url=gateway.url) as http:
                yield c, http
        finally:
            await gateway.stop()


async def test_the_cluster_and_its_requests_are_seen_while_they_run(tiny_folder: Path) -> None:
    async with watched(tiny_folder) as (c, http):
        running = [asyncio.create_task(c.run(greedy((i, 2, 3), 200))) for i in range(6)]
        await c.until(lambda: c.app.metrics.recent.itl().count > 50, "tokens flow")
        seen = (await http.get("/v1/helix/requests")).json()
        assert seen["total"] == 6
        one = seen["requests"][0]
        assert one["state"] == "decoding"
        assert one["prompt_tokens"] == 3
        assert one["output_tokens"] > 0
        assert {hop["node"] for hop in one["route"]} <= set(TWO_WAYS)
        assert one["route"][0]["layers"].startswith("0-")
        assert one["id"] == f"{min(c.app.core.sessions()):x}"

        async def picture() -> Any:
            return (await http.get("/v1/helix/cluster")).json()

        async with asyncio.timeout(30):
            # Rates are of two beats with work between them.
            state = await picture()
            while sum(n["tokens_per_s"] for n in state["nodes"]) <= 0:
                await asyncio.sleep(0.02)
                state = await picture()
        router = state["router"]
        assert (router["running"], router["waiting"], router["admitted"]) == (6, 0, 6)
        assert router["refused"] == 0
        assert router["ttft"]["count"] == 6
        assert 0 < router["itl"]["p50_s"] <= router["itl"]["p99_s"]
        assert router["history"][-1]["output_tokens"] > 0
        nodes = {n["node"]: n for n in state["nodes"]}
        busy = max(nodes.values(), key=lambda n: n["tokens_per_s"])
        assert busy["step_s"] > 0
        assert busy["crossing_requests"] > 0
        assert busy["kv_total_pages"] > busy["kv_used_pages"] >= 0
        assert busy["rate_tokens_per_s"] >= busy["flow_tokens_per_s"] > 0
        assert nodes["a"]["first_layer"] == 0
        assert nodes["a"]["end_layer"] == 3
        back = sum(x["flow_tokens_per_s"] for x in state["links"] if x["receiver"] == "@router")
        out = sum(x["flow_tokens_per_s"] for x in state["links"] if x["sender"] == "@router")
        flow = state["flow_tokens_per_s"]
        assert abs(back - flow) < 1e-3 * flow
        assert abs(out - flow) < 1e-3 * flow
        assert "CPU node" in state["bottleneck"]["text"]
        assert state["bottleneck"]["text"].endswith("tokens/s")
        assert set(state["bottleneck"]["nodes"]) == {n for n, x in nodes.items() if x["caps"]}
        kinds = [h["kind"] for h in state["happenings"]]
        assert kinds.count("joined") == kinds.count("ready") == 4
        assert "serving" in kinds
        await asyncio.gather(*running)
        assert (await http.get("/v1/helix/requests")).json() == {"total": 0, "requests": []}

        reply = await http.post("/v1/helix/nodes/a/drain")
        assert reply.status_code == 202
        await c.until(lambda: "a" not in c.app.core.cluster.membership, "a leaves")
        happenings = (await picture())["happenings"]
        mine = [h["kind"] for h in happenings if h["node"] == "a"]
        assert mine == ["joined", "assigned", "ready", "leaving", "drained"]
        await c.kill("b")
        await c.until(lambda: not c.app.core.cluster.serving, "layers are missing")
        state = await picture()
        assert state["happenings"][-1]["kind"] == "not_serving"
        assert not state["serving"]
        assert state["bottleneck"] == {"text": "", "tokens_per_s": 0.0, "nodes": [], "links": []}
