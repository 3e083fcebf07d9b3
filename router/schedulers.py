"""The request schedulers by name, and the one that follows the max flow. Pure.

Max flow: interleaved weighted round robin. At the source and at every node, the next hop is the one
whose (work given so far + this work) / flow is least, so that over time work is shared in the
proportions of the max flow (Helix, ASPLOS '25, section 5). Next hops that are equal by that, as
those of equal flow are whenever their shares have come out even, are taken by expected latency:
least seconds over the hop and from there to the last layer. It breaks ties and no more: proportions
stay those of the flow. Equal in latency too, or nothing known of it: by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from heapq import heapify, heappop

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import Route
from router.routes import FlowWeights, RoomFor, find_route
from router.schedulers_base import Deaf, RequestScheduler, Scheduling
from router.schedulers_simple import RandomScheduler, ShortestQueueScheduler
from router.schedulers_swarm import SwarmScheduler


def new_scheduler(scheduling: Scheduling, weights: FlowWeights) -> RequestScheduler:
    """The scheduler that the settings name, on a first graph."""
    match scheduling.method:
        case "maxflow":
            return MaxFlowScheduler(weights)
        case "swarm":
            return SwarmScheduler(weights)
        case "random":
            return RandomScheduler(weights, scheduling.seed)
        case "shortest-queue":
            return ShortestQueueScheduler(weights)


@dataclass(slots=True)
class _Choices:
    """The next hops of one node, in order of preference among equals; `given` is in tokens."""

    nodes: list[NodeId] = field(default_factory=list)
    flows: list[float] = field(default_factory=list)
    given: list[float] = field(default_factory=list)

    def ranked(self, work_tokens: float) -> Iterator[NodeId]:
        """Best first, at O(out-degree) for the first and O(log out-degree) for each other."""
        nodes = self.nodes
        if len(nodes) == 1:
            yield nodes[0]
            return
        order = [
            ((given + work_tokens) / flow, at)
            for at, (given, flow) in enumerate(zip(self.given, self.flows, strict=True))
        ]
        heapify(order)
        while order:
            yield nodes[heappop(order)[1]]


class MaxFlowScheduler(Deaf):
    """Keeps the work given along each edge with flow."""

    def __init__(self, weights: FlowWeights) -> None:
        self.replace(weights)

    def replace(self, weights: FlowWeights) -> None:
        """New weights; what was given before is forgotten, or a node that had been slow would be
        flooded until its count caught up."""
        self._weights = weights
        used = {source: weights.usable(source) for source in weights.edges}
        onward_s = _onward_s(weights, used)
        self._choices: dict[NodeId, _Choices] = {}
        for source, edges in used.items():
            by_latency = sorted(
                edges,
                key=lambda e: (
                    weights.hop_s.get((source, e[0]), 0.0) + onward_s.get(e[0], 0.0),
                    e[0],
                ),
            )
            self._choices[source] = _Choices(
                [node for node, _ in by_latency],
                [flow for _, flow in by_latency],
                [0.0] * len(by_latency),
            )

    def choose(self, work_tokens: int, room_for: RoomFor) -> Route | None:
        route = find_route(self._weights, partial(self._ranked, work_tokens), room_for)
        if route is not None:
            at = ROUTER
            for hop in route.hops:
                choices = self._choices[at]
                choices.given[choices.nodes.index(hop.node)] += work_tokens
                at = hop.node
        return route

    def next_nodes(self, source: NodeId) -> Iterable[NodeId]:
        choices = self._choices.get(source)
        return choices.nodes if choices is not None else ()

    def _ranked(self, work_tokens: int, source: NodeId) -> Iterable[NodeId]:
        choices = self._choices.get(source)
        return choices.ranked(work_tokens) if choices is not None else ()


def _onward_s(
    weights: FlowWeights, used: dict[NodeId, tuple[tuple[NodeId, float], ...]]
) -> dict[NodeId, float]:
    """Least expected seconds from each node's end to the last layer, along edges that are used."""
    if not weights.hop_s:
        return {}
    onward: dict[NodeId, float] = {}
    for node in sorted(weights.end_of, key=lambda n: (-weights.end_of[n], n)):
        if weights.end_of[node] < weights.num_layers:
            onward[node] = min(
                (
                    weights.hop_s.get((node, after), 0.0) + onward.get(after, 0.0)
                    for after, _ in used.get(node, ())
                ),
                default=0.0,
            )
    return onward
