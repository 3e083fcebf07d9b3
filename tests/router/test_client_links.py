"""Streams over links that break, forget and fall silent: nothing repeated, nothing lost."""

from __future__ import annotations

import asyncio

import pytest

from helix_mq.client import Client
from helix_mq.errors import (
    ConnectionLost,
    NotServing,
)
from helix_mq.sdk.options import ClientOptions
from helix_mq.transport import (
    Connection,
    MemoryTransport,
)
from router.clients import ClientSockets
from tests.echo_service import EchoService
from tests.router.sdk_setup import FAST, Setup, greedy, no_keys


class Cuttable(MemoryTransport):
    """Connections whose link a test can cut, as a network would."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Connection] = []

    async def connect(self, *args: object, **kwargs: object) -> Connection:  # type: ignore[override]
        connection = await super().connect(*args, **kwargs)  # type: ignore[arg-type]
        self.made.append(connection)
        return connection

    def cut(self) -> None:
        link = self.made[0]._link  # type: ignore[attr-defined]
        if link is not None:
            link.cut()


@pytest.mark.parametrize("cut_after", range(0, 24, 3))
async def test_a_cut_link_repeats_and_loses_nothing(service: EchoService, cut_after: int) -> None:
    transport = Cuttable()
    sockets = ClientSockets(service, transport, "mem://clients", no_keys())
    await sockets.start()
    async with Client("mem://clients", transport=transport, options=FAST) as client:
        stream = client.stream("cut me", max_tokens=24, temperature=0)
        tokens = []
        if cut_after == 0:
            # Before anything can have been answered: the submission itself may be lost.
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            transport.cut()
            tokens.append(await first)
        async for token in stream:
            tokens.append(token)
            if len(tokens) % max(1, cut_after) == 0:
                transport.cut()
        assert [t.index for t in tokens] == list(range(24))
        want = service.text_of(greedy(service, "cut me", 24))
        assert stream.result().text == want == "".join(t.text for t in tokens)
    await sockets.close()
    await transport.close()
    assert len(service.submitted) == 1, "a repeated submission must not run twice"


async def test_a_router_that_forgot_the_stream_ends_it_clearly(setup: Setup) -> None:
    setup.service.hold_at = 2
    async with setup.client() as client:
        stream = client.stream("gone", max_tokens=9)
        await anext(stream)
        setup.sockets._book.forget(setup.sockets._book.streams()[0])
        await setup.restart()
        with pytest.raises(ConnectionLost, match="does not know this stream"):
            await anext(stream), await anext(stream), await anext(stream)
    for request in list(setup.service.open):
        setup.service.cancel(request)


async def test_a_router_that_stops_says_so(setup: Setup) -> None:
    setup.service.hold_at = 1
    async with setup.client() as client:
        stream = client.stream("x", max_tokens=9)
        await anext(stream)
        await setup.sockets.close()
        with pytest.raises(NotServing, match="shutting down"):
            await anext(stream)
    for request in list(setup.service.open):
        setup.service.cancel(request)


async def test_a_client_reconnects_after_the_router_restarts(setup: Setup) -> None:
    async with setup.client() as client:
        await client.generate("one", max_tokens=2)
        await setup.restart()
        whole = await client.generate("two", max_tokens=2, temperature=0)
    assert whole.text == setup.service.text_of(greedy(setup.service, "two", 2))


async def test_a_router_that_stays_away_fails_open_streams(service: EchoService) -> None:
    transport = MemoryTransport()
    sockets = ClientSockets(service, transport, "mem://clients", no_keys())
    await sockets.start()
    service.hold_at = 1
    options = ClientOptions(reconnect_timeout_s=0.1)
    async with Client("mem://clients", transport=transport, options=options) as client:
        stream = client.stream("x", max_tokens=5)
        await anext(stream)
        listener = sockets._listener
        assert listener is not None
        await listener.close()
        with pytest.raises(ConnectionLost, match=r"after 0 s.*check that it runs"):
            await anext(stream)
        with pytest.raises(ConnectionLost):
            await client.generate("y")
    for request in list(service.open):
        service.cancel(request)
    await sockets.close()
