"""What operators see of a running cluster: the real router and nodes, over HTTP."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from helix_mq.cli import build_app
from helix_mq.errors import ConnectionLost
from router.gateway import GatewayServer
from router.settings import HttpSection, SpeculationSection
from tests.cluster import DEADLINE_S, Cluster, cluster, greedy
from tests.held_steps import held_steps

TWO_WAYS = {"a": "0:3", "b": "0:4", "c": "2:6", "d": "4:6"}


@asynccontextmanager
async def watched(folder: Path, **options: Any) -> AsyncIterator[tuple[Cluster, httpx.AsyncClient]]:
    async with cluster(folder, TWO_WAYS, **options) as c:
        members = c.app.core.cluster.membership
        await c.until(lambda: len(members.serving()) == len(TWO_WAYS), "all are ready")
        gateway = GatewayServer(c.app, HttpSection(port=0), c.app.metrics, operator=c.app)
        await gateway.start()
        try:
            async with httpx.AsyncClient(base_url=gateway.url, timeout=240) as http:
                yield c, http
        finally:
            await gateway.stop()


async def test_the_cluster_and_its_requests_are_seen_while_they_run(tiny_folder: Path) -> None:
    async with watched(tiny_folder, dead_after_s=10.0) as (c, http):

        async def picture() -> Any:
            return (await http.get("/v1/helix/cluster")).json()

        with held_steps(c) as held:
            held.open()
            running = [asyncio.create_task(c.run(greedy((i, 2, 3), 120))) for i in range(6)]

            def outputs() -> list[int]:
                return [len(s.output) for s in c.app.core.sessions().values()]

            await c.until(lambda: len(outputs()) == 6 and min(outputs()) > 5, "tokens flow")
            # They stay where they are while they are looked at.
            held.shut()
            seen = (await http.get("/v1/helix/requests")).json()
            assert seen["total"] == 6
            one = seen["requests"][0]
            assert one["state"] == "decoding"
            assert one["prompt_tokens"] == 3
            assert one["output_tokens"] > 0
            assert {hop["node"] for hop in one["route"]} <= set(TWO_WAYS)
            assert one["route"][0]["layers"].startswith("0-")
            assert one["id"] == f"{min(c.app.core.sessions()):x}"

            async with asyncio.timeout(240):
                # Rates are of two beats with work between them.
                state = await picture()
                while sum(n["tokens_per_s"] for n in state["nodes"]) <= 0:
                    await asyncio.sleep(0.02)
                    state = await picture()
        router = state["router"]
        assert router["running"] + router["waiting"] <= 6 == router["admitted"]
        assert router["refused"] == 0
        assert router["ttft"]["count"] == 6
        assert 0 < router["itl"]["p50_s"] <= router["itl"]["p99_s"]
        assert sum(slot["output_tokens"] for slot in router["history"]) > 0
        nodes = {n["node"]: n for n in state["nodes"]}
        busy = max(nodes.values(), key=lambda n: n["tokens_per_s"])
        assert busy["step_s"] > 0
        assert busy["crossing_requests"] > 0
        assert busy["kv_total_pages"] > busy["kv_used_pages"] >= 0
        assert 1.001 * busy["rate_tokens_per_s"] >= busy["flow_tokens_per_s"] > 0
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
        late = ("suspect", "heard", "slow")
        mine = [h["kind"] for h in happenings if h["node"] == "a" and h["kind"] not in late]
        assert mine == ["joined", "assigned", "ready", "leaving", "drained"]
        c.daemons["b"].stop()
        await c.until(lambda: not c.app.core.cluster.serving, "layers are missing")
        state = await picture()
        assert "not_serving" in [h["kind"] for h in state["happenings"][-3:]]
        assert not state["serving"]
        assert state["bottleneck"] == {"text": "", "tokens_per_s": 0.0, "nodes": [], "links": []}


async def command(*args: str) -> tuple[int, str]:
    """A command of `helix-mq`, in a thread: it brings its own event loop."""
    result = await asyncio.to_thread(CliRunner().invoke, build_app(), list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


async def test_status_and_top_against_a_running_router(tiny_folder: Path) -> None:
    async with watched(tiny_folder, dead_after_s=10.0) as (c, http):
        url = ("--url", str(http.base_url))
        await c.run(greedy((1, 2, 3), 20))
        code, text = await command("status", *url)
        assert code == 0
        assert "tiny, 6 layers: serving" in text
        assert "cap you at" in text or "caps you at" in text
        assert "1 admitted, 0 refused" in text
        code, text = await command("status", "--json", *url)
        assert (code, json.loads(text)["serving"]) == (0, True)
        code, text = await command("top", "--once", *url)
        assert code == 0
        assert "── lately" in text

        code, text = await asyncio.to_thread(_top_on_a_terminal, str(http.base_url))
        assert code == 0
        assert ", 6 layers: " in text

        c.daemons["b"].stop()
        c.daemons["a"].stop()
        await c.until(lambda: not c.app.core.cluster.serving, "layers are missing")
        code, text = await command("status", *url)
        assert code == 1
        assert "NOT SERVING" in text
        assert "layers 0-1 are on no live node" in text
    with pytest.raises(ConnectionLost, match="no router answers at"):
        await command("status", *url)


def _top_on_a_terminal(url: str) -> tuple[int, str]:
    """`helix-mq top` on a terminal of 80 x 24, until it has drawn and a q has ended it."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(child)
    process = subprocess.Popen(
        [sys.executable, "-m", "helix_mq", "top", "--url", url],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    drawn = b""
    try:
        while b"reqs" not in drawn:
            assert select.select([parent], [], [], DEADLINE_S)[0], drawn
            drawn += os.read(parent, 65536)
        os.write(parent, b"jq")
        while select.select([parent], [], [], 0)[0] or process.poll() is None:
            if select.select([parent], [], [], 0.05)[0]:
                drawn += os.read(parent, 65536)
        assert termios.tcgetattr(child) == before, "the terminal is as it was"
        return process.wait(DEADLINE_S), drawn.decode("utf-8", "replace")
    finally:
        process.kill()
        process.wait()
        os.close(parent)
        os.close(child)


async def test_a_trace_says_where_the_time_went(tiny_folder: Path) -> None:
    # One attempt, a token per step and the router's own wires, however busy the machine: counts
    # below are of that.
    steady: dict[str, Any] = {
        "dead_after_s": 60.0,
        "speculation": SpeculationSection(enabled=False),
        "token_return": "router",
    }
    async with watched(tiny_folder, zmq=True, **steady) as (c, http):

        async def trace(request: str) -> Any:
            answer = await http.get(f"/v1/helix/requests/{request}/trace")
            assert answer.status_code == 200, answer.text
            return answer.json()

        with held_steps(c) as held:
            held.open()
            running = asyncio.create_task(c.run(greedy(tuple(range(100)), 350)))
            await c.until(lambda: c.app.metrics.recent.itl().count > 20, "tokens flow")
            held.shut()
            (request,) = c.app.core.sessions()
            live = await trace(f"{request:x}")
            while live["missing"]:
                # On a machine with more to do than it can, nodes do not always answer in time.
                live = await trace(f"{request:x}")
        assert live["state"] == "running"
        # Asked while it runs, nodes answer at once: they know of its prompt and most tokens.
        assert {h["prefill"]["tokens"] for h in live["hops"]} == {100}
        assert min(h["decode"]["steps"] for h in live["hops"]) > 10
        # Hops are a token apart: one slow step among so few may be all of it.
        assert live["wire_s"] >= 0
        result = await running

        stamps = [f"{request:x}", f"cmpl-{request:x}.anything-"]
        one, other = [await trace(name) for name in stamps]
        assert one == other
        assert (one["state"], one["outcome"], one["output_tokens"]) == ("finished", "length", 350)
        assert one["total_s"] == pytest.approx(result.finish.total_s)
        route = [(h["node"], h["layers"]) for h in one["hops"]]
        assert len(route) == len({node for node, _ in route})
        own_s = 0.0
        for hop in one["hops"]:
            assert hop["known"]
            assert hop["prefill"]["tokens"] == 100
            assert hop["decode"]["steps"] == 349
            assert min(hop["decode"][part] for part in ("queue_s", "compute_s", "serialise_s")) > 0
            assert hop["span_s"] <= one["total_s"]
            own_s += sum(hop["decode"][p] for p in ("queue_s", "compute_s", "serialise_s"))
        # Nothing is counted twice, and what no node counts is the wire's.
        assert 0 < own_s < one["decode_s"]
        assert own_s + 349 * one["wire_s"] == pytest.approx(one["decode_s"], rel=1e-6)
        assert sum(w["decode_s"] for w in one["wires"]) == pytest.approx(one["wire_s"])
        assert [w["sender"] for w in one["wires"]] == ["@router", *(node for node, _ in route)]

        await c.until(lambda: all(not d._slices.tracer._left for d in c.daemons.values()), "told")
        assert all(len(d._slices.tracer) == 0 for d in c.daemons.values())
        unknown = await http.get("/v1/helix/requests/abc/trace")
        assert unknown.status_code == 404
        assert "no trace of a request 'abc'" in unknown.json()["error"]["message"]
        assert not c.app.bad_messages
        code, text = await command("trace", f"{request:x}", "--url", str(http.base_url))
        assert code == 0
        assert f"Request {request:x}: finished (length); 100 prompt and 350 output" in text
        assert "then 349 more," in " ".join(text.split())
        assert "On the wire" in text
        code, text = await command("trace", "--url", str(http.base_url))
        assert (code, text.strip()) == (0, "No request is under way.")
