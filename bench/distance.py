"""A whole cluster in one process whose members are apart: real sockets, each link with its delay.

For benches that need distance and no other hardware. The router and the nodes are those of
production over TCP on loopback; between any two of them stands a relay that delays what passes.
One event loop serves them all, so what is computed must be small beside the delays.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from bench.routed import RoutedTransport
from bench.shaped_tcp import ShapedTcp
from helix_mq.clock import SystemClock
from helix_mq.ids import ROUTER, NodeId
from helix_mq.models.digest import model_digest
from helix_mq.transport import Transport, ZmqTransport
from nodes.daemon import NodeDaemon
from nodes.identity import NodeIdentity
from nodes.security import NodeSecurity
from nodes.settings import NodeSettings
from nodes.settings import SecuritySection as NodeSecuritySection
from router.app import RouterApp
from router.main import build_app
from router.service import Broken, Delta, Finished, Generation
from router.settings import PlacementSection, RouterSettings

ANY_PORT = "tcp://127.0.0.1:0"
FAST_BYTES_PER_S = 1e9
READY_S = 240.0

Delay = Callable[[str, str], float]
"""(member that connects, member it connects to) -> seconds one way, both ways the same. The router
is `helix_mq.ids.ROUTER`; 0 is a connection without a relay."""


def around_router(router_s: float, between_s: float = 0.0) -> Delay:
    """Nodes near each other, the router `router_s` away from all of them."""

    def delay_s(one: str, other: str) -> float:
        return router_s if ROUTER in (one, other) else between_s

    return delay_s


class Distances:
    """The relays of one cluster. `transport(member)` is the network as that member sees it."""

    def __init__(self, delay_s: Delay, bytes_per_s: float = FAST_BYTES_PER_S) -> None:
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self._sockets = ZmqTransport()
        self._owners: dict[str, str] = {}
        self._relays: dict[tuple[str, str], list[ShapedTcp]] = {}

    def transport(self, member: str) -> Transport:
        return RoutedTransport(
            self._sockets,
            partial(self._way, member),
            lambda endpoint: self._owners.update({endpoint: member}),
        )

    def swallow(self, one: str, other: str) -> None:
        """From now on nothing passes on what `one` connected to `other`; nothing is closed.

        Raises KeyError where no relay stands between them."""
        for relay in self._relays[one, other]:
            relay.swallow()

    def let_through(self, one: str, other: str) -> None:
        for relay in self._relays[one, other]:
            relay.let_through()

    async def _way(self, member: str, endpoint: str) -> str:
        owner = self._owners[endpoint]
        delay_s = self._delay_s(member, owner)
        if not delay_s:
            return endpoint
        relay = ShapedTcp(int(endpoint.rpartition(":")[2]), self._bytes_per_s, delay_s)
        self._relays.setdefault((member, owner), []).append(relay)
        return await relay.start()

    async def close(self) -> None:
        for relays in self._relays.values():
            for relay in relays:
                await relay.close()
        await self._sockets.close()


@dataclass(frozen=True, slots=True)
class Timed:
    """A finished stream: its tokens, and when each came, on the loop's clock."""

    token_ids: tuple[int, ...]
    text: str
    finish: Finished
    started_s: float
    token_s: tuple[float, ...]

    @property
    def ttft_s(self) -> float:
        return self.token_s[0] - self.started_s

    @property
    def tpot_s(self) -> float:
        """Mean seconds per token after the first."""
        return (self.token_s[-1] - self.token_s[0]) / max(1, len(self.token_s) - 1)


@dataclass
class DistantCluster:
    """A running cluster; see `distant_cluster`."""

    app: RouterApp
    distances: Distances
    daemons: dict[str, NodeDaemon] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def run(self, generation: Generation) -> Timed:
        """Submits at the router itself, so the way from client to router counts for nothing."""
        loop = asyncio.get_running_loop()
        started_s, token_s = loop.time(), list[float]()
        deltas: list[Delta] = []
        async for event in self.app.submit(generation):
            match event:
                case Delta():
                    deltas.append(event)
                    token_s.append(loop.time())
                case Finished():
                    ids = tuple(d.token for d in deltas if d.token is not None)
                    text = "".join(d.text for d in deltas)
                    return Timed(ids, text, event, started_s, tuple(token_s))
                case Broken():
                    raise event.error
        raise AssertionError("the stream ended without an end")


@asynccontextmanager
async def distant_cluster(
    folder: Path,
    placement: Mapping[str, str],
    delay_s: Delay,
    *,
    settings: Mapping[str, object] | None = None,
    memory_bytes: int = 64 << 20,
    bytes_per_s: float = FAST_BYTES_PER_S,
) -> AsyncIterator[DistantCluster]:
    """A cluster that serves, with one node per entry of `placement` ("first:end").

    `settings`: more of the router's settings, by their names in router.toml. `bytes_per_s`: of each
    connection with a delay, in the direction from who connects.
    """
    distances = Distances(delay_s, bytes_per_s)
    router = RouterSettings.model_validate(
        {
            "model": folder,
            "model_name": "bench",
            "control": ANY_PORT,
            "clients": ANY_PORT,
            "data": ANY_PORT,
            "placement": PlacementSection(
                nodes={NodeId(n): r for n, r in placement.items()}, nodes_expected=len(placement)
            ),
            **(settings or {}),
        }
    )
    app = build_app(router, folder, distances.transport(ROUTER), SystemClock())
    await app.start()
    running = DistantCluster(app, distances)
    try:
        for name in placement:
            _start_node(running, name, folder, memory_bytes)
        await _serving(running)
        yield running
    finally:
        for daemon in running.daemons.values():
            daemon.stop()
        await asyncio.gather(*running.tasks, return_exceptions=True)
        await app.close()
        await distances.close()


def _start_node(running: DistantCluster, name: str, folder: Path, memory_bytes: int) -> None:
    settings = NodeSettings(
        name=name,
        router=running.app.control_endpoint,
        listen=ANY_PORT,
        model=folder,
        memory=memory_bytes,
        heartbeat_s=0.5,
        # One process is all of them: what loads or computes may hold up the others' signs of life.
        link_down_after_s=60.0,
    )
    identity = NodeIdentity(
        folder=folder,
        model_digest=model_digest(folder),
        device=torch.device("cpu"),
        device_text="cpu",
        dtype=torch.float32,
        memory_bytes=memory_bytes,
    )
    security = NodeSecurity(NodeSecuritySection())
    transport = running.distances.transport(name)
    daemon = NodeDaemon(settings, identity, transport, security, SystemClock())
    running.daemons[name] = daemon
    running.tasks.append(asyncio.create_task(daemon.run(), name=f"node-{name}"))


async def _serving(running: DistantCluster) -> None:
    async with asyncio.timeout(READY_S):
        while not running.app.status().serving:
            for task in running.tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)
