"""Which of the max flow's edges new work takes while less is asked for than the flow could pass.

A max flow says how to pass all that can be passed. While a tenth of that is asked for, its
proportions send tokens across oceans that nodes nearby would have computed as well. So from the
source to the last layer each node passes on what comes to it over its nearest edges first, as far
as their flow goes, and over farther ones only what is left. Edges that are about as near share what
they get in the proportions of the flow; with all that the flow could pass asked for, every edge
gets its flow. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from helix_mq.ids import ROUTER, NodeId

NEAR_S = 0.02
"""Edges whose ways to the last layer and back are no farther apart count as equally near: less is
within what measured round trips vary by."""
HEADROOM = 1.25
"""Near edges get this many times what is asked for: what comes is not even, and farther nodes are
better used a little early than late."""


@dataclass(frozen=True, slots=True)
class Edge:
    """`flow`: tokens/s of the max flow. `way_s`: on links, of each token from here to the last
    layer and back to a first node; from the router to the first does not count, which is once per
    request. `latency_s`: expected, with that and with the time that nodes take."""

    node: NodeId
    flow: float
    way_s: float
    latency_s: float


Edges = Mapping[NodeId, Sequence[Edge]]
"""By source, ROUTER one of them; each source's are sorted by `way_s`."""


def near_first(
    edges: Edges, end_of: Mapping[NodeId, int], asked: float
) -> dict[NodeId, list[float]]:
    """Tokens/s over each edge, in the order of `edges`, when so many are `asked` for.

    No edge gets more than its flow. A source that nothing comes to has its edges' flows: should a
    request get there after all, they say where it goes on.
    """
    passing = {ROUTER: HEADROOM * asked}
    shares: dict[NodeId, list[float]] = {}
    # Whatever comes to a node leaves others that end before it does.
    for source in sorted(edges, key=lambda node: (end_of.get(node, 0), node)):
        out = edges[source]
        left = passing.get(source, 0.0)
        shares[source] = given = _filled(out, left) if left > 0 else [edge.flow for edge in out]
        if left > 0:
            for edge, share in zip(out, given, strict=True):
                passing[edge.node] = passing.get(edge.node, 0.0) + share
    return shares


def all_near(edges: Edges) -> bool:
    """Whether no edge is farther than those beside it, so that it never matters what is asked."""
    return all(out[-1].way_s - out[0].way_s <= NEAR_S for out in edges.values() if out)


def _filled(out: Sequence[Edge], left: float) -> list[float]:
    """The nearest full, then the next, until `left` is."""
    shares: list[float] = []
    while len(shares) < len(out):
        nearest_s = out[len(shares)].way_s
        group = [e.flow for e in out[len(shares) :] if e.way_s - nearest_s <= NEAR_S]
        widest = sum(group)
        part = min(1.0, left / widest)
        shares += [part * flow for flow in group]
        left = max(0.0, left - widest)
        if left < 1e-6 * widest:
            left = 0.0
    return shares
