"""Health, readiness and metrics."""

from __future__ import annotations

from dataclasses import replace

import httpx
from prometheus_client.parser import text_string_to_metric_families

from helix_mq.clock import VirtualClock
from helix_mq.errors import QueueFull
from helix_mq.ids import RequestId
from router.metrics import RouterMetrics
from router.service import Broken, Delta, Finished
from tests.echo_service import EchoService


async def test_health_and_readiness(asgi: httpx.AsyncClient, service: EchoService) -> None:
    assert (await asgi.get("/health")).json() == {"status": "ok"}
    ready = await asgi.get("/ready")
    assert ready.status_code == 200
    assert ready.json()["nodes"] == {"alpha": "ready 0-5"}
    service.serving = False
    not_ready = await asgi.get("/ready")
    assert not_ready.status_code == 503
    assert not_ready.json()["reason"] == "layers 3-5 are on no live node"
    assert not_ready.headers["retry-after"] == "1"
    assert (await asgi.get("/health")).status_code == 200
    assert service.statuses == 0


async def test_requests_are_refused_before_work_while_nothing_serves(
    asgi: httpx.AsyncClient, service: EchoService
) -> None:
    service.serving = False
    body = {"model": "echo", "prompt": "x"}
    answer = await asgi.post("/v1/completions", json=body)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "not_serving"
    assert answer.headers["retry-after"] == "5"
    assert not service.submitted
    service.serving = True
    assert (await asgi.post("/v1/completions", json=body)).status_code == 200
    assert service.statuses == 0


def samples(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values in order of their names...) -> value."""
    return {
        (s.name, *(value for _, value in sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


async def test_metrics_of_the_service_and_of_http(asgi: httpx.AsyncClient) -> None:
    await asgi.get("/v1/models")
    await asgi.get("/v1/models/a/b/c")
    for path in ("/x1", "/x2", "/v1/x3"):
        await asgi.get(path)
    got = samples((await asgi.get("/metrics")).text)
    assert got["helix_mq_serving",] == 1
    assert got["helix_mq_node_kv_pages", "used", "alpha"] == 3
    assert got["helix_mq_node_kv_pages", "total", "alpha"] == 40
    assert got["helix_mq_link_sent_bytes_total", "alpha", "@router"] == 12345
    assert got["helix_mq_link_backlog_bytes", "alpha", "@router"] == 6
    assert got["helix_mq_http_responses_total", "/v1/models", "200"] == 1
    assert got["helix_mq_http_responses_total", "/v1/models/{name:path}", "404"] == 1
    assert got["helix_mq_http_responses_total", "other", "404"] == 3


def test_metrics_follow_the_events_of_streams(tiny_folder: object) -> None:
    clock = VirtualClock()
    metrics = RouterMetrics(clock)
    status = EchoService(tiny_folder).status()  # type: ignore[arg-type]
    for number in range(3):
        metrics.accepted(RequestId(number), 10)
    metrics.refused(QueueFull("full"))
    clock.advance(0.3)
    metrics.saw(RequestId(0), Delta(0, 5, "a"))
    clock.advance(0.02)
    metrics.saw(RequestId(0), Delta(1, 6, "b"))
    metrics.saw(RequestId(0), Delta(2, None, "held"))
    metrics.saw(RequestId(0), Finished("stop", 10, 2, 0.1, 0.3, 0.4, 2))
    metrics.saw(RequestId(1), Broken(QueueFull("x")))
    metrics.saw(RequestId(2), Finished("cancelled", 10, 0, 0.0, 0.0, 0.0, 0))
    (link,) = status.links
    link = replace(link, down_s=4.5, bytes_per_s=2.5e6, round_trip_s=0.04, probed_bytes_per_s=3e6)
    text, _ = metrics.render(replace(status, links=(link,)))
    got = samples(text.decode())
    assert got["helix_mq_link_down_seconds", "alpha", "@router"] == 4.5
    assert got["helix_mq_link_bytes_per_second", "alpha", "@router"] == 2.5e6
    assert got["helix_mq_link_probed_bytes_per_second", "alpha", "@router"] == 3e6
    assert got["helix_mq_link_round_trip_seconds", "alpha", "@router"] == 0.04
    assert got["helix_mq_requests_total", "stop"] == 1
    assert got["helix_mq_requests_total", "queue_full"] == 2
    assert got["helix_mq_requests_total", "cancelled"] == 1
    assert got["helix_mq_prompt_tokens_total",] == 30
    assert got["helix_mq_output_tokens_total",] == 2
    assert got["helix_mq_reroutes_total",] == 2
    assert got["helix_mq_time_to_first_token_seconds_count",] == 1
    assert got["helix_mq_time_to_first_token_seconds_bucket", "0.25"] == 0
    assert got["helix_mq_time_to_first_token_seconds_bucket", "0.5"] == 1
    assert got["helix_mq_inter_token_latency_seconds_bucket", "0.025"] == 1
    assert got["helix_mq_request_seconds_count",] == 3
    assert not metrics._started
    assert not metrics._last
