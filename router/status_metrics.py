"""Prometheus families made anew from the service's status at each scrape, so that nodes and links
that are gone do not stay as last known values."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from router.service import JournalStatus, LinkStatus, NodeStatus, ServiceStatus

Family = CounterMetricFamily | GaugeMetricFamily

_NODE_GAUGES: tuple[tuple[str, str, Callable[[NodeStatus], float]], ...] = (
    ("open_requests", "Sequences on a node.", lambda n: n.open_requests),
    ("waiting_rows", "Rows in a node's inbox.", lambda n: n.waiting_rows),
    ("suspect", "1 while new requests avoid it.", lambda n: bool(n.suspect)),
    ("slowdown", "Step times, as a multiple of those measured.", lambda n: n.slowdown),
    ("rate_tokens_per_second", "What it is taken to pass at most.", lambda n: n.rate_tokens_per_s),
    ("flow_tokens_per_second", "Its part of the max flow.", lambda n: n.flow_tokens_per_s),
    ("caps", "1 if it is part of what caps the flow.", lambda n: n.caps),
)
_NODE_COUNTERS: tuple[tuple[str, str, Callable[[NodeStatus], float]], ...] = (
    ("tokens", "Tokens through its slice, prompts and output.", lambda n: n.tokens),
    ("steps", "Steps of its device.", lambda n: n.steps),
    ("step_seconds", "Spent in steps.", lambda n: n.step_s),
    ("expected_step_seconds", "What they should have taken; 0: unknown.", lambda n: n.expected_s),
)
_LINK_GAUGES: tuple[tuple[str, str, Callable[[LinkStatus], float]], ...] = (
    ("backlog_bytes", "Bytes waiting for credit.", lambda x: x.backlog_bytes),
    ("down_seconds", "0 for a link that is connected.", lambda x: x.down_s),
    ("bytes_per_second", "Acknowledged, the best lately.", lambda x: x.bytes_per_s),
    (
        "probed_bytes_per_second",
        "What it can carry; 0: unknown.",
        lambda x: x.probed_bytes_per_s,
    ),
    ("round_trip_seconds", "The least lately; 0: unknown.", lambda x: x.round_trip_s),
    ("flow_tokens_per_second", "Its part of the max flow.", lambda x: x.flow_tokens_per_s),
)
_LINK_COUNTERS: tuple[tuple[str, str, Callable[[LinkStatus], float]], ...] = (
    (
        "sent_bytes",
        "Bytes sent over a data link since its sender started.",
        lambda x: x.sent_bytes,
    ),
    ("blocked_seconds", "In which frames waited for credit.", lambda x: x.blocked_s),
)


MOST_LINKS = 1000
"""With more of them only those that carry or should carry something, or are in trouble: text for
all 65,000 of 256 nodes takes seconds to make."""


class StatusCollector(Collector):
    """Shows `status`, which is set before each scrape."""

    def __init__(self) -> None:
        self.status: ServiceStatus | None = None

    def collect(self) -> Iterator[Family]:
        status = self.status
        if status is None:
            return
        yield gauge("serving", "1 if the live nodes cover the model.", status.serving)
        yield gauge("queued_requests", "Requests waiting for a route.", status.queued)
        yield gauge("running_requests", "Requests on a route.", status.running)
        yield gauge(
            "max_flow_tokens_per_second", "Max flow over live nodes.", status.flow_tokens_per_s
        )
        yield gauge("epoch", "Of the placement that new requests take.", status.epoch)
        yield counter("placement_searches", "Searches for a placement.", status.searches)
        yield counter("drafted_tokens", "Guessed, by router or first hops.", status.drafted_tokens)
        yield counter("accepted_draft_tokens", "Of them, right ones.", status.accepted_tokens)
        yield from _nodes(status.nodes)
        yield from _links(_telling(status.links))
        if status.journal is not None:
            yield from _journal(status.journal)


def _nodes(nodes: tuple[NodeStatus, ...]) -> Iterator[Family]:
    info = gauge(
        "node_info",
        "1; what a node is and holds.",
        labels=("node", "state", "layers", "kind", "region"),
    )
    pages = gauge("node_kv_pages", "KV pages of a node.", labels=("node", "kind"))
    for node in nodes:
        info.add_metric([node.node, node.state, node.layers, node.kind, node.region], 1)
        pages.add_metric([node.node, "used"], node.kv_used_pages)
        pages.add_metric([node.node, "total"], node.kv_total_pages)
    yield info
    yield pages
    for name, text, value in _NODE_GAUGES:
        family = gauge(f"node_{name}", text, labels=("node",))
        for node in nodes:
            family.add_metric([node.node], value(node))
        yield family
    for name, text, value in _NODE_COUNTERS:
        total = counter(f"node_{name}", text, labels=("node",))
        for node in nodes:
            total.add_metric([node.node], value(node))
        yield total


def _telling(links: tuple[LinkStatus, ...]) -> tuple[LinkStatus, ...]:
    if len(links) <= MOST_LINKS:
        return links
    return tuple(
        x for x in links if x.sent_bytes or x.flow_tokens_per_s or x.backlog_bytes or x.down_s > 1.0
    )


def _links(links: tuple[LinkStatus, ...]) -> Iterator[Family]:
    ends = ("sender", "receiver")
    for name, text, value in _LINK_GAUGES:
        family = gauge(f"link_{name}", text, labels=ends)
        for link in links:
            family.add_metric([link.sender, link.receiver], value(link))
        yield family
    for name, text, value in _LINK_COUNTERS:
        total = counter(f"link_{name}", text, labels=ends)
        for link in links:
            total.add_metric([link.sender, link.receiver], value(link))
        yield total


def _journal(journal: JournalStatus) -> Iterator[Family]:
    yield gauge("journal_failing", "1 while the journal cannot be written.", journal.failing)
    yield gauge("journal_pending_records", "Records not kept yet.", journal.pending_records)
    yield gauge("journal_pending_bytes", "Memory of records not kept yet.", journal.pending_bytes)
    yield gauge("journal_used_bytes", "Of the journal's file.", journal.used_bytes)
    yield counter("journal_commits", "Transactions of the journal.", journal.commits)


def gauge(
    name: str, text: str, value: float | None = None, labels: tuple[str, ...] | None = None
) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"helix_mq_{name}", text, value=value, labels=labels)


def counter(
    name: str, text: str, value: float | None = None, labels: tuple[str, ...] | None = None
) -> CounterMetricFamily:
    return CounterMetricFamily(f"helix_mq_{name}", text, value=value, labels=labels)
