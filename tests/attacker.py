"""Who speaks the wire itself, for tests of peers that lie, flood and steal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from helix_mq.frames import Buffer, Message, decode, encode
from helix_mq.messages import data
from helix_mq.transport import Connection, Delivery, LinkState, Transport
from tests.cluster import Cluster

WAIT_S = 240.0


class Attacker:
    """A raw connection: says anything, keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self._up = asyncio.Event()
        self._connection: Connection | None = None

    async def dial(self, transport: Transport, endpoint: str, name: str) -> None:
        def on_message(delivery: Delivery) -> None:
            self.heard.append(decode(delivery.parts))

        def on_state(state: LinkState) -> None:
            if state.connected:
                self._up.set()

        self._connection = await transport.connect(
            endpoint, on_message, routing_id=name.encode(), on_state=on_state
        )
        async with asyncio.timeout(WAIT_S):
            await self._up.wait()

    def say(self, header: msgspec.Struct, *buffers: Buffer) -> None:
        assert self._connection is not None
        assert self._connection.send(encode(header, buffers))

    async def hang_up(self) -> None:
        if self._connection is not None:
            await self._connection.close()


@asynccontextmanager
async def attacker(c: Cluster, endpoint: str, name: str = "evil") -> AsyncIterator[Attacker]:
    """Connected and, on data sockets, greeted as `name`."""
    one = Attacker()
    await one.dial(c.transport, endpoint, name)
    try:
        if endpoint != c.app.control_endpoint:
            one.say(data.LinkHello(name, 1, 1))
        yield one
    finally:
        await one.hang_up()


def router_data(c: Cluster) -> str:
    return c.app._data_endpoint


def node_data(c: Cluster, node: str) -> str:
    return c.daemons[node]._data_endpoint


def bad(c: Cluster, who: str, node: str | None = None) -> int:
    """Bad messages counted against a sender, by the router or by a node."""
    counts = c.app.bad_messages if node is None else c.daemons[node]._plane.bad_messages
    return sum(count for (sender, _), count in counts.items() if sender == who)
