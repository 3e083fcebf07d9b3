"""Requests sent before the answer to the one before, and paths that are not what they look like."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging

import httpx
import pytest

from router.gateway import GatewayServer
from router.settings import HttpSection
from tests.echo_service import EchoService
from tests.router.gateway.test_connections import read_to_end, send

GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


async def test_hanging_up_cancels_what_runs_whatever_is_behind_it(
    gateway: GatewayServer, service: EchoService
) -> None:
    service.hold_at = 4
    _, writer = await send(gateway)
    writer.write(GET)
    await service.until_open(1)
    writer.close()
    await service.until_open(0)
    assert len(service.cancelled) == 1


async def test_hanging_up_on_a_pipeline_is_no_fault(
    gateway: GatewayServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(3 * GET.replace(b"health", b"metrics"))
        await writer.drain()
        writer.transport.abort()
    async with httpx.AsyncClient(base_url=gateway.url, timeout=240) as http:
        assert (await http.get("/health")).status_code == 200
    assert "Traceback" not in caplog.text
    assert not [r for r in caplog.records if r.exc_info]


async def test_a_pipeline_has_an_end(gateway: GatewayServer, service: EchoService) -> None:
    service.hold_at = 0
    reader, writer = await send(gateway)
    await service.until_open(1)
    for _ in range(100):
        writer.write(10 * GET)
    # The answer is held back: nothing but the server ends this connection.
    with contextlib.suppress(OSError):
        await writer.drain()
        await read_to_end(reader)
    await service.until_open(0)


async def test_a_short_pipeline_is_answered_in_order(gateway: GatewayServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    last = GET.replace(b"host", b"connection: close\r\nhost").replace(b"health", b"v1/models")
    writer.write(20 * GET + last)
    answers = await read_to_end(reader)
    assert answers.count(b'{"status":"ok"}') == 20
    assert answers.index(b'"echo"') > answers.rindex(b'{"status":"ok"}')
    writer.close()


class TestWithKeys:
    @pytest.fixture
    def settings(self) -> HttpSection:
        return HttpSection(port=0, api_keys=(hashlib.sha256(b"k").hexdigest(),))

    @pytest.mark.parametrize(
        "path", ["/v1/helix/requests%0A", "/v1/models%0a", "/v1/helix/requests/1/trace%0A"]
    )
    async def test_paths_have_no_lines(self, gateway: GatewayServer, path: str) -> None:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=240) as http:
            answer = await http.get(path, headers={"authorization": "Bearer k"})
        assert answer.status_code == 400
        assert "a line's end" in answer.json()["error"]["message"]
