"""Prometheus metrics of one router, in a registry of its own.

Counters and histograms follow the events of streams; gauges are read from the service's status when
somebody scrapes, and only then, so that nodes that left do not stay as last known values.
"""

from __future__ import annotations

from collections import Counter
from threading import Lock

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client import Counter as PrometheusCounter

import helix_mq
from helix_mq.clock import Clock
from helix_mq.errors import HelixError
from helix_mq.ids import RequestId
from router.recent import Recent
from router.service import Broken, Delta, Finished, ServiceStatus, StreamEvent
from router.status_metrics import StatusCollector
from router.token_metrics import TokenTimes

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_TOTAL_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


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
        self._rendering = Lock()
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Ended requests by outcome.", "outcome")
        self._responses = self._counter(
            "http_responses", "HTTP responses by route and status.", "route", "status"
        )
        self._accepted = self._counter("accepted_requests", "Requests admitted or queued.")
        self._happenings = self._counter(
            "happenings", "What happened to the cluster, by kind (docs/seeing.md).", "kind"
        )
        self._bad = self._counter(
            "bad_messages", "Messages that were no good, by reason.", "reason"
        )
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of accepted requests.")
        self._cached = self._counter(
            "cached_prompt_tokens", "Prompt tokens of finished requests that nodes had kept."
        )
        self._reroutes = self._counter("reroutes", "Times finished requests had been re-routed.")
        self._ttft = self._histogram(
            "time_to_first_token_seconds", "From submission to the first token.", _TTFT_S
        )
        self._queue = self._histogram(
            "queue_seconds", "From submission to the start on a route.", _TTFT_S
        )
        self._total = self._histogram("request_seconds", "From submission to the end.", _TOTAL_S)
        # Memory, processor time and open files of this process.
        ProcessCollector(registry=self._registry)
        self._build = Gauge(
            "helix_mq_build_info", "1; the version.", ("version",), registry=self._registry
        )
        self._build.labels(helix_mq.__version__).set(1)
        self._tokens = TokenTimes(_ITL_S)
        self._registry.register(self._tokens)
        self._gauges = StatusCollector()
        self._registry.register(self._gauges)

    def accepted(self, request: RequestId, prompt_tokens: int) -> None:
        self.admitted += 1
        self._accepted.inc()
        self._started[request] = self._clock.now_s()
        self._prompt.inc(prompt_tokens)

    def refused(self, error: HelixError) -> None:
        self.refused_by[error.code] += 1
        self._requests.labels(error.code).inc()

    def happened(self, kind: str) -> None:
        self._happenings.labels(kind).inc()

    def bad_message(self, reason: str) -> None:
        self._bad.labels(reason).inc()

    def responded(self, route: str, status: int) -> None:
        """An HTTP response began. `route` is a pattern of ours, never a client's path."""
        self._responses.labels(route, str(status)).inc()

    def saw(self, request: RequestId, event: StreamEvent) -> None:
        """An event of a stream, as it is emitted."""
        now_s = self._clock.now_s()
        match event:
            case Delta(token=int()):
                self._tokens.tokens += 1
                last_s, started_s = self._last.get(request), self._started.get(request)
                gap_s = now_s - last_s if last_s is not None else None
                first_s = now_s - started_s if started_s is not None else None
                if gap_s is not None:
                    self._tokens.gap(gap_s)
                elif first_s is not None:
                    self._ttft.observe(first_s)
                self.recent.token(now_s, gap_s, first_s)
                self._last[request] = now_s
            case Finished():
                self._reroutes.inc(event.reroutes)
                self._cached.inc(event.cached_tokens)
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
        """The exposition text and its content type. From any thread: it takes a while."""
        with self._rendering:
            self._gauges.status = status
            return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _counter(self, name: str, text: str, *labels: str) -> PrometheusCounter:
        return PrometheusCounter(f"helix_mq_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"helix_mq_{name}", text, buckets=buckets, registry=self._registry)
