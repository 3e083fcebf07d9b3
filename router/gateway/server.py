"""The HTTP server within the router's loop: start, stop, the real port.

uvicorn runs as a guest here: it neither catches signals nor opens its own socket, since on a port
in use it would end the process. Stopping ends open streams with an error that says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Generator

import uvicorn

from helix_mq.clock import Clock
from helix_mq.errors import ConfigError, NotServing
from helix_mq.transport.endpoints import is_loopback
from router.gateway.app import DEFAULT_TIMINGS, GatewaySettings, build_app
from router.gateway.auth import ApiKeys
from router.gateway.generate import OpenRequests, Timings
from router.gateway.protocol import BoundedProtocol, GatewayConfig
from router.journal_reader import JournalReader
from router.metrics import RouterMetrics
from router.operating import Operator
from router.service import Service

log = logging.getLogger(__name__)

_BACKLOG = 2048
_ACCEPTS_PER_TURN = 16
"""The event loop takes one connection from a listening socket per turn (libuv since 1.47). Under
ten times the load a turn takes some 5 ms: of 340 connections/s less than half came in, refusals
took 18 s, and past the backlog connections were reset. So the loop watches the socket so many
times; in turns with nothing to take it costs nothing."""
_KEEP_ALIVE_S = 75
_STOP_GRACE_S = 3


class _GuestServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class GatewayServer:
    """The OpenAI-compatible endpoint over a Service."""

    def __init__(
        self,
        service: Service,
        settings: GatewaySettings,
        metrics: RouterMetrics,
        *,
        clock: Clock | None = None,
        timings: Timings = DEFAULT_TIMINGS,
        requests: JournalReader | None = None,
        operator: Operator | None = None,
    ) -> None:
        """Raises ConfigError for wrong settings."""
        self._settings = settings
        self._open_requests = OpenRequests()
        self._keys = ApiKeys(settings.api_keys, settings.keys_file)
        app = build_app(
            service,
            settings,
            metrics,
            clock=clock,
            open_requests=self._open_requests,
            timings=timings,
            requests=requests,
            operator=operator,
            keys=self._keys,
        )
        config = GatewayConfig(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_STOP_GRACE_S,
        )
        config.max_body_bytes = int(settings.max_body)
        self._server = _GuestServer(config)
        self._port: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._watching: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        """The real one, after start."""
        assert self._port is not None
        return self._port

    @property
    def url(self) -> str:
        """Without a path: `http://127.0.0.1:8000`."""
        host = self._settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Binds and serves. Raises ConfigError when the address cannot be used."""
        bound = await _bind(self._settings)
        self._port = bound.getsockname()[1]
        listening = [bound, *(bound.dup() for _ in range(_ACCEPTS_PER_TURN - 1))]
        self._task = asyncio.create_task(self._server.serve(sockets=listening), name="http-server")
        while not self._server.started:
            # uvicorn has no event for it; with a bound socket it takes a few turns of the loop.
            if self._task.done():
                await self._task
            await asyncio.sleep(0)
        self._watching = [asyncio.create_task(self._keys.watch(), name="http-keys")]
        if not self._keys.demanded and not is_loopback(self._settings.host):
            log.warning(
                "anybody who reaches %s may use the model: there are no API keys; make them with "
                "`helix-mq keys api new NAME` and set http.keys_file",
                self.url,
            )

    async def stop(self) -> None:
        """Refuses new connections, ends open requests with an error, closes every connection."""
        if self._task is None:
            return
        self._open_requests.stop(NotServing("the router is shutting down", retry_after_s=5.0))
        self._server.should_exit = True
        for task in self._watching:
            task.cancel()
        await asyncio.gather(self._task, *self._watching, return_exceptions=True)
        self._task = None


async def _bind(settings: GatewaySettings) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, proto, _, address = found[0]
        bound = socket.socket(family, kind, proto)
    except OSError as e:
        raise _cannot_bind(settings, e, "http.host") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        bound.bind(address)
        # Until here another process may bind the same port; listening makes it ours.
        bound.listen(_BACKLOG)
    except OSError as e:
        bound.close()
        raise _cannot_bind(settings, e, "http.port") from None
    return bound


def _cannot_bind(settings: GatewaySettings, error: OSError, param: str) -> ConfigError:
    return ConfigError(
        f"cannot serve HTTP on {settings.host}:{settings.port}: {error.strerror or error}; choose "
        "another http.host or http.port",
        param=param,
    )
