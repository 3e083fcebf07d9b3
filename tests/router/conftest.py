"""Services and client sockets to put edges in front of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from helix_mq.clock import VirtualClock
from helix_mq.transport import (
    MemoryTransport,
    Transport,
    ZmqTransport,
)
from router.client_book import ClientBounds
from router.clients import ClientSockets
from tests.echo_service import EchoService
from tests.router.sdk_setup import Bench, Setup, no_keys


@pytest.fixture
async def service(tiny_folder: Path) -> AsyncIterator[EchoService]:
    """Checks in the end that no stream was left running."""
    echo = EchoService(tiny_folder)
    yield echo
    assert not echo.open, "streams were left running"


@pytest.fixture(params=["memory", "zmq"])
async def setup(request: pytest.FixtureRequest, service: EchoService) -> AsyncIterator[Setup]:
    transport: Transport = MemoryTransport() if request.param == "memory" else ZmqTransport()
    endpoint = "mem://clients" if request.param == "memory" else "tcp://127.0.0.1:0"
    sockets = ClientSockets(service, transport, endpoint, no_keys())
    await sockets.start()
    running = Setup(transport, sockets, service)
    yield running
    await running.sockets.close()
    await transport.close()


@pytest.fixture
async def bench(service: EchoService) -> AsyncIterator[Bench]:
    transport, clock = MemoryTransport(), VirtualClock()
    bounds = ClientBounds(max_clients=3, streams_per_client=2, max_streams=4, sweep_s=1e6)
    sockets = ClientSockets(
        service, transport, "mem://clients", no_keys(), bounds=bounds, clock=clock
    )
    await sockets.start()
    yield Bench(transport, sockets, service, clock)
    service.go.set()
    await sockets.close()
    await transport.close()
    for request in list(service.open):
        service.cancel(request)
