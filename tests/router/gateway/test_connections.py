"""Connections that close, stall, dawdle or flood; and a server that stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable

import httpx
import pytest

from router.gateway import GatewayServer, protocol
from router.gateway.generate import Timings
from router.settings import HttpSection
from tests.echo_service import EchoService

BODY = {"model": "echo", "prompt": "x", "max_tokens": 9}

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def send(gateway: GatewayServer, **changes: object) -> Streams:
    """A request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    body = json.dumps({**BODY, **changes}).encode()
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    return reader, writer


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(240):
        return await reader.read()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("hold_at", [0, 4])
async def test_a_closed_connection_cancels_the_request(
    gateway: GatewayServer, service: EchoService, n: int, streamed: bool, hold_at: int
) -> None:
    service.hold_at = hold_at
    reader, writer = await send(gateway, stream=streamed, n=n)
    await service.until_open(n)
    if streamed and hold_at:
        await reader.readuntil(b"data: ")
    writer.close()
    await service.until_open(0)
    assert len(service.cancelled) == n


async def test_half_of_many_streams_cancelled_leaves_the_others_whole(
    gateway: GatewayServer, service: EchoService
) -> None:
    async def one(number: int) -> str | None:
        async with (
            httpx.AsyncClient(base_url=gateway.url, timeout=240) as http,
            http.stream(
                "POST",
                "/v1/completions",
                json={
                    "model": "echo",
                    "prompt": f"prompt {number}",
                    "max_tokens": 60,
                    "temperature": 0,
                    "stream": True,
                },
            ) as answer,
        ):
            text = ""
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    return text
                if line:
                    text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                if number % 2 and text:
                    return None
        raise AssertionError("the stream ended without [DONE]")

    texts = await asyncio.gather(*(one(i) for i in range(64)))
    await service.until_open(0)
    by_prompt = {service.tokenizer.decode(g.prompt_ids): g for g in service.submitted}
    for number in range(0, 64, 2):
        assert texts[number] == service.text_of(by_prompt[f"prompt {number}"])


class TestImpatient:
    @pytest.fixture
    def timings(self) -> Timings:
        return Timings(commit_after_s=0.05, ping_s=0.05, stall_s=0.3)

    async def test_a_silent_stream_begins_and_shows_that_it_lives(
        self, gateway: GatewayServer, service: EchoService
    ) -> None:
        service.hold_at = 0
        reader, writer = await send(gateway, stream=True)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        await reader.readuntil(b": still here\n\n")
        service.go.set()
        await reader.readuntil(b"data: [DONE]\n\n")
        writer.close()

    async def test_a_client_that_reads_nothing_is_cut_off(
        self, gateway: GatewayServer, service: EchoService
    ) -> None:
        # A long name makes long chunks: 16 MB in all, more than sockets buffer.
        service.model_name = "m" * 4000
        loop = asyncio.get_running_loop()
        mute = socket.socket()
        mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        mute.setblocking(False)
        await loop.sock_connect(mute, ("127.0.0.1", gateway.port))
        body = json.dumps(
            {**BODY, "model": service.model_name, "max_tokens": 4000, "stream": True}
        ).encode()
        await loop.sock_sendall(
            mute,
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body),
        )
        async with asyncio.timeout(240):
            await service.until_open(1)
            while gateway._server.server_state.connections:  # noqa: ASYNC110  (uvicorn's own set)
                await asyncio.sleep(0.02)
            with pytest.raises(ConnectionResetError):  # noqa: PT012  (some bytes may come first)
                while await loop.sock_recv(mute, 1 << 20):
                    pass
        mute.close()


# -- stopping -------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
async def test_stopping_ends_open_requests_with_a_reason(
    gateway: GatewayServer, service: EchoService, streamed: bool
) -> None:
    service.hold_at = 3
    reader, writer = await send(gateway, stream=streamed)
    await service.until_open(1)
    if streamed:
        await reader.readuntil(b"data: ")
    await gateway.stop()
    rest = await read_to_end(reader)
    assert b"the router is shutting down" in rest
    assert b"[DONE]" not in rest
    if not streamed:
        assert rest.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 5" in rest
    assert not service.open
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.close()


async def test_a_port_in_use_is_told_in_words(gateway: GatewayServer, service: EchoService) -> None:
    from helix_mq.clock import SystemClock
    from helix_mq.errors import ConfigError
    from router.metrics import RouterMetrics

    for section, param in [
        (HttpSection(port=gateway.port), "http.port"),
        (HttpSection(host="no.such.host.invalid"), "http.host"),
    ]:
        second = GatewayServer(service, section, RouterMetrics(SystemClock()))
        with pytest.raises(ConfigError, match="cannot serve HTTP on") as refused:
            await second.start()
        assert refused.value.param == param
    with pytest.raises(ConfigError, match="entry 1 is not a SHA-256") as wrong:
        GatewayServer(
            service,
            HttpSection(port=0, api_keys=("0" * 64, "sk-secret")),
            RouterMetrics(SystemClock()),
        )
    assert "sk-secret" not in str(wrong.value)


# -- heads and bodies that are no good ------------------------------------------


@pytest.mark.parametrize(
    "flood",
    [
        lambda: b"GET /" + b"a" * 300_000,
        lambda: b"GET /health HTTP/1.1\r\nx: " + b"a" * 300_000,
        lambda: b"GET /health HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % i for i in range(500)),
        lambda: b"\x16\x03\x01 this is no HTTP\r\n\r\n",
    ],
)
async def test_heads_without_end_end_the_connection(
    gateway: GatewayServer, http: httpx.AsyncClient, flood: Callable[[], bytes]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(flood())
    # What is still unread on the other side may turn its goodbye into a reset.
    with contextlib.suppress(ConnectionResetError):
        assert b"400" in await read_to_end(reader)
    writer.close()
    assert (await http.get("/health")).status_code == 200


GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


class TestSlowRequests:
    @pytest.fixture
    def settings(self) -> HttpSection:
        return HttpSection(port=0, head_timeout_s=0.1, body_timeout_s=0.1)

    @pytest.mark.parametrize("start", [b"", b"GET /hea", GET + b"GET", b"\r\n"])
    async def test_heads_that_take_too_long_end_the_connection(
        self, gateway: GatewayServer, start: bytes
    ) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(start)
        rest = await read_to_end(reader)
        assert rest.startswith(b"HTTP/1.1 200") or not rest
        assert len(gateway.places) == 0
        writer.close()

    async def test_empty_lines_do_not_keep_a_connection(self, gateway: GatewayServer) -> None:
        """They stop the timer of idle connections, and begin no request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(GET)
        await reader.readuntil(b'{"status":"ok"}')
        writer.write(b"\r\n")
        assert not await read_to_end(reader)
        writer.close()

    async def test_a_body_that_takes_too_long_is_told_so(self, gateway: GatewayServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 100\r\n\r\n{"
        )
        rest = await read_to_end(reader)
        assert rest.startswith(b"HTTP/1.1 408")
        assert b"request_timeout" in rest
        writer.close()

    async def test_a_body_that_nobody_reads_and_that_never_ends_is_cut(
        self, gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Refused at its head, it could be sent on for ever, a byte a minute."""
        monkeypatch.setattr(protocol, "_BODY_GRACE_S", 0.0)
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        with contextlib.suppress(ConnectionResetError):
            assert b"404" in await read_to_end(reader)
        writer.close()


class TestCrowds:
    @pytest.fixture
    def settings(self) -> HttpSection:
        return HttpSection(port=0, max_connections=20)

    async def test_who_only_sits_there_gives_way(
        self, gateway: GatewayServer, http: httpx.AsyncClient
    ) -> None:
        """A hundred silent ones and a hundred that have had an answer; all others come in."""
        crowd = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(200)]
        for _, writer in crowd[::2]:
            with contextlib.suppress(ConnectionResetError):
                writer.write(GET)
        assert (await http.get("/health")).status_code == 200
        async with asyncio.timeout(240):
            for reader, _ in crowd[:150]:
                with contextlib.suppress(ConnectionResetError):
                    await reader.read()
        assert len(gateway.places) <= 20
        assert gateway.places.gave_way >= 150
        for _, writer in crowd:
            writer.close()

    async def test_whoever_has_a_request_at_work_stays_and_one_more_is_turned_away(
        self, gateway: GatewayServer, service: EchoService
    ) -> None:
        service.hold_at = 1
        held = [await send(gateway) for _ in range(20)]
        await service.until_open(20)
        reader, writer = await send(gateway)
        answer = await read_to_end(reader)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 5" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "overloaded"
        writer.close()
        service.go.set()
        for one, _ in held:
            assert (await one.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        again = await send(gateway)
        assert (await again[0].readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        for _, writer in (*held, again):
            writer.close()


async def test_a_body_without_end_ends_the_connection(
    gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads the body of a path that is not there; it must not go on for ever."""
    monkeypatch.setattr(protocol, "_DRAIN_BYTES", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

    async def flood() -> None:
        for _ in range(2000):
            writer.write(piece)
            await writer.drain()

    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        async with asyncio.timeout(240):
            await flood()
    assert reader.at_eof() or reader.exception() is not None or await reader.read(20)


async def test_a_body_that_breaks_off_disturbs_nobody(
    gateway: GatewayServer, http: httpx.AsyncClient, service: EchoService
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 100\r\n\r\n{"
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    answer = await http.post("/v1/completions", json=BODY)
    assert answer.status_code == 200
    assert len(service.submitted) == 1


async def test_many_requests_on_one_connection(
    gateway: GatewayServer, service: EchoService
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    body = json.dumps({**BODY, "temperature": 0}).encode()
    request = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    writer.write(request * 20)
    for _ in range(20):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = json.loads(await reader.readexactly(length))
        assert answer["choices"][0]["text"] == service.text_of(service.submitted[0])
    writer.close()


class TestOnePlace:
    @pytest.fixture
    def settings(self) -> HttpSection:
        return HttpSection(port=0, max_connections=1)

    async def test_a_pipelined_request_at_work_is_not_thrown_out(
        self, gateway: GatewayServer, service: EchoService
    ) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        body = json.dumps(BODY).encode()
        service.hold_at = 0
        writer.write(
            b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        await reader.readuntil(b'{"status":"ok"}')
        await service.until_open(1)
        other, idle = await asyncio.open_connection("127.0.0.1", gateway.port)
        assert (await read_to_end(other)).startswith(b"HTTP/1.1 503")
        service.go.set()
        await reader.readuntil(b'"finish_reason":"length"')
        assert (gateway.places.gave_way, gateway.places.turned_away) == (0, 1)
        # With both answered it gives way like any other.
        again = await send(gateway)
        assert (await again[0].readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        assert gateway.places.gave_way == 1
        for one in (writer, idle, again[1]):
            one.close()
