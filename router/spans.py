"""OpenTelemetry spans of ended requests, one per request with a child per hop; only where an
exporter is configured. The only file that imports opentelemetry, and only when it is.

Nothing on a request's way knows of this: spans are made of traces (router.trace_book) a moment
after the end, when nodes have told. What cannot be sent is dropped, never waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import helix_mq
from helix_mq.clock import Clock
from helix_mq.errors import ConfigError
from helix_mq.ids import RequestId
from router.settings import TelemetrySection
from router.trace_book import HopTimes, TracePicture
from router.trace_desk import TraceDesk

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)

GRACE_S = 3.0
"""After its end a request's nodes have so long to tell; heartbeats come every second."""
LOOK_S = 0.5
MAX_WAITING = 4096
"""Ended requests whose spans are not made yet: beyond, the oldest go without."""
PER_TURN = 6
"""Requests whose spans are made before the loop goes on with something else: some 2 ms of work."""
_CLOSING_S = 2.0


def start_spans(settings: TelemetrySection, traces: TraceDesk, clock: Clock) -> SpanExport | None:
    """None where no exporter is configured. Raises ConfigError in words."""
    if not settings.otlp_endpoint:
        return None
    return SpanExport(*_provider(settings), traces, clock)


def _provider(settings: TelemetrySection) -> tuple[TracerProvider, SpanExporter]:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as e:
        raise ConfigError(
            f"telemetry.otlp_endpoint is set, but OpenTelemetry is not installed ({e}): "
            "`pip install 'helix-mq[otel]'`, or leave the endpoint out",
            param="telemetry.otlp_endpoint",
        ) from None
    resource = Resource.create(
        {"service.name": settings.service_name, "service.version": helix_mq.__version__}
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=_endpoint(settings.otlp_endpoint), timeout=5)
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=16_384, schedule_delay_millis=1000)
    )
    return provider, exporter


def _endpoint(url: str) -> str:
    """Collectors are named by their address; the path for spans is OTLP's."""
    if urlsplit(url).path.strip("/"):
        return url
    return f"{url.rstrip('/')}/v1/traces"


class SpanExport:
    """From the start to `close`; needs a running loop."""

    def __init__(
        self, provider: TracerProvider, exporter: SpanExporter, traces: TraceDesk, clock: Clock
    ) -> None:
        self._provider = provider
        self._exporter = exporter
        self._tracer: Tracer = provider.get_tracer("helix_mq", helix_mq.__version__)
        self._traces = traces
        self._clock = clock
        self._ended = traces.ended = deque(maxlen=MAX_WAITING)
        self._task = asyncio.create_task(self._run(), name="router-spans")

    async def close(self) -> None:
        """Sends what there is, as far as that takes no longer than a few seconds."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._traces.ended = None
        await self.make(grace_s=0.0)
        flushing = asyncio.to_thread(self._provider.force_flush, int(_CLOSING_S * 1000))
        try:
            async with asyncio.timeout(_CLOSING_S):
                await flushing
        except TimeoutError:
            log.warning("the last spans were not taken by the collector")
            # Else closing would wait for all of its attempts.
            await asyncio.to_thread(self._exporter.shutdown)
        await asyncio.to_thread(self._provider.shutdown)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.make()
            except Exception:
                log.exception("the spans of a request could not be made")

    async def make(self, grace_s: float = GRACE_S) -> None:
        """Spans of the requests whose nodes have all told, or have had their time to."""
        now_s, made = self._clock.wall_s(), 0
        # Those that end meanwhile come behind these: there are always as many left.
        for _ in range(len(self._ended)):
            request = self._ended.popleft()
            record = self._traces.book.get(request)
            if record is None:
                continue
            if record.untold() and now_s - record.ended_s < grace_s:
                self._ended.append(request)
                continue
            self._spans(request, self._traces.picture(request, record))
            made += 1
            if made % PER_TURN == 0:
                await asyncio.sleep(0)

    def _spans(self, request: RequestId, trace: TracePicture) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        starts_s, ends_s = trace.submitted_s, trace.submitted_s + trace.total_s
        span = self._tracer.start_span(
            "request",
            kind=SpanKind.SERVER,
            start_time=_ns(starts_s),
            attributes={
                "helix_mq.request": trace.id,
                "helix_mq.outcome": trace.outcome,
                "helix_mq.attempts": trace.attempts,
                "helix_mq.queue_seconds": trace.queue_s,
                "helix_mq.first_token_seconds": trace.ttft_s,
                "gen_ai.usage.input_tokens": trace.prompt_tokens,
                "gen_ai.usage.output_tokens": trace.output_tokens,
            },
        )
        if trace.wire_s is not None:
            span.set_attribute("helix_mq.wire_seconds_per_token", trace.wire_s)
        if trace.ttft_s:
            span.add_event("first token", timestamp=_ns(starts_s + trace.ttft_s))
        if trace.state == "failed":
            span.set_status(Status(StatusCode.ERROR, trace.outcome))
        inside = set_span_in_context(span)
        if trace.queue_s > 0:
            waiting = self._tracer.start_span("wait for a route", inside, start_time=_ns(starts_s))
            waiting.end(_ns(starts_s + trace.queue_s))
        for hop in trace.hops:
            self._hop(hop, inside, starts_s, ends_s)
        span.end(_ns(ends_s))

    def _hop(self, hop: HopTimes, inside: Context, starts_s: float, ends_s: float) -> None:
        attributes: dict[str, str | int | float] = {
            "helix_mq.node": hop.node,
            "helix_mq.layers": hop.layers,
            "helix_mq.attempt": hop.attempt,
            "helix_mq.known": hop.known,
        }
        for name, phase in (("prefill", hop.prefill), ("decode", hop.decode)):
            attributes[f"helix_mq.{name}.steps"] = phase.steps
            attributes[f"helix_mq.{name}.tokens"] = phase.tokens
            attributes[f"helix_mq.{name}.queue_seconds"] = phase.queue_s
            attributes[f"helix_mq.{name}.compute_seconds"] = phase.compute_s
            attributes[f"helix_mq.{name}.serialise_seconds"] = phase.serialise_s
        # By the node's clock; one that is off must not put the hop outside its request.
        begins_s = min(max(hop.began_s or starts_s, starts_s), ends_s)
        span = self._tracer.start_span(
            f"hop {hop.node}", inside, start_time=_ns(begins_s), attributes=attributes
        )
        span.end(_ns(min(begins_s + hop.span_s, ends_s)))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
