"""A frozen picture of the router for /ready, /metrics and the console. Reads, changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from helix_mq.outlink import OutLinkStatistics
from router.cluster_core import ClusterCore
from router.core import Core
from router.membership import Member
from router.service import JournalStatus, LinkStatus, NodeStatus, ServiceStatus


def service_status(
    core: Core, links: Sequence[OutLinkStatistics], journal: JournalStatus | None = None
) -> ServiceStatus:
    statistics = core.statistics()
    passing = core.cluster.flow.by_node()
    return ServiceStatus(
        serving=core.cluster.serving,
        reason=core.cluster.why_not_serving(),
        recovering=core.cluster.recovering,
        queued=statistics.waiting,
        running=statistics.running,
        flow_tokens_per_s=statistics.flow_tokens_per_s,
        nodes=tuple(
            _node(m, core.cluster, passing.get(m.name, 0.0)) for m in core.cluster.membership
        ),
        links=tuple(
            LinkStatus(
                "@router",
                s.peer,
                s.sent_bytes,
                s.backlog_bytes,
                s.down_s,
                s.bytes_per_s,
                s.round_trip_s,
                s.probed_bytes_per_s,
            )
            for s in links
        )
        + tuple(
            LinkStatus(
                m.name,
                link.peer,
                link.sent_bytes,
                link.backlog_bytes,
                link.down_s,
                link.bytes_per_s,
                link.round_trip_s,
                link.probed_bytes_per_s,
            )
            for m in core.cluster.membership
            if m.beat is not None
            for link in m.beat.links
        ),
        journal=journal,
    )


def _node(member: Member, cluster: ClusterCore, passing: float) -> NodeStatus:
    beat, flow, name = member.beat, cluster.flow, member.name
    total = beat.kv_total_pages if beat is not None else 0
    return NodeStatus(
        node=member.name,
        state=member.state,
        layers=f"{member.layers.first}-{member.layers.end - 1}" if member.layers else "",
        device=member.register.device,
        kv_used_pages=total - beat.kv_free_pages if beat is not None else 0,
        kv_total_pages=total,
        open_requests=beat.open_requests if beat is not None else 0,
        waiting_rows=beat.waiting_rows if beat is not None else 0,
        suspect=cluster.flows.suspects.reasons.get(name, ""),
        slowdown=cluster.flows.slowdown(name),
        rate_tokens_per_s=flow.rates.get(name, 0.0),
        flow_tokens_per_s=passing,
    )
