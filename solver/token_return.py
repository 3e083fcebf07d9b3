"""Between which last and first hops of a placement's routes tokens go straight, and how many. Pure.

As the router chooses it, route by route: by the round trips of three links, as they would be
measured. Which first hops belong to which last ones follows from the flow, at each node of which
requests part as the flow does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import LayerRange, Placement
from helix_mq.token_return import TokenReturn, goes_straight, saved_s
from solver.flow import FlowSolution
from solver.problem import SINK, SOURCE, Problem, ProblemLink

SHORTEST_TRIP_S: Final = 1e-6
"""No link is quite without latency, and 0 would mean that nobody has measured it."""
LEAST_SHARE: Final = 1e-9
"""Of the whole flow: less is what rounding leaves."""

Links = Mapping[tuple[str, str], ProblemLink]
"""By their ends, the router under its own name."""


@dataclass(frozen=True, slots=True)
class Straight:
    """`share` of all decodes go from `last` to `first` over `link`; None where they are one."""

    first: NodeId
    last: NodeId
    share: float
    link: ProblemLink | None


def links_of(problem: Problem) -> dict[tuple[str, str], ProblemLink]:
    """Those that carry anything."""
    return {
        (
            ROUTER if link.src == SOURCE else link.src,
            ROUTER if link.dst == SINK else link.dst,
        ): link
        for link in problem.links
        if link.bytes_per_s > 0
    }


def round_trip_s(links: Links, src: str, dst: str) -> float | None:
    """Of next to nothing over the link from `src` to `dst`, as its sender would measure it; None
    where there is no such link. Without one back, that takes as long as there."""
    there = links.get((src, dst))
    if there is None:
        return None
    return max(there.latency_s + links.get((dst, src), there).latency_s, SHORTEST_TRIP_S)


def straight_returns(
    problem: Problem, placement: Placement, flow: FlowSolution, wanted: TokenReturn
) -> tuple[Straight, ...]:
    """Sorted by first and last hop; empty where all tokens go by the router."""
    links = links_of(problem)
    out = _parting(flow)
    firsts = [name for name in out.get(SOURCE, {}) if (ROUTER, name) in links]
    lasts = [name for name, onward in out.items() if SINK in onward]
    reach = max((_trip(links, ROUTER, name) for name in firsts), default=0.0)
    back = max((_trip(links, name, ROUTER) for name in lasts), default=0.0)
    if not goes_straight(wanted, saved_s(back, reach, None)):
        # Only nodes that hold the whole model then, if there are any.
        whole = LayerRange(0, problem.num_layers)
        firsts = [n for n in firsts if n in lasts and placement.slices[n] == whole]
        if not goes_straight(wanted, 0.0, kept=bool(firsts)):
            return ()
    found = []
    for first in sorted(firsts):
        for last, share in sorted(_ends_of(first, out, placement).items()):
            link = links.get((last, first))
            if first != last and link is None:
                continue
            straight_s = _trip(links, last, first) if first != last else None
            legs_s = _trip(links, last, ROUTER), _trip(links, ROUTER, first)
            if goes_straight(wanted, saved_s(*legs_s, straight_s), kept=first == last):
                found.append(Straight(first, last, share, link if first != last else None))
    return tuple(found)


def _trip(links: Links, src: str, dst: str) -> float:
    return round_trip_s(links, src, dst) or 0.0


def _parting(flow: FlowSolution) -> dict[NodeId, dict[NodeId, float]]:
    """From each node, how much goes where; of what leaves the source, shares of the whole."""
    out: dict[NodeId, dict[NodeId, float]] = {}
    for edge in flow.edges:
        if edge.tokens_per_s > flow.tokens_per_s * LEAST_SHARE:
            out.setdefault(edge.src, {})[edge.dst] = edge.tokens_per_s
    return out


def _ends_of(
    first: NodeId, out: Mapping[NodeId, Mapping[NodeId, float]], placement: Placement
) -> dict[NodeId, float]:
    """Where requests that begin on `first` end: node -> share of all requests."""
    begun = out[SOURCE]
    here = {first: begun[first] / sum(begun.values())}
    ends: dict[NodeId, float] = {}
    # Every edge leads to a node that holds later layers.
    for node in sorted(placement.slices, key=lambda name: (placement.slices[name].end, name)):
        share, onward = here.pop(node, 0.0), out.get(node, {})
        total = sum(onward.values())
        for target, amount in onward.items():
            if not share:
                continue
            if target == SINK:
                ends[node] = share * amount / total
            else:
                here[target] = here.get(target, 0.0) + share * amount / total
    return ends
