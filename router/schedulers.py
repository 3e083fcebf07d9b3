"""The request schedulers by name, and the one that follows the max flow. Pure.

Max flow: interleaved weighted round robin. At the source and at every node, the next hop is the one
whose (work given so far + this work) / flow is least, so that over time work is shared in the
proportions of the max flow (Helix, ASPLOS '25, section 5). Next hops that are equal by that, as
those of equal flow are whenever their shares have come out even, are taken by expected latency:
least seconds over the hop and from there to the last layer. It breaks ties and no more: proportions
stay those of the flow. Equal in latency too, or nothing known of it: by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from heapq import heapify, heappop
from math import inf

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import Route
from router.near_first import Edge, all_near, near_first
from router.routes import FlowWeights, RoomFor, find_route
from router.schedulers_base import Deaf, RequestScheduler, Scheduling
from router.schedulers_simple import RandomScheduler, ShortestQueueScheduler
from router.schedulers_swarm import SwarmScheduler

CHANGE = 1.2
"""What is asked for is followed by such factors."""
_LEAST_TOKENS_PER_S = 1.0


def new_scheduler(scheduling: Scheduling, weights: FlowWeights) -> RequestScheduler:
    """The scheduler that the settings name, on a first graph."""
    match scheduling.method:
        case "maxflow":
            return MaxFlowScheduler(weights, prefer_near=scheduling.prefer_near)
        case "swarm":
            return SwarmScheduler(weights)
        case "random":
            return RandomScheduler(weights, scheduling.seed)
        case "shortest-queue":
            return ShortestQueueScheduler(weights)


@dataclass(slots=True)
class _Choices:
    """The next hops of one node, in order of preference among equals.

    `shares`: tokens/s that each is to get now, of its `flows`; `given` is in tokens. Those without
    a share come after the others: they are for when no other has room.
    """

    nodes: list[NodeId]
    flows: list[float]
    shares: list[float]
    given: list[float]
    largest: float = 0.0
    """Most that was given to one at once."""

    def ranked(self, work_tokens: float) -> Iterator[NodeId]:
        """Best first, at O(out-degree) for the first and O(log out-degree) for each other."""
        nodes = self.nodes
        if len(nodes) == 1:
            yield nodes[0]
            return
        order = [
            (share <= 0, (given + work_tokens) / (share or flow), at)
            for at, (given, share, flow) in enumerate(
                zip(self.given, self.shares, self.flows, strict=True)
            )
        ]
        heapify(order)
        while order:
            yield nodes[heappop(order)[2]]

    def took(self, node: NodeId, work_tokens: float) -> None:
        self.given[self.nodes.index(node)] += work_tokens
        self.largest = max(self.largest, work_tokens)

    def ahead(self) -> dict[NodeId, float]:
        """Tokens that each has got beyond its share, within one request's."""
        if not self.nodes:
            return {}
        used = [at for at, share in enumerate(self.shares) if share > 0]
        even = sum(self.given[at] for at in used) / sum(self.shares[at] for at in used)
        most = self.largest
        return {
            self.nodes[at]: min(most, max(-most, self.given[at] - even * self.shares[at]))
            for at in used
        }


class MaxFlowScheduler(Deaf):
    """Keeps the work given along each edge with flow."""

    def __init__(self, weights: FlowWeights, *, prefer_near: bool = True) -> None:
        self._choices: dict[NodeId, _Choices] = {}
        self._prefer_near = prefer_near
        self._asked = inf
        self.replace(weights)

    def replace(self, weights: FlowWeights) -> None:
        """New weights. Who has got less than its share, by up to a request, gets that yet: were it
        forgotten, flows that change with every few requests would send most to the widest. No more
        than that, or a node that had no room would be flooded once it has."""
        self._weights = weights
        used = {source: weights.usable(source) for source in weights.edges}
        onward_s = _onward_s(weights, used, weights.hop_s)
        way_s = _onward_s(weights, used, weights.link_s)
        self._edges: dict[NodeId, list[Edge]] = {}
        for source, out in used.items():
            # To the first node a request goes once, and not each of its tokens.
            over_s = weights.link_s if source != ROUTER else {}
            ways = [
                Edge(
                    node,
                    flow,
                    over_s.get((source, node), 0.0) + way_s.get(node, 0.0),
                    weights.hop_s.get((source, node), 0.0) + onward_s.get(node, 0.0),
                )
                for node, flow in out
            ]
            self._edges[source] = sorted(ways, key=lambda e: (e.way_s, e.node))
        self._near = not self._prefer_near or all_near(self._edges)
        self._share()

    def wants(self, tokens_per_s: float) -> None:
        """So much is asked for, prompts and output together."""
        asked = max(tokens_per_s, _LEAST_TOKENS_PER_S)
        if max(asked, self._asked) > CHANGE * min(asked, self._asked):
            self._asked = asked
            if not self._near:
                self._share()

    def _share(self) -> None:
        before, self._choices = self._choices, {}
        asked = inf if self._near else self._asked
        shares = near_first(self._edges, self._weights.end_of, asked)
        for source, out in self._edges.items():
            former = before.get(source)
            ahead = former.ahead() if former is not None else {}
            by_latency = sorted(
                zip(out, shares[source], strict=True), key=lambda e: (e[0].latency_s, e[0].node)
            )
            self._choices[source] = _Choices(
                [edge.node for edge, _ in by_latency],
                [edge.flow for edge, _ in by_latency],
                [share for _, share in by_latency],
                [ahead.get(edge.node, 0.0) for edge, _ in by_latency],
                former.largest if former is not None else 0.0,
            )

    def choose(self, work_tokens: int, room_for: RoomFor) -> Route | None:
        route = find_route(self._weights, partial(self._ranked, work_tokens), room_for)
        if route is not None:
            at = ROUTER
            for hop in route.hops:
                self._choices[at].took(hop.node, work_tokens)
                at = hop.node
        return route

    def next_nodes(self, source: NodeId) -> Iterable[NodeId]:
        choices = self._choices.get(source)
        return choices.nodes if choices is not None else ()

    def _ranked(self, work_tokens: int, source: NodeId) -> Iterable[NodeId]:
        choices = self._choices.get(source)
        return choices.ranked(work_tokens) if choices is not None else ()


def _onward_s(
    weights: FlowWeights,
    used: Mapping[NodeId, tuple[tuple[NodeId, float], ...]],
    edge_s: Mapping[tuple[NodeId, NodeId], float],
) -> dict[NodeId, float]:
    """Least seconds from each node's end to the last layer and back, along edges that are used."""
    if not edge_s:
        return {}
    onward: dict[NodeId, float] = {}
    for node in sorted(weights.end_of, key=lambda n: (-weights.end_of[n], n)):
        if weights.end_of[node] < weights.num_layers:
            onward[node] = min(
                (
                    edge_s.get((node, after), 0.0) + onward.get(after, 0.0)
                    for after, _ in used.get(node, ())
                ),
                default=0.0,
            )
    return onward
