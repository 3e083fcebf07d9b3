"""An OpenAI-compatible endpoint whose timing is known: what a load client says can be held to it.

`python -m bench.serve.paced --ttft 0.2 --tpot 0.02` answers any completion with a first token after
so long and a gap of so long after each, and says at its end, when it is told to end, what it really
did: times are taken where bytes go to the socket.
"""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import suppress
from typing import Annotated, cast

import httptools
import typer
import uvloop

from bench.simulator.stats_spread import of_values
from helix_mq.clock import SystemClock

MODEL = "paced"
MAX_BODY_BYTES = 8 << 20
_CLOCK = SystemClock()
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Pace:
    """`tokens_per_event` > 1 gathers tokens, as servers do that decode several per step."""

    def __init__(self, ttft_s: float, tpot_s: float, tokens_per_event: int = 1) -> None:
        self.ttft_s = ttft_s
        self.tpot_s = tpot_s
        self.tokens_per_event = tokens_per_event
        self.real_ttft_s: list[float] = []
        self.real_tpot_s: list[float] = []

    def truth(self) -> dict[str, object]:
        return {
            "requests": len(self.real_ttft_s),
            "ttft_s": of_values(self.real_ttft_s).as_dict(),
            "tpot_s": of_values(self.real_tpot_s).as_dict(),
        }


class _Connection(asyncio.Protocol):
    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._body = bytearray()
        self._url = b""
        self._came_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's by shape, not by class.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._came_s = _CLOCK.now_s()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._abort()

    def on_url(self, url: bytes) -> None:
        self._url, self._body = url, bytearray()

    def on_body(self, body: bytes) -> None:
        self._body.extend(body)
        if len(self._body) > MAX_BODY_BYTES:
            self._abort()

    def on_message_complete(self) -> None:
        if self._url.endswith(b"/models"):
            listed = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
            self._answer(json.dumps(listed).encode())
            return
        try:
            asked = json.loads(self._body)
            tokens = asked.get("max_tokens") or asked["max_completion_tokens"]
            prompt = asked.get("prompt") or asked["messages"][-1]["content"]
            chat = "messages" in asked
        except (ValueError, LookupError, TypeError, AttributeError):
            self._abort()
            return
        prompt_tokens = len(str(prompt).split())
        self._task = asyncio.create_task(self._stream(int(tokens), prompt_tokens, chat))

    def _answer(self, body: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        assert self._transport is not None
        self._transport.write(head.encode() + b"\r\n\r\n" + body)

    async def _stream(self, tokens: int, prompt_tokens: int, chat: bool) -> None:
        pace, came_s = self._pace, self._came_s
        first_s = last_s = 0.0
        step = pace.tokens_per_event
        for event in range(math.ceil(tokens / step)):
            due_s = came_s + pace.ttft_s + event * step * pace.tpot_s
            await asyncio.sleep(max(0.0, due_s - _CLOCK.now_s()))
            text = " word" * min(step, tokens - event * step)
            choice: dict[str, object] = (
                {"index": 0, "delta": {"content": text}}
                if chat
                else {"index": 0, "text": text, "finish_reason": None}
            )
            data = _event({"id": "p", "model": MODEL, "choices": [choice]}, chat)
            last_s = _CLOCK.now_s()
            self._write((_HEAD if not event else b"") + data)
            if not event:
                first_s = last_s
                pace.real_ttft_s.append(first_s - came_s)
        if tokens > 1:
            pace.real_tpot_s.append((last_s - first_s) / (tokens - 1))
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
        }
        end = _event({"id": "p", "model": MODEL, "choices": [], "usage": usage}, chat)
        self._write(end + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _event(chunk: dict[str, object], chat: bool) -> bytes:
    kind = "chat.completion.chunk" if chat else "text_completion"
    body = json.dumps({"object": kind, "created": 1, **chunk})
    return _chunk(f"data: {body}\n\n".encode())


async def serve_paced(pace: Pace, port: int = 0) -> asyncio.Server:
    """Listens on loopback; the OS chooses the port where none is given."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: _Connection(pace), "127.0.0.1", port)


def main(
    ttft: Annotated[float, typer.Option(min=0, help="Seconds to the first token.")] = 0.2,
    tpot: Annotated[float, typer.Option(min=0, help="Seconds between tokens.")] = 0.02,
    per_event: Annotated[int, typer.Option(min=1, help="Tokens in one event.")] = 1,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
) -> None:
    """Serve with known timing until SIGINT or SIGTERM; then print what it really was as JSON."""

    async def run() -> None:
        import signal

        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        pace = Pace(ttft, tpot, per_event)
        server = await serve_paced(pace, port)
        print(server.sockets[0].getsockname()[1], flush=True)
        with suppress(asyncio.CancelledError):
            await stop.wait()
        server.close()
        print(json.dumps(pace.truth()), flush=True)

    uvloop.run(run())


if __name__ == "__main__":
    typer.run(main)
