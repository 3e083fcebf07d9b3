"""SWARM's way of choosing: each hop by the throughput of recent answers. Pure.

Every edge of the placement has a priority, least first, and a moving average of the seconds a hop
over it takes. Choosing an edge adds that average to its priority, so that in the long run each edge
is chosen in proportion to one over its hop time (SWARM, Ryabinin et al., ICML 2023, section 3.2:
interleaved weighted round robin over an exponential moving average).

There each sender times its own hops. The router here times whole rounds: a decode leaves for the
first hop and its token comes back from the last. It divides a round's seconds among the hops in
the ratio of the nodes' mean step times over their last heartbeat interval, once it knows those of
all nodes of the route; until then in the ratio of the averages as they stand. Queueing and links
are thereby charged to hops in proportion. Under the latter rule alone hops are told apart only by
routes that share some of them and not others: a slow node raises every hop of its routes, but other
routes lower all of them again except its own. Prompts are not timed: their seconds are those of
their length. Requests of one token therefore teach it nothing, and share each stage evenly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import Route
from helix_mq.messages.control import Heartbeat
from router.routes import FlowWeights, RoomFor, find_route
from router.schedulers_base import Deaf

KEPT = 0.8
"""Share of the old average that a new observation leaves."""
FIRST_HOP_S = 0.05
"""Average of an edge without observations: whatever it is, an edge is tried before another has
been used for longer."""


@dataclass(slots=True)
class _Edge:
    priority: float = 0.0
    hop_s: float = FIRST_HOP_S


@dataclass(slots=True)
class _Steps:
    """A node's counters at its last heartbeat, and its mean step between the last two."""

    incarnation: int
    steps: int
    step_s: float
    mean_s: float | None = None


class SwarmScheduler(Deaf):
    def __init__(self, weights: FlowWeights) -> None:
        self._weights = weights
        self._edges: dict[NodeId, dict[NodeId, _Edge]] = {}
        self._steps: dict[NodeId, _Steps] = {}

    def replace(self, weights: FlowWeights) -> None:
        """Averages of edges that are still there stay. Priorities begin anew, or a node that had
        been away would be flooded until its priority caught up."""
        old, self._weights, self._edges = self._edges, weights, {}
        for source in sorted(old):
            after = set(weights.all_next(source))
            kept = {n: _Edge(0.0, e.hop_s) for n, e in old[source].items() if n in after}
            if kept:
                self._edges[source] = {n: kept.get(n, _Edge()) for n in weights.all_next(source)}
        for node in [n for n in self._steps if n not in weights.end_of]:
            del self._steps[node]

    def next_nodes(self, source: NodeId) -> Iterable[NodeId]:
        return self._weights.all_next(source)

    def hop_s(self, source: NodeId, node: NodeId) -> float:
        """What a hop is thought to take now."""
        edge = self._from(source).get(node)
        return edge.hop_s if edge is not None else FIRST_HOP_S

    def choose(self, work_tokens: int, room_for: RoomFor) -> Route | None:
        route = find_route(self._weights, self._by_priority, room_for)
        if route is not None:
            for edge in self._edges_of(route):
                edge.priority += edge.hop_s
        return route

    def on_token(self, route: Route, elapsed_s: float) -> None:
        edges = self._edges_of(route)
        if len(edges) < len(route.hops):
            # An edge of it is gone; what is left of the route did not take all that time.
            return
        ratio = self._step_ratio(route) or [edge.hop_s for edge in edges]
        scale = (1 - KEPT) * elapsed_s / sum(ratio)
        for edge, part in zip(edges, ratio, strict=True):
            # Never nothing: what is divided in ratio of the averages could not grow again.
            edge.hop_s = max(KEPT * edge.hop_s + scale * part, 1e-9)

    def on_beat(self, beat: Heartbeat) -> None:
        node = NodeId(beat.node)
        last = self._steps.get(node)
        if last is None or last.incarnation != beat.incarnation:
            self._steps[node] = _Steps(beat.incarnation, beat.steps, beat.step_s)
            return
        steps, step_s = beat.steps - last.steps, beat.step_s - last.step_s
        if steps > 0 and step_s > 0:
            last.mean_s = step_s / steps
        last.steps, last.step_s = beat.steps, beat.step_s

    def _step_ratio(self, route: Route) -> list[float]:
        """The mean steps of the route's nodes; empty unless all are known."""
        ratio: list[float] = []
        for hop in route.hops:
            steps = self._steps.get(hop.node)
            if steps is None or steps.mean_s is None:
                return []
            ratio.append(steps.mean_s)
        return ratio

    def _from(self, source: NodeId) -> dict[NodeId, _Edge]:
        """The edges out of a node, made when first looked at: most pairs of nodes never are."""
        edges = self._edges.get(source)
        if edges is None:
            edges = {node: _Edge() for node in self._weights.all_next(source)}
            self._edges[source] = edges
        return edges

    def _edges_of(self, route: Route) -> list[_Edge]:
        """Along the route, without those that are gone."""
        edges: list[_Edge] = []
        at = ROUTER
        for hop in route.hops:
            edge = self._from(at).get(hop.node)
            if edge is not None:
                edges.append(edge)
            at = hop.node
        return edges

    def _by_priority(self, source: NodeId) -> Iterator[NodeId]:
        order = [(edge.priority, node) for node, edge in self._from(source).items()]
        heapify(order)
        while order:
            yield heappop(order)[1]
