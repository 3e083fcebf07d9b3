"""KV room as the router books it: layer-pages reserved on every hop of a route, or on none.

The books run ahead of the nodes' own pages: a request reserves what it is expected to use, and its
booking grows with it. Booking is refused above the high-water mark; what is running may grow past
it, up to the point where the node itself refuses and the request is moved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from helix_mq.ids import NodeId, RequestId
from helix_mq.layers import Hop, Route


@dataclass(frozen=True, slots=True)
class NodeBook:
    """One node's pages: `reserved_pages` may exceed `total_pages` when requests outgrow."""

    total_pages: int
    page_tokens: int
    reserved_pages: int = 0


class KvBooks:
    def __init__(self, high_water: float = 0.9) -> None:
        self._high_water = high_water
        self._total: dict[NodeId, tuple[int, int]] = {}
        self._reserved: dict[NodeId, int] = {}
        self._held: dict[RequestId, dict[NodeId, int]] = {}
        self._tokens: dict[RequestId, int] = {}
        """What each request is booked for; it asks with every token and outgrows it rarely."""

    def set_node(self, node: NodeId, total_pages: int, page_tokens: int) -> None:
        self._total[node] = (total_pages, page_tokens)
        self._reserved.setdefault(node, 0)

    def drop_node(self, node: NodeId) -> None:
        """Forgets a node and what requests held on it."""
        self._total.pop(node, None)
        self._reserved.pop(node, None)
        for held in self._held.values():
            held.pop(node, None)

    def page_tokens(self, node: NodeId) -> int:
        """Tokens of a page of a node that is in the books."""
        return self._total[node][1]

    def pages_for(self, hop: Hop, tokens: int) -> int:
        """Layer-pages that `tokens` tokens take on a hop."""
        page_tokens = self._total[hop.node][1]
        return -(-tokens // page_tokens) * len(hop.layers)

    def has_room(self, hop: Hop, tokens: int) -> bool:
        """True if a request of so many tokens may be booked on this hop now.

        A node that is empty takes anything that fits it whole: the mark must not make a request
        impossible that the node could serve alone.
        """
        if hop.node not in self._total:
            return False
        total = self._total[hop.node][0]
        reserved = self._reserved[hop.node]
        wanted = self.pages_for(hop, tokens)
        if reserved == 0:
            return wanted <= total
        return reserved + wanted <= self._high_water * total

    def capacity_tokens(self, hop: Hop) -> int:
        """Tokens one sequence could have on this hop if it were alone there."""
        total, page_tokens = self._total.get(hop.node, (0, 1))
        return total // len(hop.layers) * page_tokens

    def reserve(self, request: RequestId, route: Route, tokens: int) -> None:
        """Books every hop of the route; the caller has checked `has_room` on each."""
        held = self._held.setdefault(request, {})
        self._tokens[request] = tokens
        for hop in route.hops:
            self._book(held, hop.node, self.pages_for(hop, tokens))

    def has_room_to_grow(self, request: RequestId, route: Route, tokens: int) -> bool:
        """True if the request's booking covers so many tokens, or may be raised to that without
        passing the mark on any hop."""
        held = self._held.get(request)
        if held is None:
            return False
        if tokens <= self._tokens[request]:
            return True
        return all(
            self._reserved[hop.node] + self.pages_for(hop, tokens) - held[hop.node]
            <= self._high_water * self._total[hop.node][0]
            for hop in route.hops
            if hop.node in held
        )

    def grow(self, request: RequestId, route: Route, tokens: int) -> None:
        """Raises the booking to `tokens` where it is lower."""
        held = self._held.get(request)
        if held is None or tokens <= self._tokens[request]:
            return
        self._tokens[request] = tokens
        wanted: dict[NodeId, int] = {}
        for hop in route.hops:
            # Not where its pages are no longer counted: the node is gone, or has another slice.
            if hop.node in held:
                wanted[hop.node] = wanted.get(hop.node, 0) + self.pages_for(hop, tokens)
        for node, pages in wanted.items():
            if pages > held.get(node, 0):
                self._book(held, node, pages - held.get(node, 0))

    def release(self, request: RequestId) -> None:
        self._tokens.pop(request, None)
        for node, pages in self._held.pop(request, {}).items():
            self._reserved[node] -= pages

    def _book(self, held: dict[NodeId, int], node: NodeId, pages: int) -> None:
        held[node] = held.get(node, 0) + pages
        self._reserved[node] += pages

    def book(self, node: NodeId) -> NodeBook:
        total, page_tokens = self._total[node]
        return NodeBook(total, page_tokens, self._reserved[node])

    def check(self, running: Iterable[RequestId]) -> None:
        """Raises AssertionError unless exactly the running requests hold pages, and sums agree."""
        assert sorted(self._held) == sorted(running), (sorted(self._held), sorted(running))
        for node, reserved in self._reserved.items():
            assert reserved == sum(h.get(node, 0) for h in self._held.values()), node
