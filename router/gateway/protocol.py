"""uvicorn's HTTP protocol with bounds: on the size of a request's head, and on the time it takes.

uvicorn's httptools protocol reads heads of any length and waits for them for ever; llhttp does not
bound them either. Bodies are bounded where they are read; the bound on a whole message here only
ends connections that keep sending after they were refused.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from router.gateway.generate import ABORT_EXTENSION

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200
HEAD_TIMEOUT_S = 30.0

_WIRE_PER_BODY_BYTE = 6
"""Of a chunked body in chunks of one byte."""
_DRAIN_BYTES = 32 * 1024 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class GatewayConfig(Config):
    """uvicorn's, with what BoundedProtocol needs to know."""

    max_body_bytes: int = 1024 * 1024


class BoundedProtocol(HttpToolsProtocol):
    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, GatewayConfig)
        self._max_message_bytes = (
            MAX_HEAD_BYTES + _WIRE_PER_BODY_BYTE * config.max_body_bytes + _DRAIN_BYTES
        )
        self._message_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._message_bytes += len(data)
        if self._in_head and self._message_bytes > MAX_HEAD_BYTES:
            self.send_400_response("The request's head is too large.")
        elif self._message_bytes > self._max_message_bytes:
            self._cut()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._message_bytes = 0
        self._in_head = True
        if self._head_timer is None:
            self._expect_head()
        # What a stalled reader needs: closing would wait for it to read what is buffered.
        self.scope["extensions"] = {ABORT_EXTENSION: self._cut}  # type: ignore[dict-item]

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= MAX_HEADERS or not self._in_head:
            # Raising makes the parser give up: 400 and the connection ends. Trailers end it too.
            raise ValueError("too many headers, or headers after the body")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._cancel_timer()
        super().on_headers_complete()

    def _cut(self) -> None:
        """Resets the connection: what is buffered for the peer, in the kernel too, is dropped."""
        peer = self.transport.get_extra_info("socket")
        if peer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_too_slow)

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _cancel_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
