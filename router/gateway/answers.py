"""HTTP answers from running choices: one JSON body, or server-sent events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from router.gateway.errors import error_body
from router.gateway.running import Choices
from router.gateway.shapes import Json, Shape, usage
from router.service import Broken, Delta, Finished

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every chunk and answer of one request carries."""

    shape: Shape
    model: str
    prompts: int
    include_usage: bool
    id: str
    created: int

    @classmethod
    def new(cls, shape: Shape, model: str, prompts: int, include_usage: bool) -> Envelope:
        name = shape.prefix + secrets.token_hex(12)
        return cls(shape, model, prompts, include_usage, name, int(time.time()))

    def wrap(self, object_name: str, choices: list[Any], **more: Any) -> Json:
        return {
            "id": self.id,
            "object": object_name,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }


async def answer_whole(request: Request, choices: Choices, envelope: Envelope) -> Response:
    """One JSON body when every choice has ended; a closed connection cancels them."""
    async with choices:
        collected = await unless_disconnected(request, choices.collect)
        if collected is None:
            # Nobody reads this; 499 is what proxies log for a client that went away.
            return Response(status_code=499)
        finishes = [c.finish for c in collected if c.finish is not None]
        whole = [
            envelope.shape.whole(i, "".join(c.text), c.logprobs, c.finish)
            for i, c in enumerate(collected)
            if c.finish is not None
        ]
        body = envelope.wrap(
            envelope.shape.whole_object, whole, usage=usage(finishes, envelope.prompts)
        )
        return JSONResponse(body)


async def unless_disconnected(request: Request, work: Callable[[], Awaitable[T]]) -> T | None:
    """The work's result, or None if the client closes the connection first."""

    async def wait_for_close() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work())
    closing = asyncio.ensure_future(wait_for_close())
    try:
        await asyncio.wait([working, closing], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, closing):
            task.cancel()
        await asyncio.gather(working, closing, return_exceptions=True)


def answer_stream(choices: Choices, envelope: Envelope) -> StreamingResponse:
    """Server-sent events; starlette closes the generator when the client goes away."""
    return StreamingResponse(
        _events(choices, envelope),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _events(choices: Choices, envelope: Envelope) -> AsyncIterator[bytes]:
    shape = envelope.shape
    extra: Json = {"usage": None} if envelope.include_usage else {}
    written = [0] * len(choices.streams)
    finishes: list[Finished] = []

    def chunk(choice: Json) -> bytes:
        return _sse(envelope.wrap(shape.chunk_object, [choice], **extra))

    async with choices:
        for index in range(len(choices.streams)):
            opening = shape.opening(index)
            if opening is not None:
                yield chunk(opening)
        async for index, event in choices.events():
            match event:
                case Delta():
                    if event.text or event.logprob is not None:
                        logprobs = [event.logprob] if event.logprob is not None else []
                        yield chunk(shape.piece(index, event.text, logprobs, written[index]))
                        written[index] += len(event.text)
                case Finished():
                    finishes.append(event)
                    yield chunk(shape.closing(index, event))
                case Broken():
                    # The status has gone out already; the error is the stream's last event.
                    yield _sse(error_body(event.error))
                    return
        if envelope.include_usage:
            totals = usage(finishes, envelope.prompts)
            yield _sse(envelope.wrap(shape.chunk_object, [], usage=totals))
        yield b"data: [DONE]\n\n"


def _sse(body: Json) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
