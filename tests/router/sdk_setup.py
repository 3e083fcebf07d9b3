"""A router's client sockets to put SDK clients, and hand-driven ones, in front of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from helix_mq.client import Client
from helix_mq.clock import VirtualClock
from helix_mq.frames import decode, encode
from helix_mq.messages import client as wire
from helix_mq.sampling import SamplingParams
from helix_mq.sdk.options import ClientOptions
from helix_mq.transport import (
    Connection,
    Delivery,
    EndpointUnavailable,
    LinkState,
    MemoryTransport,
    Transport,
)
from router.clients import ClientSockets
from router.security import RouterSecurity
from router.service import Generation
from router.settings import SecuritySection
from tests.echo_service import EchoService

FAST = ClientOptions(connect_timeout_s=5, reconnect_timeout_s=5, keepalive_s=0.05)


@dataclass
class Setup:
    transport: Transport
    sockets: ClientSockets
    service: EchoService

    def client(self, options: ClientOptions = FAST) -> Client:
        return Client(self.sockets.endpoint, transport=self.transport, options=options)

    async def restart(self) -> None:
        """A listener at the same place that knows no stream of the old one."""
        endpoint = self.sockets.endpoint
        await self.sockets.close()
        self.sockets = ClientSockets(self.service, self.transport, endpoint, no_keys())
        async with asyncio.timeout(240):
            while True:
                try:
                    await self.sockets.start()
                    return
                except EndpointUnavailable:
                    # ZeroMQ gives a port back a moment after the socket is closed.
                    await asyncio.sleep(0.01)


def no_keys() -> RouterSecurity:
    return RouterSecurity(SecuritySection())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(240):
        while not condition():  # noqa: ASYNC110  (states without an event of their own)
            await asyncio.sleep(0.005)


def greedy(service: EchoService, prompt: str, max_tokens: int) -> Generation:
    ids = tuple(service.tokenizer.encode(prompt))
    return Generation(ids, SamplingParams(temperature=0.0, max_tokens=max_tokens))


class RawClient:
    """Sends messages of the protocol and keeps what comes back."""

    def __init__(self) -> None:
        self.got: list[msgspec.Struct] = []
        self.news = asyncio.Event()
        self.connection: Connection | None = None
        self.up = asyncio.Event()

    async def connect(self, transport: Transport, endpoint: str) -> None:
        self.connection = await transport.connect(
            endpoint, self._on_delivery, on_state=self._on_state
        )
        await self.up.wait()

    def _on_state(self, state: LinkState) -> None:
        if state.connected:
            self.up.set()

    def _on_delivery(self, delivery: Delivery) -> None:
        self.got.append(decode(delivery.parts).header)
        self.news.set()

    def send(self, *messages: msgspec.Struct) -> None:
        assert self.connection is not None
        for message in messages:
            self.connection.send(encode(message))

    async def until_kind(self, kind: type[msgspec.Struct]) -> msgspec.Struct:
        async with asyncio.timeout(240):
            while not any(isinstance(m, kind) for m in self.got):
                self.news.clear()
                await self.news.wait()
        return next(m for m in self.got if isinstance(m, kind))


def submit(reference: int, prompt: str = "x", max_tokens: int = 5) -> wire.Submit:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return wire.Submit(reference, "", prompt, None, None, sampling, True, True, (), None)


@dataclass
class Bench:
    transport: MemoryTransport
    sockets: ClientSockets
    service: EchoService
    clock: VirtualClock

    async def raw(self) -> RawClient:
        raw = RawClient()
        await raw.connect(self.transport, "mem://clients")
        return raw
