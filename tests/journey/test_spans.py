"""Spans of requests, as a collector gets them: over real HTTP, decoded as OTLP."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from helix_mq.clock import SystemClock
from helix_mq.errors import ConfigError
from helix_mq.ids import RequestId
from router.settings import TelemetrySection
from router.spans import PER_TURN, SpanExport, start_spans
from router.trace_book import TracePicture
from tests.cluster import cluster, greedy


class Collector:
    """What came, decoded."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.paths: set[str] = set()
        self.service = ""
        self.url = ""


@contextmanager
def collector() -> Iterator[Collector]:
    got = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                raise AssertionError("not asked for")
            request = ExportTraceServiceRequest.FromString(body)
            got.paths.add(self.path)
            for resource in request.resource_spans:
                names = {a.key: a.value.string_value for a in resource.resource.attributes}
                got.service = names["service.name"]
                for scope in resource.scope_spans:
                    got.spans.extend(scope.spans)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    got.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_span_per_request_with_a_child_per_hop(tiny_folder: Path) -> None:
    with collector() as got:
        async with cluster(tiny_folder, {"a": "0:3", "b": "3:6"}) as c:
            settings = TelemetrySection(otlp_endpoint=got.url)
            export = start_spans(settings, c.app.traces, SystemClock())
            assert export is not None
            results = await asyncio.gather(*(c.run(greedy((i, 2, 3), 20)) for i in range(3)))
            await c.until(lambda: len(got.spans) >= 3 * 4, "spans arrive by themselves")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.0):
                    await c.run(greedy((9, 2, 3), 400))
            (left,) = c.app.core.sessions()
            c.app.cancel(left)
            await export.close()
    assert got.paths == {"/v1/traces"}
    assert got.service == "helix-mq-router"
    by_id = {span.span_id: span for span in got.spans}
    assert len(by_id) == len(got.spans), "each once"
    roots = [span for span in got.spans if span.name == "request"]
    done = [span for span in roots if _attributes(span)["helix_mq.outcome"] == "length"]
    assert len(done) == 3
    for root in roots:
        mine = [span for span in got.spans if span.parent_span_id == root.span_id]
        assert {span.trace_id for span in mine} <= {root.trace_id}
        for span in mine:
            assert root.start_time_unix_nano <= span.start_time_unix_nano
            assert span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano
    for root in done:
        mine = [span for span in got.spans if span.parent_span_id == root.span_id]
        assert sorted(span.name for span in mine) == ["hop a", "hop b", "wait for a route"]
        said = _attributes(root)
        assert said["gen_ai.usage.output_tokens"] == 20
        assert said["gen_ai.usage.input_tokens"] == 3
        assert [event.name for event in root.events] == ["first token"]
        hop = _attributes(next(span for span in mine if span.name == "hop b"))
        assert hop["helix_mq.known"] is True
        assert hop["helix_mq.layers"] == "layers 3-5"
        assert (hop["helix_mq.prefill.tokens"], hop["helix_mq.decode.steps"]) == (3, 19)
        assert hop["helix_mq.decode.compute_seconds"] > 0
    lengths = sorted((r.end_time_unix_nano - r.start_time_unix_nano) / 1e9 for r in done)
    assert lengths == pytest.approx(sorted(r.finish.total_s for r in results), abs=1e-3)


async def test_spans_of_many_requests_are_made_between_the_loops_other_work(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = 0
    made: list[int] = []
    spans = SpanExport._spans

    async def turning() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def noted(self: SpanExport, request: RequestId, trace: TracePicture) -> None:
        made.append(turn)
        spans(self, request, trace)

    monkeypatch.setattr(SpanExport, "_spans", noted)
    async with cluster(tiny_folder, {"a": "0:6"}) as c:
        provider, exporter = TracerProvider(), InMemorySpanExporter()
        export = SpanExport(provider, exporter, c.app.traces, SystemClock())
        await asyncio.gather(*(c.run(greedy((i, 2), 2)) for i in range(20)))
        beside = asyncio.create_task(turning())
        await export.close()
        beside.cancel()
    assert len(made) == 20
    assert max(Counter(made).values()) <= PER_TURN


def _attributes(span: Span) -> dict[str, object]:
    values = {a.key: (a.value.WhichOneof("value"), a.value) for a in span.attributes}
    return {key: getattr(value, kind) for key, (kind, value) in values.items()}


async def test_without_an_endpoint_nothing_is_made_and_without_the_package_it_is_said(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tiny_folder, {"a": "0:6"}, wait=False) as c:
        assert start_spans(TelemetrySection(), c.app.traces, SystemClock()) is None
        assert c.app.traces.ended is None
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
        settings = TelemetrySection(otlp_endpoint="http://127.0.0.1:4318")
        with pytest.raises(ConfigError, match=r"pip install 'helix-mq\[otel\]'") as error:
            start_spans(settings, c.app.traces, SystemClock())
        assert error.value.param == "telemetry.otlp_endpoint"


async def test_a_collector_that_is_not_there_holds_nothing_up(tiny_folder: Path) -> None:
    with collector() as got:
        gone = got.url
    async with cluster(tiny_folder, {"a": "0:6"}) as c:
        export = start_spans(TelemetrySection(otlp_endpoint=gone), c.app.traces, SystemClock())
        assert export is not None
        assert (await c.run(greedy((1, 2), 5))).finish.finish_reason == "length"
        async with asyncio.timeout(240):
            await export.close()
