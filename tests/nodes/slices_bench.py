"""A real node and a router of the test's: control and data, over memory, by hand.

The test says what the router says and sees what it hears; steps, weights and pages are real.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import torch

from helix_mq.clock import SystemClock
from helix_mq.dataplane import DataPlane, InLink, PlaneHandlers, PlaneIdentity
from helix_mq.frames import Message, decode, encode, pack_route
from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages import control, data
from helix_mq.models.digest import model_digest
from helix_mq.outlink import PeerAddress
from helix_mq.sampling import SamplingParams
from helix_mq.transport import Delivery, MemoryTransport
from helix_mq.transport.api import Listener
from nodes.daemon import NodeDaemon
from nodes.identity import NodeIdentity
from nodes.security import NodeSecurity
from nodes.settings import NodeSettings, SecuritySection

WAIT_S = 240.0
LAYERS = 6
WHOLE = (0, LAYERS)
GREEDY = data.SampleSpec(SamplingParams(temperature=0.0, max_tokens=400), 1, 0)


class FakeRouter:
    """What it heard, by kind; `assign`, `retain`, `prompt` ... are what it says."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport
        self._control: Listener | None = None
        self._plane = DataPlane(
            PlaneIdentity(ROUTER, 1),
            PlaneHandlers(self._on_data, lambda peer: None, lambda: None),
            transport,
            SystemClock(),
        )
        self.heard: list[msgspec.Struct] = []
        self.tokens: dict[int, list[int]] = {}
        self.token_epochs: dict[int, set[int]] = {}
        self.refused: list[tuple[int, str]] = []
        self.most = 1 << 30
        """Tokens of a request; the next one is asked for when they may `go_on`."""
        self._held: list[tuple[int, int, int]] = []
        self._next: dict[int, int] = {}
        self._goal: dict[int, int] = {}
        self._epoch: dict[int, int] = {}
        self._peer = b""
        self._changed = asyncio.Event()

    async def start(self) -> None:
        self._control = await self._transport.listen("mem://control", self._on_control)
        await self._plane.bind("mem://router-data", None)

    async def close(self) -> None:
        if self._control is not None:
            await self._control.close()
        await self._plane.close()

    # -- hearing --------------------------------------------------------------

    def _on_control(self, delivery: Delivery) -> None:
        self._peer = delivery.peer
        self.heard.append(decode(delivery.parts).header)
        self._changed.set()

    def _on_data(self, sender: str, message: Message, nbytes: int, link: InLink) -> None:
        match message.header:
            case data.Tokens() as tokens:
                for item in tokens.items:
                    self._on_token(tokens.epoch, item)
            case data.Refused() as refused:
                self.refused += [(i.request, i.code) for i in refused.items]
        self._changed.set()

    def _on_token(self, epoch: int, item: data.TokenItem) -> None:
        got = self.tokens.setdefault(item.request, [])
        got.append(item.token)
        self.token_epochs.setdefault(item.request, set()).add(epoch)
        if len(got) >= self._goal[item.request]:
            return
        if len(got) >= self.most:
            self._held.append((item.request, item.token, item.position))
        else:
            self._row(item.request, [item.token], item.position)

    def of(self, kind: type[msgspec.Struct]) -> list[msgspec.Struct]:
        return [m for m in self.heard if isinstance(m, kind)]

    @property
    def readies(self) -> list[control.Ready]:
        return [m for m in self.heard if isinstance(m, control.Ready)]

    @property
    def failures(self) -> list[control.AssignFailed]:
        return [m for m in self.heard if isinstance(m, control.AssignFailed)]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until the condition holds, looking whenever something is heard (or now and then,
        for what a node does without a word)."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                try:
                    async with asyncio.timeout(0.02):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    async def ready(self, epoch: int) -> control.Ready:
        await self.until(
            lambda: (
                any(r.epoch == epoch for r in self.readies)
                or any(f.epoch == epoch for f in self.failures)
            )
        )
        assert [f for f in self.failures if f.epoch == epoch] == []
        return [r for r in self.readies if r.epoch == epoch][-1]

    async def failed(self, epoch: int) -> control.AssignFailed:
        await self.until(lambda: any(f.epoch == epoch for f in self.failures))
        return next(f for f in self.failures if f.epoch == epoch)

    # -- saying ---------------------------------------------------------------

    def say(self, message: msgspec.Struct) -> None:
        assert self._control is not None
        assert self._control.send(self._peer, encode(message))

    async def meet(self) -> None:
        """Waits for the node's registration and connects the data links."""
        await self.until(lambda: bool(self.of(control.Register)))
        (node, *_) = self.of(control.Register)
        assert isinstance(node, control.Register)
        await self._plane.set_peers(
            {node.node: PeerAddress(node.node, node.incarnation, node.data_endpoint, "")}
        )
        self.say(control.Peers(1, (control.Peer(ROUTER, 1, "mem://router-data", ""),)))

    def assign(self, epoch: int, layers: tuple[int, int] = WHOLE) -> None:
        self.say(control.Assign(epoch, *layers, 1))

    def retain(self, *epochs: int) -> None:
        self.say(control.Retain(epochs))

    def prompt(self, request: int, epoch: int, tokens: int, length: int = 5) -> None:
        """Runs a request of `tokens` greedy tokens; every next one is asked for as one comes."""
        self._goal[request], self._epoch[request] = tokens, epoch
        self._row(request, [(7 * request + i) % 250 for i in range(length)], 0, GREEDY)

    def _row(
        self, request: int, ids: list[int], position: int, spec: data.SampleSpec | None = None
    ) -> None:
        row = data.Row(request, 0, position, len(ids), 0, 0, data.SAMPLE, 0, spec)
        route = pack_route(Route((Hop(NodeId("n"), LayerRange(*WHOLE)),)))
        header = data.FrameHeader(self._epoch[request], ROUTER, "int32", 1, (row,), (route,))
        values = np.array(ids, np.int32).data.cast("B")
        assert self._plane.send("n", header, (values,))

    def go_on(self) -> None:
        self.most, held, self._held = 1 << 30, self._held, []
        for request, token, position in held:
            self._row(request, [token], position)

    def move(self, request: int, epoch: int) -> None:
        """The request's next rows come under another epoch."""
        self._epoch[request] = epoch

    async def finished(self, request: int) -> list[int]:
        await self.until(lambda: len(self.tokens.get(request, ())) >= self._goal[request])
        return self.tokens[request]

    def release(self, *requests: int) -> None:
        items = tuple(data.ReleaseItem(r, 0) for r in requests)
        assert self._plane.send("n", data.Release(items))


@asynccontextmanager
async def node_and_router(
    folder: Path, *, memory_bytes: int = 64 << 20
) -> AsyncIterator[tuple[NodeDaemon, FakeRouter]]:
    """A registered node that holds nothing yet. Afterwards all its pages must be free."""
    transport = MemoryTransport()
    router = FakeRouter(transport)
    await router.start()
    settings = NodeSettings(
        name="n",
        router="mem://control",
        listen="mem://n-data",
        model=folder,
        heartbeat_s=0.05,
        drain_s=20.0,
    )
    identity = NodeIdentity(
        folder=folder,
        model_digest=model_digest(folder),
        device=torch.device("cpu"),
        device_text="cpu",
        dtype=torch.float32,
        memory_bytes=memory_bytes,
    )
    security = NodeSecurity(SecuritySection())
    daemon = NodeDaemon(settings, identity, transport, security, SystemClock())
    running = asyncio.create_task(daemon.run())
    try:
        await router.meet()
        yield daemon, router
        for worker in daemon.workers:
            worker.check()
            worker.close_all()
        await router.until(
            lambda: all(
                w.statistics().kv_free_pages == w.statistics().kv_total_pages
                for w in daemon.workers
            )
        )
    finally:
        daemon.stop()
        daemon.stop()
        await asyncio.gather(running, return_exceptions=True)
        await router.close()
        await transport.close()
