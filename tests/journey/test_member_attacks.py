"""Strangers at the door and members beyond their turn: what they leave, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helix_mq.clock import SystemClock
from helix_mq.dataplane import DataPlane, PlaneHandlers, PlaneIdentity
from helix_mq.frames import pack_route
from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages import control, data
from helix_mq.outlink import PeerAddress
from helix_mq.sampling import SamplingParams
from helix_mq.transport import Connection, MemoryTransport
from tests.attacker import attacker, bad
from tests.cluster import Cluster, cluster, greedy

CHAIN = {"a": "0:3", "b": "3:6"}
ROUTE = pack_route(Route((Hop(NodeId("a"), LayerRange(0, 3)), Hop(NodeId("b"), LayerRange(3, 6)))))
PROMPT = (1, 2, 3)
SPEC = data.SampleSpec(SamplingParams(logprobs=True, top_logprobs=2), 1, 0)


def register(c: Cluster, node: str, incarnation: int, **fields: object) -> control.Register:
    values: dict[str, object] = {
        "data_endpoint": "mem://nobody", "data_public_key": "", "device": "cpu",
        "memory_bytes": 1 << 30, "dtype_bytes": 4, "model_digest": c.app.core.cluster._digest,
        "version": "1",
    } | fields  # fmt: skip
    return control.Register(node, incarnation, **values)  # type: ignore[arg-type]


def beat(node: str, incarnation: int) -> control.Heartbeat:
    return control.Heartbeat(node, incarnation, 1, 0, 0, 0, 0, 0, 0, 0, 0.0, 0, 0, 0, ())


async def test_strangers_leave_nothing_behind(tiny_folder: Path) -> None:
    async with cluster(tiny_folder, CHAIN) as c, attacker(c, c.app.control_endpoint) as evil:
        for i in range(1000):
            evil.say(register(c, f"wrong{i}", i, model_digest="another model's"))
            evil.say(beat(f"unknown{i}", i))
        for i, member in enumerate(c.app.core.cluster.membership):
            # In a member's name, and as one who comes after it.
            evil.say(beat(member.name, member.register.incarnation))
            evil.say(beat(member.name, 100 + i))
        evil.say(register(c, "@router", 7))
        await c.until(lambda: bad(c, control_id(c)) == 3, "the lies were counted")
        assert sorted(m.name for m in c.app.core.cluster.membership) == ["a", "b"]
        assert len(c.app._door) == 2
        await c.until(lambda: len(evil.heard) == 2002, "all were answered")
        assert (await c.run(greedy(PROMPT, 5))).finish.output_tokens == 5


async def test_what_a_lost_node_still_says_is_left_out(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It hung, and does not know yet that it was taken for lost; or the router has started anew."""
    caplog.set_level("INFO", "router.app")
    async with cluster(tiny_folder, CHAIN) as c, attacker(c, c.app.control_endpoint) as late:
        late.say(control.Ready(c.app.core.cluster.epoch, 0, 3, 9, 16, 0.1, 1.0, ""))
        late.say(control.Traces(()))
        await c.until(lambda: bad(c, control_id(c)) == 2, "both were counted")
        assert (await c.run(greedy(PROMPT, 5))).finish.output_tokens == 5
    assert "a message of a process that is no member" in caplog.text
    assert "bad message" not in caplog.text


def control_id(c: Cluster) -> str:
    """Bad messages on the control socket are counted by connection."""
    return next((who for who, _ in c.app.bad_messages), "")


async def test_a_flood_of_nodes_stops_at_the_limit(tiny_folder: Path) -> None:
    """Everybody connects to everybody: without a limit sockets run out, and processes end."""
    async with (
        cluster(tiny_folder, CHAIN, zmq=True, dead_after_s=60.0) as c,
        attacker(c, c.app.control_endpoint) as evil,
    ):
        core = c.app.core.cluster
        core._settings = replace(core._settings, max_nodes=20)
        endpoints = [
            "tcp://127.0.0.1:9",
            "tcp://127.0.0.1:99999",
            "",
            "tcp://[::1]:9",
            "inproc://x",
        ]
        for i in range(600):
            evil.say(register(c, f"n{i}", i, data_endpoint=endpoints[i % 5]))
        await c.until(lambda: len(core.membership) == 20, "it is full")
        assert (await c.run(greedy(PROMPT, 5))).finish.output_tokens == 5
        # Not before: on a slow machine the flood takes its time, in which nobody is heard.
        core._settings = replace(core._settings, dead_after_s=1.0)
        await c.until(lambda: len(core.membership) == 2, "the silent ones are forgotten")
        core._settings = replace(core._settings, dead_after_s=60.0)
        await c.ready()
        await c.add_node("late")
        peers = c.daemons["late"]._plane._out
        await c.until(lambda: sorted(peers) == ["@router", "a", "b"], "it knows its peers")
        assert (await c.run(greedy(PROMPT, 5))).finish.output_tokens == 5


async def test_more_peers_than_sockets_cost_the_others_nothing() -> None:
    """One peer too many is one that cannot be reached, whatever the transport raises."""
    transport = MemoryTransport()
    connect = transport.connect

    async def connect_some(endpoint: str, *args: Any, **more: Any) -> Connection:
        if endpoint == "mem://bad":
            raise RuntimeError("too many open files")
        return await connect(endpoint, *args, **more)

    transport.connect = connect_some  # type: ignore[method-assign,assignment]
    handlers = PlaneHandlers(lambda *_: None, lambda _: None, lambda: None)
    plane = DataPlane(PlaneIdentity("me", 1), handlers, transport, SystemClock())
    await plane.bind("mem://me", None)
    names = ["first", "bad", "last"]
    await plane.set_peers({n: PeerAddress(n, 1, f"mem://{n}") for n in names})
    assert sorted(plane._out) == ["first", "last"]
    await plane.close()
    await transport.close()
