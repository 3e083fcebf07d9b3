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
from dataclasses import replace

import uvicorn

from helix_mq.clock import Clock
from helix_mq.errors import ConfigError, NotServing
from helix_mq.transport.endpoints import is_loopback
from router.gateway.app import DEFAULT_TIMINGS, GatewaySettings, build_app
from router.gateway.auth import ApiKeys
from router.gateway.generate import OpenRequests, Timings
from router.gateway.places import Holder, Places
from router.gateway.protocol import BoundedProtocol, GatewayConfig
from router.gateway.tls import TlsDoor, TlsFiles
from router.journal_reader import JournalReader
from router.metrics import RouterMetrics
from router.operating import Operator
from router.service import Service

log = logging.getLogger(__name__)

_BACKLOG = 4096
"""As long as Linux lets it be (net.core.somaxconn): connections past it are dropped or reset, and
nobody is told why."""
_ACCEPTS_PER_TURN = 16
"""The event loop takes one connection from a listening socket per turn (libuv since 1.47). Under
ten times the load a turn takes some 5 ms: of 340 connections/s less than half came in, refusals
took 18 s, and past the backlog connections were reset. So the loop watches the socket so many
times; in turns with nothing to take it costs nothing."""
_STOP_GRACE_S = 3


class _GuestServer(uvicorn.Server):
    """Listens itself, so that connections can begin with a handshake of ours."""

    def __init__(self, config: GatewayConfig, tls: TlsFiles | None) -> None:
        super().__init__(config)
        self._gateway = config
        self._tls = tls
        self._door: TlsDoor | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.servers = []
        if self._tls is not None:
            self._door = TlsDoor(self._new_protocol, self._tls, self._gateway.places)
        for bound in sockets or ():
            if self._door is not None:
                self._door.listen(bound)
            else:
                server = await loop.create_server(self._new_protocol, sock=bound, backlog=_BACKLOG)
                self.servers.append(server)
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._door is not None:
            await self._door.close()
        await super().shutdown(sockets)

    def _new_protocol(self, instead_of: Holder | None = None) -> BoundedProtocol:
        protocol = BoundedProtocol(self._gateway, self.server_state, self.lifespan.state)
        protocol.instead_of = instead_of
        return protocol


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
        self._tls = TlsFiles.of(settings)
        self._open_requests = OpenRequests()
        self._keys = ApiKeys(settings.api_keys, settings.keys_file)
        app = build_app(
            service,
            settings,
            metrics,
            clock=clock,
            open_requests=self._open_requests,
            timings=replace(timings, body_s=settings.body_timeout_s),
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
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=_STOP_GRACE_S,
        )
        config.settings = settings
        self.places = config.places = Places(settings.max_connections)
        self._server = _GuestServer(config, self._tls)
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
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Binds and serves. Raises ConfigError when the address cannot be used."""
        bound = await _bind(self._settings)
        self._port = bound.getsockname()[1]
        copies = _ACCEPTS_PER_TURN - 1 if self._tls is None else 0
        listening = [bound, *(bound.dup() for _ in range(copies))]
        self._task = asyncio.create_task(self._server.serve(sockets=listening), name="http-server")
        while not self._server.started:
            # uvicorn has no event for it; with a bound socket it takes a few turns of the loop.
            if self._task.done():
                await self._task
            await asyncio.sleep(0)
        self._watching = [asyncio.create_task(self._keys.watch(), name="http-keys")]
        if self._tls is not None:
            self._watching.append(asyncio.create_task(self._tls.watch(), name="http-tls"))
        self._warn()

    def _warn(self) -> None:
        if is_loopback(self._settings.host):
            return
        if not self._keys.demanded:
            log.warning(
                "anybody who reaches %s may use the model: there are no API keys; make them with "
                "`helix-mq keys api new NAME` and set http.keys_file",
                self.url,
            )
        elif self._tls is None:
            log.warning(
                "%s: prompts, answers and API keys cross the network in the clear: set "
                "http.tls_cert and http.tls_key, or put a proxy with TLS in front",
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
