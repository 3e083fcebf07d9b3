"""A frozen picture of the router for /metrics and the console, and parts of it that cost
less. Reads, changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from helix_mq.ids import NodeId
from helix_mq.messages.control import LinkReport
from helix_mq.outlink import OutLinkStatistics
from router.cluster_core import ClusterCore
from router.core import Core
from router.link_watch import Edge
from router.membership import Member
from router.picturing import edge_flows, member_kind, member_region
from router.service import (
    JournalStatus,
    LinkStatus,
    NodeStanding,
    NodeStatus,
    ServiceStatus,
    Standing,
)


def service_status(
    core: Core, links: Sequence[OutLinkStatistics], journal: JournalStatus | None = None
) -> ServiceStatus:
    statistics, cluster = core.statistics(), core.cluster
    passing, flows = cluster.flow.by_node(), edge_flows(cluster.flow)
    said: list[LinkStatus] = []
    for sender, reports in cluster.membership.link_reports(s.report() for s in links):
        said += _links(sender, reports, flows)
    return ServiceStatus(
        serving=cluster.serving,
        reason=cluster.why_not_serving(),
        recovering=cluster.recovering,
        queued=statistics.waiting,
        running=statistics.running,
        flow_tokens_per_s=statistics.flow_tokens_per_s,
        nodes=tuple(_node(m, cluster, passing.get(m.name, 0.0)) for m in cluster.membership),
        links=tuple(said),
        journal=journal,
        epoch=cluster.epoch,
        searches=cluster.moves.replanner.ended,
        drafted_tokens=statistics.drafts.drafted,
        accepted_tokens=statistics.drafts.accepted,
    )


def standing(cluster: ClusterCore) -> Standing:
    return Standing(cluster.serving, cluster.why_not_serving(), cluster.recovering)


def node_standings(cluster: ClusterCore) -> tuple[NodeStanding, ...]:
    suspects = cluster.flows.suspects.reasons
    return tuple(
        NodeStanding(m.name, m.state, _layers(m), suspects.get(m.name, ""))
        for m in cluster.membership
    )


def _layers(member: Member) -> str:
    held = member.layers
    return f"{held.first}-{held.end - 1}" if held else ""


def _links(
    sender: NodeId, reports: Iterable[LinkReport], flows: Mapping[Edge, float]
) -> Iterable[LinkStatus]:
    return [
        LinkStatus(
            sender,
            x.peer,
            x.sent_bytes,
            x.backlog_bytes,
            x.down_s,
            x.bytes_per_s,
            x.round_trip_s,
            x.probed_bytes_per_s,
            x.blocked_s,
            flows.get((sender, NodeId(x.peer)), 0.0),
        )
        for x in reports
    ]


def _node(member: Member, cluster: ClusterCore, passing: float) -> NodeStatus:
    beat, flow, name = member.beat, cluster.flow, member.name
    total = beat.kv_total_pages if beat is not None else 0
    cut = flow.cut
    return NodeStatus(
        node=member.name,
        state=member.state,
        layers=_layers(member),
        device=member.register.device,
        kv_used_pages=total - beat.kv_free_pages if beat is not None else 0,
        kv_total_pages=total,
        open_requests=beat.open_requests if beat is not None else 0,
        waiting_rows=beat.waiting_rows if beat is not None else 0,
        suspect=cluster.flows.suspects.reasons.get(name, ""),
        slowdown=cluster.flows.slowdown(name),
        rate_tokens_per_s=flow.rates.get(name, 0.0),
        flow_tokens_per_s=passing,
        kind=member_kind(cluster, member),
        region=member_region(cluster, member),
        caps=name in (*cut.engines, *cut.nics_in, *cut.nics_out),
        tokens=beat.tokens if beat is not None else 0,
        steps=beat.steps if beat is not None else 0,
        step_s=beat.step_s if beat is not None else 0.0,
        expected_s=beat.expected_s if beat is not None else 0.0,
    )
