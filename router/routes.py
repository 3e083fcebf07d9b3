"""Choosing a route: interleaved weighted round robin along the flow, hop by hop. Pure.

At the source and at every node, the next hop is the one whose (work given so far + this work) /
flow is least, so that over time work is shared in the proportions of the max flow (Helix, ASPLOS
'25, section 5). Nodes without KV room for the request are passed over; when a choice leads nowhere
the walk backs up and takes the next best, so a route is found whenever the flow holds one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import Hop, LayerRange, Route

MIN_SHARE = 0.05
"""Edges with less than this share of the widest edge beside them are not used. Not a share of the
source's whole flow: with more than twenty like nodes none of them would have it."""


@dataclass(frozen=True, slots=True)
class FlowWeights:
    """Flow from each node (and from ROUTER, the source) to its possible next nodes, tokens/s.

    `end_of`: the end of the layers each node runs. Nodes whose end is `num_layers` are last hops.
    """

    num_layers: int
    edges: Mapping[NodeId, tuple[tuple[NodeId, float], ...]]
    end_of: Mapping[NodeId, int]

    def usable(self, source: NodeId) -> tuple[tuple[NodeId, float], ...]:
        out = self.edges.get(source, ())
        widest = max((flow for _, flow in out), default=0.0)
        return tuple((node, flow) for node, flow in out if flow >= MIN_SHARE * widest > 0)


RoomFor = Callable[[Hop], bool]


@dataclass(slots=True)
class RouteChooser:
    """Keeps the work given along each edge; `weights` may be replaced at any time."""

    weights: FlowWeights
    _given: dict[tuple[NodeId, NodeId], float] = field(default_factory=dict)

    def choose(self, work_tokens: float, room_for: RoomFor) -> Route | None:
        """A route for a request, or None if no path of the flow has room on every hop.

        Only a complete route counts as work given.
        """
        hops = self._walk(ROUTER, 0, work_tokens, room_for, set())
        if hops is None:
            return None
        at: NodeId = ROUTER
        for hop in hops:
            self.count(at, hop.node, work_tokens)
            at = hop.node
        return Route(tuple(hops))

    def count(self, source: NodeId, target: NodeId, work_tokens: float) -> None:
        edge = (source, target)
        self._given[edge] = self._given.get(edge, 0.0) + work_tokens

    def replace(self, weights: FlowWeights) -> None:
        """New weights; what was given before is forgotten, or a node that had been slow would be
        flooded until its count caught up."""
        self.weights = weights
        self._given.clear()

    def _walk(
        self,
        source: NodeId,
        first_layer: int,
        work: float,
        room_for: RoomFor,
        dead_ends: set[NodeId],
    ) -> list[Hop] | None:
        ranked = sorted(
            self.weights.usable(source),
            key=lambda e: ((self._given.get((source, e[0]), 0.0) + work) / e[1], e[0]),
        )
        for node, _ in ranked:
            end = self.weights.end_of[node]
            if end <= first_layer:
                continue
            hop = Hop(node, LayerRange(first_layer, end))
            if not room_for(hop):
                continue
            if end == self.weights.num_layers:
                return [hop]
            # What follows a node depends on its end alone, so a dead end is one however reached.
            if node in dead_ends:
                continue
            rest = self._walk(node, end, work, room_for, dead_ends)
            if rest is not None:
                return [hop, *rest]
            dead_ends.add(node)
        return None


def widest_route_tokens(weights: FlowWeights, capacity_tokens: Callable[[Hop], int]) -> int:
    """Longest sequence, in tokens, that some route could hold if it were alone on it."""
    best: dict[tuple[NodeId, int], int] = {}

    def widest(source: NodeId, first_layer: int) -> int:
        key = (source, first_layer)
        if key not in best:
            found = 0
            for node, _ in weights.usable(source):
                end = weights.end_of[node]
                if end <= first_layer:
                    continue
                here = capacity_tokens(Hop(node, LayerRange(first_layer, end)))
                if end < weights.num_layers:
                    here = min(here, widest(node, end))
                found = max(found, here)
            best[key] = found
        return best[key]

    return widest(ROUTER, 0)
