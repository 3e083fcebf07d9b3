"""Data planes of several made-up processes over one transport, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from helix_mq.clock import SystemClock
from helix_mq.dataplane import DataPlane, InLink, PlaneHandlers, PlaneIdentity
from helix_mq.frames import Message, pack_route
from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.data import (
    FrameHeader,
    Release,
    ReleaseItem,
    Row,
)
from helix_mq.outlink import PeerAddress
from helix_mq.transport import (
    AllowList,
    Connection,
    KeyPair,
    ServerSecurity,
    Transport,
)

WAIT_S = 240.0
WIDTH = 16
ROUTE = pack_route(Route((Hop(NodeId("a"), LayerRange(0, 1)), Hop(NodeId("b"), LayerRange(1, 2)))))
RELEASE = Release((ReleaseItem(1, 0),))


def frame(request: int, tokens: int = 16, sender: str = "a") -> tuple[FrameHeader, memoryview]:
    """1 KiB of activations by default, all of them the request's number."""
    row = Row(request, 0, 0, tokens, 0, 1, 0, 0)
    header = FrameHeader(1, sender, "float32", WIDTH, (row,), (ROUTE,))
    return header, np.full(tokens * WIDTH, request, np.float32).data.cast("B")


class End:
    """One process's data plane and what came to it; consumes at once unless `hold` is set."""

    def __init__(
        self,
        name: str,
        transport: Transport,
        *,
        window: int = 1 << 20,
        key: KeyPair | None = None,
        allow: AllowList | None = None,
    ) -> None:
        self.name = name
        self.hold = False
        self.messages: list[tuple[str, Message]] = []
        self.held: list[tuple[InLink, int]] = []
        self.lost: list[str] = []
        self.credits = 0
        self.endpoint = ""
        self.key = key
        self.changed = asyncio.Event()
        self._security = None if key is None or allow is None else ServerSecurity(key, allow)
        self.plane = DataPlane(
            PlaneIdentity(name, sum(name.encode()), key),
            PlaneHandlers(self._on_message, self._on_lost, self._on_credit),
            transport,
            SystemClock(),
            window,
        )

    async def bind(self, endpoint: str) -> None:
        self.endpoint = await self.plane.bind(endpoint, self._security)

    @property
    def address(self) -> PeerAddress:
        public = self.key.public if self.key is not None else ""
        return PeerAddress(self.name, sum(self.name.encode()), self.endpoint, public)

    async def knows(self, *peers: End) -> None:
        await self.plane.set_peers({p.name: p.address for p in peers})

    def send(self, to: str, request: int, tokens: int = 16) -> bool:
        header, buffer = frame(request, tokens, self.name)
        return self.plane.send(to, header, (buffer,))

    @property
    def requests(self) -> list[int]:
        headers = [m.header for _, m in self.messages]
        return [h.rows[0].request for h in headers if isinstance(h, FrameHeader)]

    def consume(self) -> None:
        held, self.held = self.held, []
        for link, nbytes in held:
            link.consumed(nbytes)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def _on_message(self, sender: str, message: Message, nbytes: int, link: InLink) -> None:
        self.messages.append((sender, message))
        if isinstance(message.header, FrameHeader):
            self.held.append((link, nbytes))
            if not self.hold:
                self.consume()
        self.changed.set()

    def _on_lost(self, peer: str) -> None:
        self.lost.append(peer)
        self.changed.set()

    def _on_credit(self) -> None:
        self.credits += 1
        self.changed.set()


@dataclass
class Net:
    transport: Transport
    ends: list[End]
    kind: str

    def end(
        self,
        name: str,
        *,
        window: int = 1 << 20,
        key: KeyPair | None = None,
        allow: AllowList | None = None,
    ) -> End:
        end = End(name, self.transport, window=window, key=key, allow=allow)
        self.ends.append(end)
        return end

    async def bound(self, name: str, *, window: int = 1 << 20) -> End:
        end = self.end(name, window=window)
        await end.bind(self.anywhere(name))
        return end

    def anywhere(self, name: str) -> str:
        return f"mem://{name}:0" if self.kind == "mem" else "tcp://127.0.0.1:0"

    async def pair(self, *, window: int = 1 << 20) -> tuple[End, End]:
        a, b = await self.bound("a", window=window), await self.bound("b", window=window)
        await a.knows(b)
        await b.knows(a)
        await a.until(lambda: a.credits > 0)
        await b.until(lambda: b.credits > 0)
        return a, b

    async def raw(self, to: End, replies: list[object]) -> Connection:
        """A bare connection that says whatever the test wants."""
        return await self.transport.connect(to.endpoint, replies.append)
