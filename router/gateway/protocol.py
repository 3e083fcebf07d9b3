"""uvicorn's HTTP protocol with bounds: on connections, on heads, and on the time requests take.

uvicorn's httptools protocol reads heads of any length and waits for them for ever; llhttp does not
bound them either. Bodies are bounded where they are read; the bounds on a whole message here only
end connections that keep sending, however slowly, after they were refused.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from router.gateway.generate import ABORT_EXTENSION
from router.gateway.places import Holder, Places
from router.settings import HttpSection

_WIRE_PER_BODY_BYTE = 6
"""Of a chunked body in chunks of one byte."""
_DRAIN_BYTES = 32 * 1024 * 1024
_log = logging.getLogger("router.gateway.wire")
# uvicorn warns of each request that is none, which strangers can send by the thousand.
_log.setLevel(logging.ERROR)

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_MOST_PIPELINED = 32
"""Requests that wait for the one before: each costs 2 KB, and 20 bytes to send."""
_BODY_GRACE_S = 15.0
"""Beyond the time that who reads a body gives it: then nobody reads it."""
_NO_PLACE = b"""{"error":{"message":"too many connections are open here: try again soon",\
"type":"server_error","param":null,"code":"overloaded"}}"""
_TURNED_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 5\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(_NO_PLACE), _NO_PLACE)
)


class GatewayConfig(Config):
    """uvicorn's, with what BoundedProtocol needs to know."""

    settings: HttpSection = HttpSection()
    places: Places = Places(settings.max_connections)


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
        self.logger = _log
        self._limits = config.settings
        self._places = config.places
        self.instead_of: Holder | None = None
        """Whose place this connection takes over: that of its own handshake."""
        self._max_head_bytes = int(config.settings.max_head)
        self._max_message_bytes = (
            self._max_head_bytes
            + _WIRE_PER_BODY_BYTE * int(config.settings.max_body)
            + _DRAIN_BYTES
        )
        self._working: RequestResponseCycle | None = None
        """The request that is being answered; `cycle` is the last that has come."""
        self._message_bytes = 0
        self._in_head = True
        self._timer: asyncio.TimerHandle | None = None
        """Until the head is here, and then until the body is."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.instead_of is not None:
            self._places.leave(self.instead_of)
        if not self._places.enter(self):
            transport.write(_TURNED_AWAY)
            transport.close()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        self._places.leave(self)
        # uvicorn tells only the last request that has come, which may still wait for its turn.
        self.pipeline.clear()
        if self._working is not None and not self._working.response_complete:
            self._working.disconnected = True
            self._working.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._message_bytes += len(data)
        if self._in_head and self._message_bytes > self._max_head_bytes:
            self.send_400_response("The request's head is too large.")
        elif self._message_bytes > self._max_message_bytes:
            self._cut()
        elif self._timer is None and (self.cycle is None or self.cycle.response_complete):
            # Whatever came has stopped uvicorn's own timer, and need not have begun a request:
            # parsers skip empty lines.
            self._expect_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._message_bytes = 0
        self._in_head = True
        if self._timer is None:
            self._expect_head()
        # What a stalled reader needs: closing would wait for it to read what is buffered.
        self.scope["extensions"] = {ABORT_EXTENSION: self._cut}  # type: ignore[dict-item]

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= self._limits.max_headers or not self._in_head:
            # Raising makes the parser give up: 400 and the connection ends. Trailers end it too.
            raise ValueError("too many headers, or headers after the body")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise ValueError("too many requests before the answer to the first")
        self._in_head = False
        self._cancel_timer()
        body_s = self._limits.body_timeout_s + _BODY_GRACE_S
        self._timer = self.loop.call_later(body_s, self._body_too_slow)
        self._places.busy(self)
        before = self.cycle
        super().on_headers_complete()
        if before is None or before.response_complete:
            self._working = self.cycle

    def on_message_complete(self) -> None:
        self._cancel_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._working = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        # A pipelined request may have begun in there: then the connection stays busy.
        if self.cycle is None or self.cycle.response_complete:
            self._places.idle(self)

    def give_way(self) -> None:
        """See Holder: somebody needs the place of a connection that does nothing."""
        self.transport.abort()

    def _cut(self) -> None:
        """Resets the connection: what is buffered for the peer, in the kernel too, is dropped."""
        peer = self.transport.get_extra_info("socket")
        if peer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(self._limits.head_timeout_s, self._head_too_slow)

    def _head_too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _body_too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self._cut()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
