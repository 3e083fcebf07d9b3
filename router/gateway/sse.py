"""Server-sent events onto an ASGI connection: what has gathered goes out in one write.

A client that stops reading is cut off after a while, since its generation would fill buffers and
its socket would stay for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Send

PING = b": still here\n\n"
"""A comment, which clients skip; proxies see that the connection lives."""

DONE = b"data: [DONE]\n\n"


class ClientStalled(Exception):
    """The client has taken nothing for too long."""


class SseWriter:
    def __init__(self, send: Send, abort: Callable[[], None] | None, stall_s: float) -> None:
        """`abort` cuts the connection; without it a stalled one is left to the server's close."""
        self._send = send
        self._abort = abort
        self._stall_s = stall_s
        self.started = False

    async def start(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        await self._send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-cache"),
                    # nginx would gather the stream into large pieces.
                    (b"x-accel-buffering", b"no"),
                    *headers,
                ],
            }
        )

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Sends `data`. Raises ClientStalled when the client does not take it in time."""
        if not data and not last:
            return
        try:
            async with asyncio.timeout(self._stall_s):
                await self._send(
                    {"type": "http.response.body", "body": data, "more_body": not last}
                )
        except TimeoutError:
            if self._abort is not None:
                self._abort()
            raise ClientStalled from None


def event(json: bytes) -> bytes:
    """One event; `json` holds no line breaks, as msgspec writes it."""
    return b"data: " + json + b"\n\n"
