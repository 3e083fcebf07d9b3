"""Our transport alone: its connection and listener, with opaque parts.

The receiver acknowledges every quarter of the window, as neither end says when there is room.
"""

from __future__ import annotations

import asyncio
import os

from bench.bus.loop_place import LoopPlace
from bench.bus.types import HEADER_BYTES, Spec
from helix_mq.transport import (
    AllowList,
    Buffer,
    ClientSecurity,
    Connection,
    Delivery,
    KeyPair,
    LinkState,
    ServerSecurity,
    ZmqTransport,
)


class ConnectionPlace(LoopPlace):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self._transport = ZmqTransport()
        head: list[Buffer] = [b"\x01\x20", os.urandom(HEADER_BYTES)]
        tensor = memoryview(bytearray(os.urandom(spec.size_bytes)))
        self._message = [*head[: spec.parts - 1], tensor]
        self._window = max(4, spec.in_flight)
        self._room = self._unacknowledged = 0

    async def bind(self) -> None:
        keys = self.spec.keys
        security = None
        if keys:
            allow = AllowList({f"p{i}": public for i, (public, _) in enumerate(keys)})
            security = ServerSecurity(KeyPair(*keys[self.spec.place]), allow)
        self._listener = await self._transport.listen(
            self.spec.endpoint, self._deliver, security=security
        )
        self.endpoint = self._listener.endpoint

    async def connect(self, endpoint: str) -> None:
        keys, up = self.spec.keys, asyncio.Event()
        security = None
        if keys:
            server = keys[(self.spec.place + 1) % self.spec.places][0]
            security = ClientSecurity(KeyPair(*keys[self.spec.place]), server)

        def on_state(state: LinkState) -> None:
            if state.connected:
                up.set()

        self._connection: Connection = await self._transport.connect(
            endpoint, self._acknowledged, security=security, on_state=on_state
        )
        await up.wait()

    async def close(self) -> None:
        await self._transport.close()

    def prepare(self) -> None:
        self._room = self._window
        self._unacknowledged = 0

    def send_one(self) -> bool:
        if not self._room or not self._connection.send(self._message):
            return False
        self._room -= 1
        return True

    def _acknowledged(self, delivery: Delivery) -> None:
        self._room += self._window // 4
        self.writable()

    def _deliver(self, delivery: Delivery) -> None:
        self._unacknowledged += 1
        if self._unacknowledged == self._window // 4:
            self._unacknowledged = 0
            self._listener.send(delivery.peer, (b"ack",))
        if self.spec.place and not (self.streams and self.is_last):
            self._connection.send(delivery.parts)
        self.arrived()
