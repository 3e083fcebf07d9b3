"""A node that cannot reach another one, in a running cluster over real sockets: a detour, the same
tokens, and the way back once the link works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from helix_mq.ids import ROUTER, NodeId, RequestId
from helix_mq.layers import Route
from helix_mq.outlink import PeerAddress
from helix_mq.transport import Transport, ZmqTransport
from helix_mq.transport.zmq_connection import ZmqConnection
from router.schedulers_base import Method
from router.settings import SchedulingSection
from tests.cluster import Cluster, cluster, greedy
from tests.tcp_gate import TcpGate

DETOUR = {"a": "0:3", "b": "3:6", "c": "3:6"}
PROMPTS = [tuple(range(3, 3 + n)) for n in (1, 17, 40, 41, 80, 150)]
TOKENS = 24
LONG = 160
"""Tokens of requests that something is to happen to meanwhile."""


class Diverted(ZmqTransport):
    """Dials another address than it is told, for some."""

    def __init__(self, instead_of: dict[str, str]) -> None:
        super().__init__()
        self._instead_of = instead_of

    async def connect(self, endpoint: str, *args: Any, **options: Any) -> ZmqConnection:
        return await super().connect(self._instead_of.get(endpoint, endpoint), *args, **options)


@dataclass
class Cut:
    """A cluster in which `a` reaches `b` through a gate only; everybody else goes straight."""

    cluster: Cluster
    gate: TcpGate
    routes: list[tuple[str, ...]] = field(default_factory=list)
    """As they were given, the newest last."""

    @property
    def closed(self) -> bool:
        return (NodeId("a"), NodeId("b")) in self.cluster.app.core.cluster.links.closed

    def crossing(self) -> list[tuple[str, ...]]:
        return [nodes for nodes in self.routes if ("a", "b") in pairwise(nodes)]

    def running_over_it(self) -> list[RequestId]:
        sessions = self.cluster.app.core.sessions().values()
        return [s.request for s in sessions if s.route is not None and s.route.nodes == ("a", "b")]

    def link_up(self) -> bool:
        member = self.cluster.app.core.cluster.membership.get("a")
        assert member is not None
        beat = member.beat
        return beat is not None and any(k.peer == "b" and not k.down_s for k in beat.links)


def watched(routes: list[tuple[str, ...]], choose: Callable[..., Route | None]) -> Any:
    def choosing(work_tokens: int, room: Any) -> Route | None:
        route = choose(work_tokens, room)
        if route is not None:
            routes.append(route.nodes)
        return route

    return choosing


@asynccontextmanager
async def cut(folder: Path, method: Method, *, is_open: bool) -> AsyncIterator[Cut]:
    scheduling = SchedulingSection(method=method, seed=3)
    async with cluster(folder, DETOUR, zmq=True, scheduling=scheduling) as c:
        membership = c.app.core.cluster.membership
        await c.until(lambda: len(membership.serving()) == 3, "all are ready")
        b = membership.get("b")
        assert b is not None
        straight = b.register.data_endpoint
        gate = TcpGate(int(straight.rsplit(":", 1)[1]), is_open=is_open)
        diverted = Diverted({straight: await gate.start()})
        plain: Transport = c.transport
        try:
            await c.kill("a")
            c.transport = diverted
            await c.add_node("a")
            c.transport = plain
            running = Cut(c, gate)
            await c.until(lambda: "a" in [m.name for m in membership.serving()], "a is back")
            scheduler = c.app.core._scheduler
            scheduler.choose = watched(running.routes, scheduler.choose)  # type: ignore[method-assign]
            yield running
            await c.quiet()
            await c.kill("a")
        finally:
            await gate.close()
            await diverted.close()


async def expected(folder: Path, tokens: int) -> list[tuple[int, ...]]:
    async with cluster(folder, {"one": "0:6"}) as alone:
        return [(await alone.run(greedy(p, tokens))).token_ids for p in PROMPTS]


@pytest.mark.parametrize("method", ["maxflow", "shortest-queue"])
async def test_a_link_that_never_comes_up_loses_no_request(
    tiny_folder: Path, method: Method
) -> None:
    wanted = await expected(tiny_folder, TOKENS)
    async with cut(tiny_folder, method, is_open=False) as x:
        c = x.cluster
        runs = [asyncio.create_task(c.run(greedy(p, TOKENS))) for p in PROMPTS]
        await c.until(lambda: len(x.routes) >= len(PROMPTS), "all have routes")
        if method == "shortest-queue":
            assert x.crossing(), "nobody knows yet"
        assert [r.token_ids for r in await asyncio.gather(*runs)] == wanted
        await c.until(lambda: x.closed, "the router knows")
        assert x.gate.passed_bytes == 0
        down = [(k.sender, k.receiver) for k in c.app.status().links if k.down_s > 1]
        assert down == [("a", "b")]
        x.routes.clear()
        again = await asyncio.gather(*(c.run(greedy(p, TOKENS)) for p in PROMPTS))
        assert [r.token_ids for r in again] == wanted
        assert set(x.routes) == {("a", "c")}
        assert {r.finish.reroutes for r in again} == {0}

        x.gate.open()
        await c.until(lambda: not x.closed, "the link is used again")
        x.routes.clear()
        # Alone the max flow may be content with the other way; without it, it must come this one.
        c.daemons.pop("c").stop()
        await c.tasks.pop("c")
        back = await asyncio.gather(*(c.run(greedy(p, TOKENS)) for p in PROMPTS))
        assert [r.token_ids for r in back] == wanted
        assert set(x.routes) == {("a", "b")}
        assert x.gate.passed_bytes > 0


async def test_a_link_that_is_cut_under_load_moves_what_crosses_it(tiny_folder: Path) -> None:
    wanted = await expected(tiny_folder, LONG)
    async with cut(tiny_folder, "shortest-queue", is_open=True) as x:
        c = x.cluster
        await c.until(x.link_up, "a reaches b")
        runs = [asyncio.create_task(c.run(greedy(p, LONG))) for p in PROMPTS]
        await c.until(lambda: x.running_over_it(), "some run over the link")
        await x.gate.shut()
        await c.until(lambda: x.closed, "the router knows")
        at = len(x.routes)
        results = await asyncio.gather(*runs)
        assert [r.token_ids for r in results] == wanted
        assert max(r.finish.reroutes for r in results) >= 1
        assert x.crossing()
        assert ("a", "b") not in x.routes[at:]


async def test_a_node_that_the_router_has_no_link_to_gets_no_requests(tiny_folder: Path) -> None:
    wanted = await expected(tiny_folder, TOKENS)
    async with cluster(tiny_folder, {"a": "0:6", "b": "0:6"}) as c:
        core = c.app.core
        await c.until(lambda: len(core.cluster.membership.serving()) == 2, "both are ready")
        a = core.cluster.membership.get("a")
        assert a is not None
        only = PeerAddress("a", a.register.incarnation, a.register.data_endpoint)
        await c.app._plane.set_peers({"a": only})
        runs = await asyncio.gather(*(c.run(greedy(p, TOKENS)) for p in PROMPTS))
        assert [r.token_ids for r in runs] == wanted
        await c.until(lambda: (ROUTER, "b") in core.cluster.links.closed, "the router knows")
        again = await asyncio.gather(*(c.run(greedy(p, TOKENS)) for p in PROMPTS))
        assert [r.token_ids for r in again] == wanted
        assert {r.finish.reroutes for r in again} == {0}
