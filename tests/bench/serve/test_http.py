"""The HTTP client on real sockets, against a server that says byte by byte what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from bench.serve.http import BadAnswer, Pool, parse_base
from bench.serve.models import first_model
from bench.serve.seen import Seen, judge
from bench.serve.target import OpenAi
from bench.serve.types import BROKEN, REFUSED, SERVED, HttpTarget
from helix_mq.clock import SystemClock
from helix_mq.errors import ConfigError, ConnectionLost, HelixError, LocalError

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

STREAM = (
    b'data: {"choices":[{"text":"a"}]}\n\ndata: {"choices":[{"text":"b"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


def chunked(body: bytes, size: int = 10**6) -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


async def asked(reader: asyncio.StreamReader) -> bytes:
    """A whole request; empty when the client has gone."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = next(
        (int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if b"content-length" in x), 0
    )
    return head + await reader.readexactly(length)


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()


def saying(*answers: bytes) -> Answer:
    """One answer per request, on one connection, which then closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for text in answers:
            if not await asked(reader):
                return
            writer.write(text)
            await writer.drain()

    return answer


async def sent(url: str, **more: object) -> Seen:
    target = OpenAi(HttpTarget(url, "m", **more), True, 0.0, SystemClock())  # type: ignore[arg-type]
    return await sent_by(target)


async def sent_by(target: OpenAi) -> Seen:
    seen = Seen()
    try:
        async with asyncio.timeout(240):
            await target.send(target.prepare("hello", 2), seen, lambda: None)
    except HelixError as e:
        seen.fault = e.message
    return seen


@pytest.mark.parametrize(
    "answer",
    [
        EVENTS + b"transfer-encoding: chunked\r\n\r\n" + chunked(STREAM),
        EVENTS + b"transfer-encoding: chunked\r\n\r\n" + chunked(STREAM, 7),
        EVENTS + b"content-length: %d\r\n\r\n" % len(STREAM) + STREAM,
        EVENTS + b"connection: close\r\n\r\n" + STREAM,
        b"HTTP/1.1 100 Continue\r\n\r\n"
        + EVENTS
        + b"transfer-encoding: chunked\r\n\r\n"
        + chunked(STREAM.replace(b"\n", b"\r\n")),
    ],
    ids=["chunked", "small-chunks", "sized", "until-close", "continue-crlf"],
)
async def test_a_stream_is_read_however_its_length_is_told(answer: bytes) -> None:
    async with serving(saying(answer)) as url:
        seen = await sent(url)
    assert judge(seen, 2, True) == (SERVED, "")
    assert len(seen.at_s) == 2
    assert seen.prompt_tokens == 3


async def test_an_answer_cut_short_is_broken_not_served() -> None:
    whole = EVENTS + b"transfer-encoding: chunked\r\n\r\n" + chunked(STREAM)
    async with serving(saying(whole[:-40])) as url:
        seen = await sent(url)
    assert judge(seen, 2, True) == (BROKEN, "the connection was closed")
    # One that ends with its connection may be cut as well; then its last word is missing.
    async with serving(saying(EVENTS + b"\r\n" + STREAM[:-16])) as url:
        seen = await sent(url)
    assert judge(seen, 2, True) == (BROKEN, "the stream ended without [DONE]")


async def test_refusals_and_nonsense_are_told_apart() -> None:
    body = b'{"error":{"message":"m","code":"cluster_full"}}'
    head = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 4\r\ncontent-length: %d\r\n\r\n"
    async with serving(saying(head % len(body) + body)) as url:
        assert judge(await sent(url), 2, True) == (REFUSED, "503 cluster_full")
    async with serving(saying(b"SSH-2.0-OpenSSH_9.2\r\n")) as url:
        kind, reason = judge(await sent(url), 2, True)
    assert kind == BROKEN
    assert "no HTTP" in reason
    big = b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 70_000 + b"\r\n\r\n"
    async with serving(saying(big)) as url:
        kind, reason = judge(await sent(url), 2, True)
    assert kind == BROKEN
    assert "headers" in reason
    async with serving(saying(EVENTS + b"content-length: 10\r\n\r\ndata: {\n\n ")) as url:
        kind, reason = judge(await sent(url), 2, True)
    assert kind == BROKEN
    assert "no chunk" in reason


async def test_connections_are_kept_and_one_closed_meanwhile_costs_nothing() -> None:
    answer = EVENTS + b"transfer-encoding: chunked\r\n\r\n" + chunked(STREAM)
    closed = asyncio.Event()
    count = 0

    async def two_then_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        try:
            await saying(answer, answer)(reader, writer)
        finally:
            writer.close()
            closed.set()

    async with serving(two_then_close) as url:
        target = OpenAi(HttpTarget(url, "m"), True, 0.0, SystemClock())
        for _ in range(2):
            assert judge(await sent_by(target), 2, True)[0] == SERVED
        assert count == 1
        await closed.wait()
        assert judge(await sent_by(target), 2, True)[0] == SERVED
        assert count == 2
        await target.close()


async def test_a_request_that_is_left_closes_its_connection() -> None:
    gone = asyncio.Event()
    begun = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        begun.set()
        await reader.read()
        gone.set()

    async with serving(silent) as url:
        target = OpenAi(HttpTarget(url, "m"), True, 0.0, SystemClock())
        task = asyncio.create_task(sent_by(target))
        await begun.wait()
        task.cancel()
        async with asyncio.timeout(240):
            await gone.wait()


async def test_what_is_sent_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[bytes] = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await asked(reader))

    monkeypatch.setenv("BENCH_TEST_KEY", "sk-1")
    async with serving(keep) as url:
        from bench.serve.options import parse_extra

        await sent(url, chat=True, key_env="BENCH_TEST_KEY", extra=parse_extra(["top_p=0.9"]))
    head, _, body = requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert b"authorization: Bearer sk-1" in head
    assert b'"ignore_eos":true' in body
    assert b'"top_p":0.9' in body
    assert b'"messages":[{"role":"user","content":"hello"}]' in body
    assert b'"include_usage":true' in body


def test_a_key_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_TEST_KEY", raising=False)
    with pytest.raises(ConfigError, match="BENCH_TEST_KEY"):
        OpenAi(HttpTarget("http://h/v1", "m", key_env="BENCH_TEST_KEY"), True, 0, SystemClock())
    monkeypatch.setenv("BENCH_TEST_KEY", "a\nb")
    with pytest.raises(ConfigError, match="no header may"):
        OpenAi(HttpTarget("http://h/v1", "m", key_env="BENCH_TEST_KEY"), True, 0, SystemClock())


@pytest.mark.parametrize("url", ["", "ftp://h/v1", "http://", "http://h:99999", "h:80/v1"])
def test_a_url_that_is_none_is_told_so(url: str) -> None:
    with pytest.raises(ConfigError, match="url="):
        parse_base(url)


def test_hosts_are_named_as_http_wants_them() -> None:
    assert parse_base("https://h/v1/").host_header == "h"
    assert parse_base("http://[::1]:8000/v1").host_header == "[::1]:8000"


async def test_nobody_there_is_told_with_the_address() -> None:
    async with serving(saying()) as url:
        pass
    with pytest.raises(ConnectionLost, match="no connection to 127"):
        await Pool(parse_base(url), SystemClock()).exchange(b"", lambda *_: None)
    with pytest.raises(LocalError, match="check --url"):
        await first_model(url, "")


async def test_the_first_model_is_asked_for() -> None:
    body = b'{"data":[{"id":"tiny"},{"id":"other"}]}'
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
    async with serving(saying(head % len(body) + body)) as url:
        assert await first_model(url, "") == "tiny"
    for bad in (b"{}", b"[]", b'{"data":[{"id":4}]}', b"<html>"):
        async with serving(saying(head % len(bad) + bad)) as url:
            with pytest.raises(ConfigError, match="names no model"):
                await first_model(url, "")
    async with serving(saying(b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n")) as url:
        with pytest.raises(LocalError, match="401"):
            await first_model(url, "")


async def test_bad_answers_have_a_name() -> None:
    async with serving(saying(b"\x00\x01")) as url:
        with pytest.raises(BadAnswer):
            await Pool(parse_base(url), SystemClock()).exchange(
                b"GET / HTTP/1.1\r\n\r\n", lambda *_: None
            )
