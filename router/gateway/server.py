"""uvicorn inside the router's own loop: starts, says where it listens, stops with it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from helix_mq.errors import ConfigError, LocalError
from router.gateway.app import build_gateway
from router.metrics import RouterMetrics
from router.service import Service
from router.settings import HttpSection

_BACKLOG = 2048


class _Server(uvicorn.Server):
    """Leaves signals to the process that it is a part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class GatewayServer:
    def __init__(self, service: Service, settings: HttpSection, metrics: RouterMetrics) -> None:
        self._settings = settings
        config = uvicorn.Config(
            build_gateway(service, settings, metrics),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=64 * 1024,
        )
        self._server = _Server(config)
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Binds and serves. ConfigError when the address cannot be used."""
        self._socket = _bind(self._settings.host, self._settings.port)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http")
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise LocalError("the HTTP server ended while starting")
            await asyncio.sleep(0.01)

    @property
    def url(self) -> str:
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Lets running answers end for a few seconds, then closes."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task
            self._task = None
        if self._socket is not None:
            self._socket.close()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except OSError as e:
        listening.close()
        raise ConfigError(
            f"http: cannot listen on {host}:{port}: {e.strerror or e}; choose another http.port "
            "or stop what uses it",
            param="http.port",
        ) from None
    return listening
