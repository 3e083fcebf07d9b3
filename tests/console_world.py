"""What the console's tests look at: a live cluster behind HTTP in a thread of its own, and pictures
of clusters that are too large to run here."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from helix_mq.messages.control import StepTimes
from router.gateway import GatewayServer
from router.settings import HttpSection
from tests.cluster import Cluster, cluster

KEY = "sk-console-test"
WAIT_S = 240
NODES = {"alpha": "0:2", "beta": "2:4", "gamma": "4:6", "delta": "2:6"}
REGIONS = {"alpha": "eu-west", "beta": "eu-west", "gamma": "us-east", "delta": "us-east"}
TIMES = StepTimes(((1.0, 1e-3), (256.0, 1e-2)), ((1.0, 1e-3), (64.0, 2e-3)))

_T = TypeVar("_T")


@dataclass
class World:
    url: str
    cluster: Cluster
    loop: asyncio.AbstractEventLoop

    def run(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """On the cluster's loop, waiting for it."""

        async def there() -> _T:
            return await work()

        return asyncio.run_coroutine_threadsafe(there(), self.loop).result(WAIT_S)


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """A cluster of four nodes in two regions that serves HTTP with an API key."""
    begun: Future[World] = Future()
    over: list[asyncio.Event] = []

    async def live() -> None:
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        async with cluster(folder, NODES, regions=REGIONS, times=TIMES) as running:
            settings = HttpSection(port=0, api_keys=(digest,))
            app = running.app
            members = app.core.cluster.membership
            await running.until(lambda: len(members.serving()) == len(NODES), "all are ready")
            gateway = GatewayServer(app, settings, app.metrics, operator=app)
            await gateway.start()
            try:
                over.append(asyncio.Event())
                begun.set_result(World(gateway.url, running, asyncio.get_running_loop()))
                await over[0].wait()
            finally:
                await gateway.stop()

    def main() -> None:
        try:
            asyncio.run(live())
        except BaseException as e:
            if begun.done():
                raise
            begun.set_exception(e)

    thread = threading.Thread(target=main, name="console-world")
    thread.start()
    made = begun.result(WAIT_S)
    try:
        yield made
    finally:
        made.loop.call_soon_threadsafe(over[0].set)
        thread.join(WAIT_S)
        assert not thread.is_alive()


def large_picture() -> dict[str, Any]:
    """A cluster of fifty nodes of three kinds in three regions, as the router tells of it."""
    fleets = [
        ("A100-80", "eu-west", 16, 2400.0, 2),
        ("L4", "us-central", 8, 700.0, 2),
        ("T4", "asia-east", 4, 330.0, 1),
    ]
    layers, nodes = 80, list[dict[str, Any]]()
    for kind, region, held, rate, lines in fleets:
        for number in range(lines * layers // held):
            first = (number // lines) * held
            flow = rate * (0.94 if kind == "T4" else 0.5 + 0.04 * (first // 16))
            nodes.append(_node(len(nodes), kind, region, number, (first, first + held), flow, rate))
    nodes[4] |= {"suspect": "not heard for 2.1 s", "heard_s": 2.1}
    nodes[11] |= {"state": "loading", "next_layers": "0-7", "flow_tokens_per_s": 0.0}
    nodes[17] |= {"leaving": True}
    for node in nodes[-2:]:
        node |= {"caps": True, "flow_tokens_per_s": node["rate_tokens_per_s"]}
    links = []
    for node in nodes:
        flow, name, region = node["flow_tokens_per_s"], node["node"], node["region"]
        if node["first_layer"] == 0:
            links.append(_link("@router", name, flow, None))
        if node["end_layer"] == layers:
            links.append(_link(name, "@router", flow, 9000.0))
        after = [n for n in nodes if n["first_layer"] == node["end_layer"]]
        near = [n for n in after if n["region"] == region]
        for target in near:
            part = 0.9 * flow / len(near)
            links.append(_link(name, target["node"], part, part * 3))
        if far := next((n for n in after if n["region"] != region), None):
            links.append(_link(name, far["node"], 0.1 * flow, 0.1 * flow * 1.3))
    history = [
        {
            "at_s": 1_700_000_000.0 - 300 + 10 * slot,
            "output_tokens": 9000 + 400 * (slot % 5),
            "ttft": {"count": 9, "p50_s": 0.3 + 0.01 * slot, "p90_s": 0.8, "p99_s": 1.4},
            "itl": {"count": 99, "p50_s": 0.04, "p90_s": 0.06, "p99_s": 0.09 + 0.001 * slot},
        }
        for slot in range(30)
    ]
    return {
        "serving": True,
        "reason": "",
        "epoch": 7,
        "flow_tokens_per_s": 6120.0,
        "doing": "waiting for l4-03 to load for the next placement",
        "verdict": "nodes came or went, or their speed changed: max flow 5904 -> 6120 tokens/s",
        "searches": 3,
        "nodes": nodes,
        "links": links,
        "router": {
            "version": "0.1.0",
            "model": "Llama-3.1-70B-Instruct",
            "num_layers": layers,
            "now_s": 1_700_000_000.0,
            "uptime_s": 93_000.0,
            "waiting": 12,
            "running": 311,
            "max_waiting": 1024,
            "admitted": 182_311,
            "refused": 41,
            "refused_by": {"queue_full": 38, "cluster_full": 3},
            "output_tokens_per_s": 1042.0,
            "over_s": 300.0,
            "ttft": {"count": 3000, "p50_s": 0.41, "p90_s": 0.8, "p99_s": 1.4},
            "itl": {"count": 90_000, "p50_s": 0.041, "p90_s": 0.06, "p99_s": 0.11},
            "history": history,
        },
        "bottleneck": {
            "text": "the two T4s holding layers 72-79 (t4-18, t4-19) cap you at 6,120 tokens/s",
            "tokens_per_s": 6120.0,
            "nodes": ["t4-18", "t4-19"],
            "links": [],
        },
        "happenings": [
            _event(1_700_000_000.0 - 800, "info", "joined", "t4-15", "joined: cuda:0 NVIDIA T4"),
            _event(1_700_000_000.0 - 700, "info", "shifted", "", "shifted to epoch 7"),
            _event(
                1_700_000_000.0 - 3, "warning", "suspect", "l4-01", "suspect: not heard for 2.1 s"
            ),
        ],
    }


def _node(
    serial: int,
    kind: str,
    region: str,
    number: int,
    held: tuple[int, int],
    flow: float,
    rate: float,
) -> dict[str, Any]:
    return {
        "node": f"{kind.lower()}-{number:02d}",
        "state": "ready",
        "layers": f"{held[0]}-{held[1] - 1}",
        "next_layers": "",
        "epoch": 7,
        "incarnation": serial,
        "device": f"cuda:0 NVIDIA {kind}",
        "leaving": False,
        "kind": kind,
        "region": region,
        "first_layer": held[0],
        "end_layer": held[1],
        "suspect": "",
        "failure": "",
        "heard_s": 0.4,
        "memory_bytes": 24 << 30,
        "kv_used_pages": (serial * 37) % 900,
        "kv_total_pages": 1000,
        "crossing_requests": (serial * 5) % 40,
        "open_requests": 3,
        "waiting_rows": 0,
        "tokens_per_s": flow * 0.8,
        "flow_tokens_per_s": flow,
        "rate_tokens_per_s": rate,
        "busy_share": flow / rate * 0.9,
        "step_s": 0.012 + 0.001 * (serial % 9),
        "expected_step_s": 0.012,
        "slowdown": 1.0,
        "caps": False,
    }


def _link(sender: str, receiver: str, flow: float, capacity: float | None) -> dict[str, Any]:
    return {
        "sender": sender,
        "receiver": receiver,
        "flow_tokens_per_s": flow,
        "capacity_tokens_per_s": capacity,
        "bytes_per_s": flow * 16_384,
        "acknowledged_bytes_per_s": 0.0,
        "probed_bytes_per_s": 1.2e8,
        "round_trip_s": 0.04,
        "backlog_bytes": 0,
        "blocked_share": 0.0,
        "down_s": 0.0,
        "closed": False,
        "caps": False,
    }


def _event(at_s: float, level: str, kind: str, node: str, text: str) -> dict[str, Any]:
    return {"at_s": at_s, "level": level, "kind": kind, "node": node, "text": text}


def large_requests() -> dict[str, Any]:
    route = [
        {"node": "a100-80-00", "layers": "0-15"},
        {"node": "a100-80-02", "layers": "16-31"},
        {"node": "a100-80-04", "layers": "32-47"},
        {"node": "a100-80-06", "layers": "48-63"},
        {"node": "a100-80-08", "layers": "64-79"},
    ]
    return {
        "total": 323,
        "requests": [
            {
                "id": f"19a4f{number:04x}",
                "state": "decoding" if number > 3 else "prefilling",
                "age_s": 120.0 - number,
                "deadline_in_s": 480.0,
                "prompt_tokens": 812 + number,
                "output_tokens": 40 * number,
                "max_tokens": 4096,
                "route": route,
                "at": "",
                "since_token_s": 0.03,
                "reroutes": 1 if number == 5 else 0,
                "background": number == 7,
                "owner": "",
            }
            for number in range(60)
        ],
    }
