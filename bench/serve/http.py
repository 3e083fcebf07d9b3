"""HTTP/1.1 as a load needs it: bodies with the time at which their bytes came, kept connections.

On llhttp (httptools) and bare protocols: a general client spends more on a chunk than a server
does, and would be measured instead of it. Times are taken when bytes arrive, before anything is
parsed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from helix_mq.clock import Clock
from helix_mq.errors import ConfigError, ConnectionLost, PeerError

MAX_HEADER_BYTES = 64 << 10
OnBody = Callable[[int, bytes, float], None]
"""Takes the status, a piece of the body, and when it came."""


class BadAnswer(PeerError):
    code = "bad_answer"


@dataclass(frozen=True, slots=True)
class Base:
    """Where a server is. `path` without a slash at its end, e.g. `/v1`."""

    host: str
    port: int
    tls: bool
    path: str

    @property
    def host_header(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.tls else 80) else f"{name}:{self.port}"


def parse_base(url: str) -> Base:
    """ConfigError unless it is an http or https URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"url={url!r} is not like http://HOST:PORT/v1 or https://HOST/v1", param="url"
        )
    tls = parts.scheme == "https"
    return Base(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))


@dataclass(slots=True)
class Exchange:
    """One answer as it comes."""

    on_body: OnBody
    ended: asyncio.Future[None]
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    header_bytes: int = 0
    begun: bool = False
    """Some of the answer has come."""


class Connection(asyncio.Protocol):
    """One request at a time. `reusable` once its answer is complete and the server keeps it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._at_s = 0.0
        self._error: Exception | None = None
        self.reusable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's by shape, not by class.
        self._transport = cast(asyncio.Transport, transport)

    def start(self, request: bytes, exchange: Exchange) -> None:
        """Sends a request; the exchange's future ends with its answer, or raises."""
        assert self._transport is not None
        self.reusable = False
        self._error = None
        self._exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None or self._parser is None:
            # Nothing was asked: whatever this server says, the connection is not to be used.
            self.close()
            return
        self._at_s = self._clock.now_s()
        exchange.begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as e:
            self._fail(self._error or e.__context__ or e)
        except httptools.HttpParserError as e:
            self._fail(BadAnswer(f"the answer is no HTTP: {e}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        exchange, parser = self._exchange, self._parser
        if exchange is None:
            return
        headers = exchange.headers
        sized = "content-length" in headers or "chunked" in headers.get("transfer-encoding", "")
        if exc is None and exchange.status and parser is not None and not sized:
            # Without a length an answer ends with its connection.
            self._end()
        else:
            why = f": {exc}" if exc is not None else ""
            self._fail(ConnectionLost(f"the connection was closed{why}"))

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        exchange.header_bytes += len(name) + len(value)
        if exchange.header_bytes > MAX_HEADER_BYTES:
            self._error = BadAnswer(f"headers of more than {MAX_HEADER_BYTES} bytes")
            raise self._error
        exchange.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._exchange is not None and self._parser is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._exchange is None:
            return
        try:
            self._exchange.on_body(self._exchange.status, body, self._at_s)
        except Exception as e:
            self._error = e
            raise

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if exchange is None or self._parser is None:
            return
        if 100 <= exchange.status < 200:
            exchange.status = 0
            return
        self.reusable = self._parser.should_keep_alive()
        self._end()

    def _end(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None and not exchange.ended.done():
            exchange.ended.set_result(None)

    def _fail(self, error: BaseException) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None and not exchange.ended.done():
            exchange.ended.set_exception(error)
        self.close()

    def close(self) -> None:
        """At once, whatever is under way."""
        self.reusable = False
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()


class Pool:
    """Connections to one server, kept while they may be used again; as many as are needed."""

    def __init__(self, base: Base, clock: Clock, connect_timeout_s: float = 30.0) -> None:
        self._base = base
        self._clock = clock
        self._timeout_s = connect_timeout_s
        self._idle: list[Connection] = []
        self._tls = ssl.create_default_context() if base.tls else None
        self.opened = 0

    async def exchange(self, request: bytes, on_body: OnBody) -> Exchange:
        """Sends a request and waits for the end of its answer. Raises ConnectionLost, BadAnswer, or
        what `on_body` raises; the connection is closed then, and when it is cancelled.

        A kept connection that the server closed meanwhile is no fault of either: then the request
        goes out once more on a new one, as long as nothing of an answer had come.
        """
        connection = self._kept()
        if connection is not None:
            exchange = self._new(on_body)
            try:
                return await self._run(connection, request, exchange)
            except ConnectionLost:
                if exchange.begun:
                    raise
        return await self._run(await self._connect(), request, self._new(on_body))

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _new(self, on_body: OnBody) -> Exchange:
        return Exchange(on_body, asyncio.get_running_loop().create_future())

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    async def _run(self, connection: Connection, request: bytes, exchange: Exchange) -> Exchange:
        connection.start(request, exchange)
        try:
            await exchange.ended
        except BaseException:
            connection.close()
            raise
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return exchange

    async def _connect(self) -> Connection:
        loop, base = asyncio.get_running_loop(), self._base
        try:
            async with asyncio.timeout(self._timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._clock), base.host, base.port, ssl=self._tls
                )
        except TimeoutError:
            raise ConnectionLost(
                f"no connection to {base.host}:{base.port} within {self._timeout_s:g} s"
            ) from None
        except OSError as e:
            raise ConnectionLost(
                f"no connection to {base.host}:{base.port}: {e.strerror or e}"
            ) from None
        self.opened += 1
        return connection
