"""A gateway on a real uvicorn on loopback, and clients for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import openai
import pytest

from helix_mq.clock import SystemClock
from router.gateway import GatewayServer, build_app
from router.gateway.generate import Timings
from router.metrics import RouterMetrics
from router.settings import HttpSection
from tests.echo_service import EchoService


@pytest.fixture
def settings() -> HttpSection:
    """Overridden where a test needs other ones."""
    return HttpSection(port=0)


@pytest.fixture
def timings() -> Timings:
    """Overridden where a test needs other ones."""
    return Timings()


@pytest.fixture
async def gateway(
    service: EchoService, settings: HttpSection, timings: Timings
) -> AsyncIterator[GatewayServer]:
    server = GatewayServer(service, settings, RouterMetrics(SystemClock()), timings=timings)
    await server.start()
    yield server
    await server.stop()
    left = [t for t in asyncio.all_tasks() if t.get_name().startswith("http")]
    assert not left


@pytest.fixture
async def http(gateway: GatewayServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=240) as client:
        yield client


@pytest.fixture
async def asgi(service: EchoService, settings: HttpSection) -> AsyncIterator[httpx.AsyncClient]:
    """The application without a socket, for tables of many small cases."""
    app = build_app(service, settings, RouterMetrics(SystemClock()))
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.fixture
async def ai(gateway: GatewayServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=gateway.url + "/v1", api_key="unused", max_retries=0, timeout=240
    ) as client:
        yield client
