"""Makes the pictures of the operating pages from the core and what was observed."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest

import helix_mq
from helix_mq.ids import ROUTER, NodeId, RequestId
from helix_mq.layers import LayerRange
from helix_mq.messages.control import LinkReport
from router.bottleneck import CutNode, bottleneck_text
from router.cluster_core import ClusterCore
from router.core import Core
from router.flows import LiveFlow
from router.link_watch import Edge
from router.machines import catalogued
from router.membership import Member
from router.pictures import (
    Bottleneck,
    ClusterPicture,
    HopPicture,
    LinkPicture,
    NodePicture,
    RequestPicture,
    RequestsPicture,
    RouterPicture,
)
from router.recent import SLOT_S, SLOTS
from router.seeing import Seeing
from router.sessions import Session, State
from router.settings import RouterSettings

MAX_REQUESTS = 200
SHOWN_HAPPENINGS = 60

_GPU = re.compile(r"cuda:\d+ (?:NVIDIA )?(?P<name>.+)")


def cluster_picture(
    core: Core, seeing: Seeing, settings: RouterSettings, own_links: Sequence[LinkReport]
) -> ClusterPicture:
    cluster, clock = core.cluster, seeing.clock
    moves, flow, now_s = cluster.moves, cluster.flow, clock.now_s()
    crossing: Counter[NodeId] = Counter()
    for session in core.sessions().values():
        if session.route is not None:
            crossing.update({hop.node for hop in session.route.hops})
    passing = flow.by_node()
    return ClusterPicture(
        serving=cluster.serving,
        reason=cluster.why_not_serving(),
        epoch=cluster.epoch,
        flow_tokens_per_s=flow.tokens_per_s,
        doing=_doing(cluster),
        verdict=moves.replanner.last_text,
        searches=moves.replanner.ended,
        nodes=tuple(
            _node(core, seeing, m, passing.get(m.name, 0.0), crossing[m.name], now_s)
            for m in cluster.membership
        ),
        links=tuple(_links(cluster, seeing, own_links)),
        router=_router(core, seeing, settings),
        bottleneck=_bottleneck(cluster, flow),
        happenings=seeing.happenings.last(SHOWN_HAPPENINGS),
    )


# -- nodes ----------------------------------------------------------------------


def _node(
    core: Core, seeing: Seeing, member: Member, passing: float, crossing: int, now_s: float
) -> NodePicture:
    cluster, name, beat, held = core.cluster, member.name, member.beat, member.layers
    shift = cluster.moves.relocation.shift
    ahead = shift.slices.get(name) if shift is not None else None
    rate = seeing.rates.node(name)
    total = beat.kv_total_pages if beat is not None else 0
    cut = cluster.flow.cut
    return NodePicture(
        node=name,
        state=member.state,
        layers=_short(held),
        next_layers=_short(ahead),
        epoch=member.epoch,
        incarnation=member.register.incarnation,
        device=member.register.device,
        leaving=name in cluster.moves.leavers,
        kind=member_kind(cluster, member),
        region=member_region(cluster, member),
        first_layer=held.first if held is not None else None,
        end_layer=held.end if held is not None else None,
        suspect=cluster.flows.suspects.reasons.get(name, ""),
        failure=member.failure,
        heard_s=max(0.0, now_s - member.last_heard_s),
        memory_bytes=member.register.memory_bytes,
        kv_used_pages=max(0, total - beat.kv_free_pages) if beat is not None else 0,
        kv_total_pages=total,
        page_tokens=member.ready.page_tokens if member.ready is not None else 0,
        crossing_requests=crossing,
        open_requests=beat.open_requests if beat is not None else 0,
        waiting_rows=beat.waiting_rows if beat is not None else 0,
        waiting_tokens=beat.waiting_tokens if beat is not None else 0,
        tokens_per_s=rate.tokens_per_s,
        flow_tokens_per_s=passing,
        rate_tokens_per_s=cluster.flow.rates.get(name, 0.0),
        busy_share=rate.busy_share,
        step_s=rate.step_s,
        expected_step_s=rate.expected_step_s,
        slowdown=cluster.flows.slowdown(name),
        caps=name in (*cut.engines, *cut.nics_in, *cut.nics_out),
    )


def _short(layers: LayerRange | None) -> str:
    return f"{layers.first}-{layers.end - 1}" if layers is not None else ""


def member_kind(cluster: ClusterCore, member: Member) -> str:
    planned = cluster.flows.planned
    known = planned.nodes.get(member.name) if planned is not None else None
    return known.type_name if known is not None else device_kind(member.register.device)


def device_kind(device: str) -> str:
    """`cuda:0 NVIDIA A100-SXM4-80GB` is an A100-80, `cpu AMD EPYC (2 threads)` a CPU node."""
    machine = catalogued(device)
    if machine is not None:
        return machine.gpu.name
    match = _GPU.fullmatch(device)
    if match is not None:
        return match["name"][:40]
    return "CPU node" if device.startswith("cpu") else "node"


def member_region(cluster: ClusterCore, member: Member) -> str:
    """What the node says of itself, else the plan's."""
    planned = cluster.flows.planned
    known = planned.nodes.get(member.name) if planned is not None else None
    return member.register.region or (known.region if known is not None else "")


# -- links ----------------------------------------------------------------------


def _links(
    cluster: ClusterCore, seeing: Seeing, own: Iterable[LinkReport]
) -> Iterator[LinkPicture]:
    """Those with something to say: all pairs of a large cluster would be tens of thousands."""
    flow = cluster.flow
    flows = edge_flows(flow)
    cut = set(flow.cut.links)
    closed = cluster.links.closed
    always = flows.keys() | closed
    reports: dict[Edge, LinkReport | None] = dict.fromkeys(always)
    for source, said_here in cluster.membership.link_reports(own):
        busy = seeing.rates.busy(source)
        for said in said_here:
            edge = (source, NodeId(said.peer))
            # A link between nodes without a common request is often down for a moment as they
            # start.
            telling = said.backlog_bytes > 0 or said.down_s > 1.0 or said.peer in busy
            if telling or edge in always:
                reports[edge] = said
    for edge in sorted(reports):
        told, rate = reports[edge], seeing.rates.link(*edge)
        yield LinkPicture(
            sender=edge[0],
            receiver=edge[1],
            flow_tokens_per_s=flows.get(edge, 0.0),
            capacity_tokens_per_s=flow.capacities.get(edge),
            bytes_per_s=rate.bytes_per_s,
            acknowledged_bytes_per_s=told.bytes_per_s if told is not None else 0.0,
            probed_bytes_per_s=told.probed_bytes_per_s if told is not None else 0.0,
            round_trip_s=told.round_trip_s if told is not None else 0.0,
            backlog_bytes=told.backlog_bytes if told is not None else 0,
            blocked_share=rate.blocked_share,
            down_s=told.down_s if told is not None and math.isfinite(told.down_s) else 0.0,
            closed=edge in closed,
            caps=edge in cut,
        )


def edge_flows(flow: LiveFlow) -> dict[Edge, float]:
    """Tokens/s over each link; what passes a last hop goes back to the router."""
    flows = {(a, b): rate for a, out in flow.weights.edges.items() for b, rate in out}
    last = {n for n, end in flow.weights.end_of.items() if end == flow.weights.num_layers}
    for node, rate in flow.by_node().items():
        if node in last:
            flows[node, ROUTER] = rate
    return flows


# -- the router -----------------------------------------------------------------


def _router(core: Core, seeing: Seeing, settings: RouterSettings) -> RouterPicture:
    statistics, metrics, clock = core.statistics(), seeing.metrics, seeing.clock
    recent = metrics.recent
    return RouterPicture(
        version=helix_mq.__version__,
        model=settings.model_name or settings.model.stem,
        num_layers=core.num_layers,
        now_s=clock.wall_s(),
        uptime_s=clock.now_s() - seeing.started_s,
        waiting=statistics.waiting,
        running=statistics.running,
        max_waiting=settings.admission.max_waiting,
        admitted=metrics.admitted,
        refused=sum(metrics.refused_by.values()),
        refused_by=dict(sorted(metrics.refused_by.items())),
        output_tokens_per_s=recent.output_tokens_per_s(),
        over_s=SLOT_S * SLOTS,
        ttft=recent.ttft(),
        itl=recent.itl(),
        history=recent.history(),
        drafted_tokens=statistics.drafts.drafted,
        accepted_tokens=statistics.drafts.accepted,
    )


def _bottleneck(cluster: ClusterCore, flow: LiveFlow) -> Bottleneck:
    cut = flow.cut
    nodes: dict[NodeId, CutNode] = {}
    for name in (*cut.engines, *cut.nics_in, *cut.nics_out):
        member = cluster.membership.get(name)
        if member is None or member.layers is None:
            # The flow is of a moment ago, and the node is gone.
            return Bottleneck()
        nodes[name] = CutNode(
            member_kind(cluster, member), member.layers, cluster.flows.slowdown(name)
        )
    text = bottleneck_text(flow.tokens_per_s, cut, nodes)
    return Bottleneck(text, flow.tokens_per_s, tuple(sorted(nodes)), cut.links)


def _doing(cluster: ClusterCore) -> str:
    moves = cluster.moves
    if moves.replanner.searching is not None:
        return "looking for a placement"
    shift = moves.relocation.shift
    if shift is not None:
        waits = sorted(shift.slices.keys() - shift.readies.keys())
        return f"waiting for {', '.join(waits)} to load for the next placement"
    if moves.busy:
        return "waiting for requests to leave old slices"
    if moves.leavers:
        return f"waiting for requests to leave {', '.join(moves.leavers.names())}"
    return ""


# -- requests -------------------------------------------------------------------


def requests_picture(sessions: Mapping[RequestId, Session], now_s: float) -> RequestsPicture:
    oldest = nsmallest(MAX_REQUESTS, sessions.values(), key=lambda s: (s.arrived_s, s.request))
    return RequestsPicture(len(sessions), tuple(_request(s, now_s) for s in oldest))


def _request(session: Session, now_s: float) -> RequestPicture:
    hops = session.route.hops if session.route is not None else ()
    running = session.state is State.RUNNING
    state = "queued"
    if running:
        state = "prefilling" if session.prefilling else "decoding"
    return RequestPicture(
        id=f"{session.request:x}",
        state=state,
        age_s=now_s - session.arrived_s,
        deadline_in_s=session.deadline_s - now_s,
        prompt_tokens=session.prompt_tokens,
        output_tokens=len(session.output),
        max_tokens=session.generation.sampling.max_tokens,
        route=tuple(HopPicture(h.node, _short(h.layers)) for h in hops),
        at=hops[0].node if len(hops) == 1 else "",
        since_token_s=now_s - session.sent_s if running else 0.0,
        reroutes=session.reroutes,
        background=session.generation.priority > 0,
        owner=session.generation.owner,
    )
