"""The graph that routes are chosen on, and the walk that finds one. Pure; no scheduler's taste.

A graph has an edge wherever a request that left one node can go on in the next; some of the edges
carry flow. The walk takes next nodes in the order a scheduler ranks them, passes over those without
KV room, and backs up where a choice leads nowhere, so that a route is found whenever there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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
    `transitions`: all next nodes, with flow or without; where it says nothing of a source, those
    with flow. `hop_s`: seconds one token is expected to take over an edge and through the node
    behind it (one over its rate: that ranks nodes), where known; `link_s`: over the edge alone.
    Behind a last node both go on to a first one, as the token does.
    """

    num_layers: int
    edges: Mapping[NodeId, tuple[tuple[NodeId, float], ...]]
    end_of: Mapping[NodeId, int]
    transitions: Mapping[NodeId, tuple[NodeId, ...]] = field(default_factory=dict)
    hop_s: Mapping[tuple[NodeId, NodeId], float] = field(default_factory=dict)
    link_s: Mapping[tuple[NodeId, NodeId], float] = field(default_factory=dict)

    def usable(self, source: NodeId) -> tuple[tuple[NodeId, float], ...]:
        """The edges with enough flow to be worth using."""
        out = self.edges.get(source, ())
        widest = max((flow for _, flow in out), default=0.0)
        return tuple((node, flow) for node, flow in out if flow >= MIN_SHARE * widest > 0)

    def all_next(self, source: NodeId) -> tuple[NodeId, ...]:
        """Every next node that leads on to the last layer, sorted."""
        known = self.transitions.get(source)
        if known is not None:
            return known
        return tuple(sorted(node for node, flow in self.edges.get(source, ()) if flow > 0))


RoomFor = Callable[[Hop], bool]
NextNodes = Callable[[NodeId], Iterable[NodeId]]


def find_route(weights: FlowWeights, ranked: NextNodes, room_for: RoomFor) -> Route | None:
    """The first complete route in the order of `ranked`, or None if none has room on every hop.

    `ranked` is asked for a node's next nodes, best first, when the walk gets there, and should be
    lazy: the best one mostly does. Each node is left for good at most once, so a walk costs no more
    than looking at every edge once.
    """
    num_layers, end_of = weights.num_layers, weights.end_of
    hops: list[Hop] = []
    ahead: list[Iterator[NodeId]] = [iter(ranked(ROUTER))]
    dead_ends: set[NodeId] = set()
    while ahead:
        at_layer = hops[-1].layers.end if hops else 0
        for node in ahead[-1]:
            end = end_of[node]
            # What follows a node depends on its end alone, so a dead end is one however reached.
            if end <= at_layer or node in dead_ends:
                continue
            hop = Hop(node, LayerRange(at_layer, end))
            if not room_for(hop):
                continue
            hops.append(hop)
            if end == num_layers:
                return Route(tuple(hops))
            ahead.append(iter(ranked(node)))
            break
        else:
            ahead.pop()
            if hops:
                dead_ends.add(hops.pop().node)
    return None


def widest_route_tokens(
    weights: FlowWeights, next_nodes: NextNodes, capacity_tokens: Callable[[Hop], int]
) -> int:
    """Longest sequence, in tokens, that some route could hold if it were alone on it."""
    last = weights.num_layers
    onward: dict[NodeId, int] = {}

    def widest(source: NodeId, first_layer: int) -> int:
        found = 0
        for node in next_nodes(source):
            end = weights.end_of[node]
            rest = onward.get(node)
            if end <= first_layer or (end < last and rest is None):
                continue
            here = capacity_tokens(Hop(node, LayerRange(first_layer, end)))
            found = max(found, here if rest is None else min(here, rest))
        return found

    # From the last layers to the first: what follows a node is known before the node is looked at.
    for node in sorted(weights.end_of, key=lambda n: (-weights.end_of[n], n)):
        if weights.end_of[node] < last:
            onward[node] = widest(node, weights.end_of[node])
    return widest(ROUTER, 0)
