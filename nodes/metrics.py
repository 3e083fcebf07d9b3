"""Prometheus metrics of one node, over its own small HTTP endpoint, where `[metrics] port` is set.

The router shows the most of what is here for all its nodes; this is for those who watch machines,
and for when the router is gone. Names begin with `helix_mq_local_`, so that sums over the router's
figures never count a node twice. GET /metrics, nothing else: no keys, so keep it on addresses that
are yours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector
from prometheus_client import generate_latest as generate
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

import helix_mq
from helix_mq.errors import ConfigError
from helix_mq.layers import LayerRange
from helix_mq.messages.control import LinkReport
from nodes.settings import MetricsSection
from nodes.steps import WorkerStatistics

log = logging.getLogger(__name__)

Family = CounterMetricFamily | GaugeMetricFamily

MAX_HEAD_BYTES = 8 * 1024
MAX_CONNECTIONS = 16
HEAD_S = 5.0


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """What a node says of itself at one moment."""

    node: str
    work: WorkerStatistics
    links: tuple[LinkReport, ...]
    layers: tuple[LayerRange, ...]
    bad_messages: int
    connected: bool
    """To the router's control socket."""


class _Figures(Collector):
    def __init__(self) -> None:
        self.now: NodeFigures | None = None

    def collect(self) -> Iterator[Family]:
        now = self.now
        if now is None:
            return
        work = now.work
        held = ", ".join(f"{r.first}-{r.end - 1}" for r in now.layers)
        info = _gauge("info", "1; what the node is and serves.", ("node", "layers", "version"))
        info.add_metric([now.node, held, helix_mq.__version__], 1)
        yield info
        yield _gauge("router_connected", "1 while the router is.", value=now.connected)
        yield _counter("steps", "Steps of the device.", value=work.steps)
        yield _counter("step_seconds", "Spent in steps.", value=work.step_s)
        yield _counter(
            "expected_step_seconds", "What they should have taken.", value=work.expected_s
        )
        yield _counter("tokens", "Tokens through its slices.", value=work.tokens)
        yield _counter("layer_tokens", "Tokens times layers.", value=work.layer_tokens)
        yield _gauge("open_requests", "Sequences with pages here.", value=work.open_requests)
        yield _gauge("waiting_rows", "Rows in the inbox.", value=work.waiting_rows)
        yield _gauge("waiting_tokens", "Tokens in the inbox.", value=work.waiting_tokens)
        pages = _gauge("kv_pages", "KV pages.", ("kind",))
        pages.add_metric(["used"], work.kv_total_pages - work.kv_free_pages)
        pages.add_metric(["total"], work.kv_total_pages)
        pages.add_metric(["cached"], work.kv_cached_pages)
        yield pages
        yield _counter("bad_messages", "Messages that were no good.", value=now.bad_messages)
        yield from _links(now.links)


def _links(links: tuple[LinkReport, ...]) -> Iterator[Family]:
    sent = _counter("link_sent_bytes", "Sent over a data link.", ("receiver",))
    blocked = _counter("link_blocked_seconds", "Frames waited for credit.", ("receiver",))
    backlog = _gauge("link_backlog_bytes", "Waiting.", ("receiver",))
    down = _gauge("link_down_seconds", "0 for a link that is connected.", ("receiver",))
    trip = _gauge("link_round_trip_seconds", "The least lately; 0: unknown.", ("receiver",))
    for link in links:
        sent.add_metric([link.peer], link.sent_bytes)
        blocked.add_metric([link.peer], link.blocked_s)
        backlog.add_metric([link.peer], link.backlog_bytes)
        down.add_metric([link.peer], link.down_s)
        trip.add_metric([link.peer], link.round_trip_s)
    yield from (sent, blocked, backlog, down, trip)


def _gauge(
    name: str, text: str, labels: tuple[str, ...] | None = None, value: float | None = None
) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"helix_mq_local_{name}", text, value=value, labels=labels)


def _counter(
    name: str, text: str, labels: tuple[str, ...] | None = None, value: float | None = None
) -> CounterMetricFamily:
    return CounterMetricFamily(f"helix_mq_local_{name}", text, value=value, labels=labels)


class NodeMetrics:
    """The endpoint. `start` binds; `close` ends open connections."""

    def __init__(self, settings: MetricsSection, figures: Callable[[], NodeFigures]) -> None:
        self._settings = settings
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._figures = figures
        self._shown = _Figures()
        self._registry.register(self._shown)
        self._rendering = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        """The real one, after start."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Raises ConfigError when the address cannot be used."""
        host, port = self._settings.host, self._settings.port
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES)
        except OSError as e:
            raise ConfigError(
                f"cannot show metrics on {host}:{port}: {e.strerror or e}; choose another "
                "metrics.host or metrics.port",
                param="metrics.port",
            ) from None
        log.info("metrics at http://%s:%d/metrics", host, self.port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                writer.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._open.add(writer)
        try:
            async with asyncio.timeout(HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method != b"GET" or path != b"/metrics":
            return _reply(b"404 Not Found", b"text/plain", b"there is only GET /metrics\n")
        # Some 25 ms with 255 links: too long for the loop that frames go through. One at a time, so
        # that those who scrape take one thread at most.
        async with self._rendering:
            self._shown.now = self._figures()
            text = await asyncio.to_thread(generate, self._registry)
        return _reply(b"200 OK", CONTENT_TYPE_LATEST.encode(), text)


def _reply(status: bytes, content_type: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    return head % (status, content_type, len(body)) + body
