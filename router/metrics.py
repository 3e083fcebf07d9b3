"""Prometheus metrics of one router, in a registry of its own.

Counters and histograms follow the events of streams; gauges are read from the service's status when
somebody scrapes, and only then, so that nodes that left do not stay as last known values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Histogram,
    generate_latest,
)
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from helix_mq.clock import Clock
from helix_mq.errors import HelixError
from helix_mq.ids import RequestId
from router.recent import Recent
from router.service import Broken, Delta, Finished, JournalStatus, ServiceStatus, StreamEvent

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_TOTAL_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)

_Family = CounterMetricFamily | GaugeMetricFamily


class RouterMetrics:
    """`outcome` of a request is its finish reason, or the code of its error."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started: dict[RequestId, float] = {}
        self._last: dict[RequestId, float] = {}
        self.recent = Recent(clock)
        self.admitted = 0
        self.refused_by: Counter[str] = Counter()
        """Refusals by the code of their error."""
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Ended requests by outcome.", "outcome")
        self._responses = self._counter(
            "http_responses", "HTTP responses by route and status.", "route", "status"
        )
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of accepted requests.")
        self._output = self._counter("output_tokens", "Output tokens emitted.")
        self._reroutes = self._counter("reroutes", "Times finished requests had been re-routed.")
        self._ttft = self._histogram(
            "time_to_first_token_seconds", "From submission to the first token.", _TTFT_S
        )
        self._itl = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of a stream.", _ITL_S
        )
        self._queue = self._histogram(
            "queue_seconds", "From submission to the start on a route.", _TTFT_S
        )
        self._total = self._histogram("request_seconds", "From submission to the end.", _TOTAL_S)
        self._gauges = _StatusCollector()
        self._registry.register(self._gauges)

    def accepted(self, request: RequestId, prompt_tokens: int) -> None:
        self.admitted += 1
        self._started[request] = self._clock.now_s()
        self._prompt.inc(prompt_tokens)

    def refused(self, error: HelixError) -> None:
        self.refused_by[error.code] += 1
        self._requests.labels(error.code).inc()

    def responded(self, route: str, status: int) -> None:
        """An HTTP response began. `route` is a pattern of ours, never a client's path."""
        self._responses.labels(route, str(status)).inc()

    def saw(self, request: RequestId, event: StreamEvent) -> None:
        """An event of a stream, as it is emitted."""
        now_s = self._clock.now_s()
        match event:
            case Delta(token=int()):
                self._output.inc()
                last_s, started_s = self._last.get(request), self._started.get(request)
                gap_s = now_s - last_s if last_s is not None else None
                first_s = now_s - started_s if started_s is not None else None
                if gap_s is not None:
                    self._itl.observe(gap_s)
                elif first_s is not None:
                    self._ttft.observe(first_s)
                self.recent.token(now_s, gap_s, first_s)
                self._last[request] = now_s
            case Finished():
                self._reroutes.inc(event.reroutes)
                self._queue.observe(event.queue_s)
                self._ended(request, event.finish_reason, now_s)
            case Broken():
                self._ended(request, event.error.code, now_s)

    def _ended(self, request: RequestId, outcome: str, now_s: float) -> None:
        self._requests.labels(outcome).inc()
        started_s = self._started.pop(request, None)
        if started_s is not None:
            self._total.observe(now_s - started_s)
        self._last.pop(request, None)

    def render(self, status: ServiceStatus) -> tuple[bytes, str]:
        """The exposition text and its content type."""
        self._gauges.status = status
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _counter(self, name: str, text: str, *labels: str) -> PrometheusCounter:
        return PrometheusCounter(f"helix_mq_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"helix_mq_{name}", text, buckets=buckets, registry=self._registry)


class _StatusCollector(Collector):
    """Families made anew from the status of each scrape."""

    def __init__(self) -> None:
        self.status: ServiceStatus | None = None

    def collect(self) -> Iterator[_Family]:
        status = self.status
        if status is None:
            return
        yield _gauge("serving", "1 if the live nodes cover the model.", status.serving)
        yield _gauge("queued_requests", "Requests waiting for a route.", status.queued)
        yield _gauge("running_requests", "Requests on a route.", status.running)
        yield _gauge(
            "max_flow_tokens_per_second", "Max flow over live nodes.", status.flow_tokens_per_s
        )
        pages = _gauge("node_kv_pages", "KV pages of a node.", labels=("node", "kind"))
        held = _gauge("node_open_requests", "Sequences on a node.", labels=("node",))
        waiting = _gauge("node_waiting_rows", "Rows in a node's inbox.", labels=("node",))
        suspect = _gauge("node_suspect", "1 while new requests avoid it.", labels=("node",))
        slowdown = _gauge(
            "node_slowdown", "Step times, as a multiple of those measured.", labels=("node",)
        )
        rate = _gauge(
            "node_rate_tokens_per_second", "What it is taken to pass at most.", labels=("node",)
        )
        flow = _gauge("node_flow_tokens_per_second", "Its part of the max flow.", labels=("node",))
        for node in status.nodes:
            suspect.add_metric([node.node], bool(node.suspect))
            slowdown.add_metric([node.node], node.slowdown)
            rate.add_metric([node.node], node.rate_tokens_per_s)
            flow.add_metric([node.node], node.flow_tokens_per_s)
            pages.add_metric([node.node, "used"], node.kv_used_pages)
            pages.add_metric([node.node, "total"], node.kv_total_pages)
            held.add_metric([node.node], node.open_requests)
            waiting.add_metric([node.node], node.waiting_rows)
        ends = ("sender", "receiver")
        sent = CounterMetricFamily(
            "helix_mq_link_sent_bytes",
            "Bytes sent over a data link since its sender started.",
            labels=ends,
        )
        backlog = _gauge("link_backlog_bytes", "Bytes waiting for credit.", labels=ends)
        down = _gauge("link_down_seconds", "0 for a link that is connected.", labels=ends)
        speed = _gauge("link_bytes_per_second", "Acknowledged, the best lately.", labels=ends)
        width = _gauge(
            "link_probed_bytes_per_second", "What it can carry; 0: unknown.", labels=ends
        )
        trip = _gauge("link_round_trip_seconds", "The least lately; 0: unknown.", labels=ends)
        for link in status.links:
            speed.add_metric([link.sender, link.receiver], link.bytes_per_s)
            width.add_metric([link.sender, link.receiver], link.probed_bytes_per_s)
            trip.add_metric([link.sender, link.receiver], link.round_trip_s)
            sent.add_metric([link.sender, link.receiver], link.sent_bytes)
            backlog.add_metric([link.sender, link.receiver], link.backlog_bytes)
            down.add_metric([link.sender, link.receiver], link.down_s)
        yield from (
            pages,
            held,
            waiting,
            suspect,
            slowdown,
            rate,
            flow,
            sent,
            backlog,
            down,
            speed,
            width,
            trip,
        )
        if status.journal is not None:
            yield from _journal(status.journal)


def _journal(journal: JournalStatus) -> Iterator[_Family]:
    yield _gauge("journal_failing", "1 while the journal cannot be written.", journal.failing)
    yield _gauge("journal_pending_records", "Records not kept yet.", journal.pending_records)
    yield _gauge("journal_pending_bytes", "Memory of records not kept yet.", journal.pending_bytes)
    yield _gauge("journal_used_bytes", "Of the journal's file.", journal.used_bytes)
    yield CounterMetricFamily(
        "helix_mq_journal_commits", "Transactions of the journal.", value=journal.commits
    )


def _gauge(
    name: str, text: str, value: float | None = None, labels: tuple[str, ...] | None = None
) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"helix_mq_{name}", text, value=value, labels=labels)
