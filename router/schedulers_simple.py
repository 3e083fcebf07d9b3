"""Schedulers that know little: lots are drawn, or the shortest queue is joined. Pure.

Both go over every edge of the placement, with flow or without. Kept for comparison and for clusters
whose speeds nobody can tell: neither knows that some nodes are faster than others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop
from random import Random

from helix_mq.ids import NodeId
from helix_mq.layers import Route
from router.routes import FlowWeights, RoomFor, find_route
from router.schedulers_base import Deaf


class RandomScheduler(Deaf):
    """Each hop uniformly at random among next nodes with room that lead to the last layer."""

    def __init__(self, weights: FlowWeights, seed: int) -> None:
        self._weights = weights
        self._random = Random(seed)

    def replace(self, weights: FlowWeights) -> None:
        self._weights = weights

    def next_nodes(self, source: NodeId) -> Iterable[NodeId]:
        return self._weights.all_next(source)

    def choose(self, work_tokens: int, room_for: RoomFor) -> Route | None:
        return find_route(self._weights, self._shuffled, room_for)

    def _shuffled(self, source: NodeId) -> Iterator[NodeId]:
        """Drawn one by one without putting back: rejected ones leave the others equally likely."""
        left = list(self._weights.all_next(source))
        while len(left) > 1:
            at = int(self._random.random() * len(left))
            left[at], left[-1] = left[-1], left[at]
            yield left.pop()
        yield from left


class ShortestQueueScheduler(Deaf):
    """Each hop to the node with the fewest requests routed over it that have not ended.

    That is the queue as the router sees it: a request counts on every node of its route for as long
    as it runs, wherever its row is at the moment. Among equals the one with less work to prefill
    outstanding, in tokens, then by name.
    """

    def __init__(self, weights: FlowWeights) -> None:
        self._weights = weights
        self._requests: dict[NodeId, int] = {}
        self._tokens: dict[NodeId, int] = {}

    def replace(self, weights: FlowWeights) -> None:
        """Counts stay: requests go on running, and those of a node that went have left it."""
        self._weights = weights

    def next_nodes(self, source: NodeId) -> Iterable[NodeId]:
        return self._weights.all_next(source)

    def outstanding(self, node: NodeId) -> int:
        """Requests that the scheduler counts on a node."""
        return self._requests.get(node, 0)

    def choose(self, work_tokens: int, room_for: RoomFor) -> Route | None:
        route = find_route(self._weights, self._by_queue, room_for)
        if route is not None:
            for hop in route.hops:
                self._requests[hop.node] = self._requests.get(hop.node, 0) + 1
                self._tokens[hop.node] = self._tokens.get(hop.node, 0) + work_tokens
        return route

    def on_left(self, route: Route, work_tokens: int) -> None:
        for hop in route.hops:
            self._requests[hop.node] -= 1
            self._tokens[hop.node] -= work_tokens
            if not self._requests[hop.node]:
                del self._requests[hop.node], self._tokens[hop.node]

    def _by_queue(self, source: NodeId) -> Iterator[NodeId]:
        requests, tokens = self._requests, self._tokens
        order = [
            (requests.get(node, 0), tokens.get(node, 0), node)
            for node in self._weights.all_next(source)
        ]
        heapify(order)
        while order:
            yield heappop(order)[2]
