"""Dashboard and alerts ask for what the router and the nodes really show, in PromQL that parses."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from helix_mq.errors import ConfigError, ContextExceeded
from helix_mq.messages.control import LinkReport
from nodes.metrics import MAX_CONNECTIONS, NodeFigures, NodeMetrics
from nodes.settings import MetricsSection
from nodes.steps import WorkerStatistics
from router.gateway import GatewayServer
from router.settings import HttpSection, JournalSection
from tests.cluster import cluster, greedy

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "helix_mq.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
DOCUMENT = DEPLOY.parent / "docs" / "seeing.md"
PROMETHEUS_OWN = {"up"}


def expressions() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of all panels, annotations and alerts; Grafana's variables filled in."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for one in DASHBOARD["annotations"]["list"]:
        yield one["name"], one["expr"]
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def filled(expr: str) -> str:
    return expr.replace("$__rate_interval", "5m").replace("$node", ".*")


def asked(expr: str) -> tuple[set[str], set[str]]:
    """Names of the metrics and of the labels in an expression, from its syntax tree."""
    metrics: set[str] = set()
    labels: set[str] = set()

    def walk(node: object) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            metrics.add(node.name)
            labels.update(m.name for m in node.matchers.matchers)
        elif isinstance(node, promql_parser.MatrixSelector):
            walk(node.vector_selector)
        elif isinstance(node, promql_parser.AggregateExpr):
            walk(node.expr)
            if node.modifier is not None:
                labels.update(node.modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr):
            walk(node.lhs)
            walk(node.rhs)
            if node.modifier is not None and node.modifier.matching is not None:
                labels.update(node.modifier.matching.labels)
        elif isinstance(node, promql_parser.ParenExpr | promql_parser.UnaryExpr):
            walk(node.expr)
        elif isinstance(node, promql_parser.Call):
            for argument in node.args:
                walk(argument)
        else:
            known = promql_parser.NumberLiteral | promql_parser.StringLiteral
            assert isinstance(node, known), f"a part of PromQL this test does not know: {node!r}"

    walk(promql_parser.parse(expr))
    return metrics, labels


def shown(text: str) -> dict[str, set[str]]:
    """Sample names, and the labels they come with; histograms by their three names."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_every_name_asked_for_is_shown(tiny_folder: Path, tmp_path: Path) -> None:
    journal = JournalSection(path=tmp_path / "journal.db")
    async with cluster(tiny_folder, {"a": "0:3", "b": "3:6"}, journal=journal, zmq=True) as c:
        gateway = GatewayServer(c.app, HttpSection(port=0), c.app.metrics, operator=c.app)
        own = NodeMetrics(MetricsSection(port=0), c.daemons["a"].figures)
        await gateway.start()
        await own.start()
        try:
            await c.run(greedy((1, 2, 3), 20))
            with pytest.raises(ContextExceeded):
                c.app.submit(greedy((1, 2, 3), 10**6))
            stranger = await c.transport.connect(
                c.app.control_endpoint, lambda delivery: None, routing_id=b"stranger"
            )
            stranger.send([b"garbage"])
            await c.until(lambda: c.app.bad_messages, "garbage is counted")
            await stranger.close()
            async with httpx.AsyncClient(base_url=gateway.url, timeout=240) as http:
                await c.until(lambda: c.app.status().nodes[0].steps >= 20, "beats tell of work")
                await http.get("/v1/models")
                router = (await http.get("/metrics")).text
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{own.port}", timeout=240
            ) as http:
                node = (await http.get("/metrics")).text
                assert (await http.get("/")).status_code == 404
                assert (await http.post("/metrics")).status_code == 404
        finally:
            await gateway.stop()
            await own.close()
    of_router, of_node = shown(router), shown(node)
    assert not {n for n in of_node if n.startswith("helix_mq_")} & of_router.keys()
    everything = {**of_router}
    for name, labels in of_node.items():
        everything[name] = everything.get(name, set()) | labels
    every_label = {"instance", "job", *(x for labels in everything.values() for x in labels)}
    count = 0
    for where, expr in expressions():
        metrics, labels = asked(filled(expr))
        assert metrics, where
        missing = metrics - everything.keys() - PROMETHEUS_OWN
        assert not missing, f"{where}: nobody shows {missing}"
        assert labels <= every_label, f"{where}: no metric has {labels - every_label}"
        count += 1
    assert count > 50
    made = {name for name in everything if not name.endswith("_created")}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in made}
    named = set(re.findall(r"\bhelix_mq_[a-z_]*[a-z]\b", DOCUMENT.read_text()))
    assert named - {"helix_mq_local"} == {n for n in families if n.startswith("helix_mq_")}
    values = {
        (s.name, s.labels.get("node")): s.value
        for family in text_string_to_metric_families(router)
        for s in family.samples
    }
    assert values["helix_mq_accepted_requests_total", None] == 1
    assert values["helix_mq_node_steps_total", "a"] >= 20
    assert values["helix_mq_node_info", "a"] == 1
    assert values["process_resident_memory_bytes", None] > 1e6
    own_values = {
        s.name: s.value for family in text_string_to_metric_families(node) for s in family.samples
    }
    assert own_values["helix_mq_local_router_connected"] == 1
    assert own_values["helix_mq_local_steps_total"] >= 20


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"].keys() == {"summary", "remedy"}, rule["alert"]
            assert rule["labels"]["severity"] in ("warning", "critical")


@pytest.mark.parametrize("expr", ["sum(rate(a[5m])", "a{b=}", "rate(a)"])
def test_what_does_not_parse_is_found(expr: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        asked(expr)


async def test_the_nodes_endpoint_is_bounded() -> None:
    def figures() -> Any:
        raise AssertionError("nobody asked")

    metrics = NodeMetrics(MetricsSection(port=0), figures)
    await metrics.start()
    try:
        with pytest.raises(ConfigError, match=r"cannot show metrics on 127.0.0.1"):
            await NodeMetrics(MetricsSection(port=metrics.port), figures).start()
        held = [
            await asyncio.open_connection("127.0.0.1", metrics.port) for _ in range(MAX_CONNECTIONS)
        ]
        async with asyncio.timeout(240):
            reader, writer = await asyncio.open_connection("127.0.0.1", metrics.port)
            assert await reader.read() == b"", "one more is cut"
            writer.close()
            # A head that never ends is cut at its limit, and makes room.
            held[0][1].write(b"GET /metrics HTTP/1.1\r\n" + b"x" * 100_000)
            assert await _rest(held[0][0]) == b""
        for _, writer in held:
            writer.close()
    finally:
        await metrics.close()


async def test_the_nodes_loop_makes_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are taken on the loop, where they change; texts made apart, one at a time."""
    threads: list[tuple[str, int]] = []
    making: list[int] = []
    work = WorkerStatistics(**dict.fromkeys((f.name for f in fields(WorkerStatistics)), 0))
    link = LinkReport("b", 1, 1, 0, 0.0, 0.0)

    def figures() -> NodeFigures:
        threads.append(("figures", threading.get_ident()))
        return NodeFigures("a", work, (link,), (), 0, True)

    def generate(registry: CollectorRegistry) -> bytes:
        threads.append(("text", threading.get_ident()))
        assert not making
        making.append(1)
        text = generate_latest(registry)
        making.clear()
        return text

    monkeypatch.setattr("nodes.metrics.generate", generate)
    metrics = NodeMetrics(MetricsSection(port=0), figures)
    await metrics.start()
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{metrics.port}", timeout=240
        ) as http:
            answers = await asyncio.gather(*(http.get("/metrics") for _ in range(4)))
    finally:
        await metrics.close()
    assert all('link_sent_bytes_total{receiver="b"} 1.0' in answer.text for answer in answers)
    assert [what for what, _ in threads] == ["figures", "text"] * 4
    loop = threading.get_ident()
    assert {(what, thread == loop) for what, thread in threads} == {
        ("figures", True),
        ("text", False),
    }


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""
