"""Prometheus metrics of one router, in a registry of its own.

Counters follow the events of streams; gauges are read from the service's status when scraped.
"""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from helix_mq.clock import Clock
from helix_mq.errors import HelixError
from helix_mq.ids import RequestId
from router.service import Broken, Delta, Finished, ServiceStatus, StreamEvent

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class RouterMetrics:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started: dict[RequestId, float] = {}
        self._last: dict[RequestId, float] = {}
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "helix_mq_requests", "Ended requests by outcome.", ["outcome"], registry=registry
        )
        self._prompt = Counter(
            "helix_mq_prompt_tokens", "Prompt tokens of accepted requests.", registry=registry
        )
        self._output = Counter(
            "helix_mq_output_tokens", "Output tokens emitted.", registry=registry
        )
        self._reroutes = Counter(
            "helix_mq_reroutes", "Times a finished request had been re-routed.", registry=registry
        )
        self._ttft = Histogram(
            "helix_mq_time_to_first_token_seconds",
            "From submission to the first token.",
            buckets=_TTFT_S,
            registry=registry,
        )
        self._itl = Histogram(
            "helix_mq_inter_token_latency_seconds",
            "Between two tokens of a stream.",
            buckets=_ITL_S,
            registry=registry,
        )
        self._serving = Gauge("helix_mq_serving", "1 if the model is covered.", registry=registry)
        self._queued = Gauge("helix_mq_queued_requests", "Waiting requests.", registry=registry)
        self._running = Gauge("helix_mq_running_requests", "Running requests.", registry=registry)
        self._flow = Gauge(
            "helix_mq_max_flow_tokens_per_second", "Max flow over live nodes.", registry=registry
        )
        self._kv = Gauge(
            "helix_mq_node_kv_pages", "KV pages of a node.", ["node", "kind"], registry=registry
        )
        self._open = Gauge(
            "helix_mq_node_open_requests", "Sequences on a node.", ["node"], registry=registry
        )
        self._waiting = Gauge(
            "helix_mq_node_waiting_rows", "Rows in a node's inbox.", ["node"], registry=registry
        )
        self._link_sent = Gauge(
            "helix_mq_link_sent_bytes",
            "Bytes sent over a data link since its sender started.",
            ["sender", "receiver"],
            registry=registry,
        )
        self._link_backlog = Gauge(
            "helix_mq_link_backlog_bytes",
            "Bytes waiting for credit.",
            ["sender", "receiver"],
            registry=registry,
        )

    def accepted(self, request: RequestId, prompt_tokens: int) -> None:
        self._started[request] = self._clock.now_s()
        self._prompt.inc(prompt_tokens)

    def refused(self, error: HelixError) -> None:
        self._requests.labels(error.code).inc()

    def saw(self, request: RequestId, event: StreamEvent) -> None:
        """An event of a stream, as it is emitted."""
        now_s = self._clock.now_s()
        match event:
            case Delta(token=int()):
                self._output.inc()
                last_s = self._last.get(request)
                if last_s is not None:
                    self._itl.observe(now_s - last_s)
                elif request in self._started:
                    self._ttft.observe(now_s - self._started[request])
                self._last[request] = now_s
            case Finished():
                self._requests.labels(event.finish_reason).inc()
                self._reroutes.inc(event.reroutes)
                self._forget(request)
            case Broken():
                self._requests.labels(event.error.code).inc()
                self._forget(request)

    def _forget(self, request: RequestId) -> None:
        self._started.pop(request, None)
        self._last.pop(request, None)

    def render(self, status: ServiceStatus) -> tuple[bytes, str]:
        """The exposition text and its content type."""
        self._serving.set(status.serving)
        self._queued.set(status.queued)
        self._running.set(status.running)
        self._flow.set(status.flow_tokens_per_s)
        for gauge in (self._kv, self._open, self._waiting, self._link_sent, self._link_backlog):
            # Nodes that left must not stay behind as last known values.
            gauge.clear()
        for node in status.nodes:
            self._kv.labels(node.node, "used").set(node.kv_used_pages)
            self._kv.labels(node.node, "total").set(node.kv_total_pages)
            self._open.labels(node.node).set(node.open_requests)
            self._waiting.labels(node.node).set(node.waiting_rows)
        for link in status.links:
            self._link_sent.labels(link.sender, link.receiver).set(link.sent_bytes)
            self._link_backlog.labels(link.sender, link.receiver).set(link.backlog_bytes)
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
