"""Upper bounds on the max flow of any placement, each with the reason in words.

Three of them, cheapest first: what the router's links and the nodes beside them pass; the
flow-capped capacity of all layers; and the same with whole nodes per layer
(`solver.bounds_configurations`). All hold with and without partial inference and for any links,
because they only use that every layer of every token is computed somewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solver.bounds_configurations import Supply, is_feasible
from solver.search_index import ProblemIndex

OPTIMAL_REL_GAP = 2e-6
"""A bound this close above an answer proves it optimal: flows are exact to about 1e-9, and the
last step of the search for a bound is taken 1e-6 above the answer."""
STEP_REL = 1e-6
RESOLUTION_REL = 5e-4
"""How close the bisection goes to the least bound it can prove."""


@dataclass(frozen=True, slots=True)
class Bound:
    """No placement passes more than `tokens_per_s`, because of `reason`."""

    tokens_per_s: float
    reason: str


def quick_bound(index: ProblemIndex) -> Bound:
    """The least of the bounds that take no search: router links, and flow-capped capacity."""
    bounds = (_ends(index), _flow_capped(index))
    return min(bounds, key=lambda b: b.tokens_per_s)


def best_bound(
    index: ProblemIndex, known_tokens_per_s: float, *, stop: Callable[[], bool]
) -> Bound:
    """The least bound found before `stop` says so.

    `known_tokens_per_s` is an answer's flow: whether it is already optimal is tried first, and no
    bound below it is looked for. With 0 only the quick bounds are given.
    """
    bound = quick_bound(index)
    if known_tokens_per_s <= 0 or bound.tokens_per_s <= known_tokens_per_s * (1 + STEP_REL):
        return bound
    supplies = _supplies(index)
    low, high = known_tokens_per_s * (1 + STEP_REL), bound.tokens_per_s

    def possible(tokens_per_s: float) -> bool:
        return is_feasible(supplies, index.num_layers, tokens_per_s, stop=stop)

    if not possible(low):
        return Bound(low, _CONFIGURATIONS)
    while high - low > RESOLUTION_REL * high and not stop():
        middle = (low + high) / 2
        if possible(middle):
            low = middle
        else:
            high, bound = middle, Bound(middle, _CONFIGURATIONS)
    return bound


_CONFIGURATIONS = (
    "every layer needs whole nodes whose throughputs sum to the flow, and no choice of slices for "
    "the nodes there are gives that to all layers at a higher flow"
)


def _ends(index: ProblemIndex) -> Bound:
    first = math.fsum(np.sort(np.minimum(index.source, index.peak)))
    last = math.fsum(np.sort(np.minimum(index.sink, index.peak)))
    if first <= last:
        return Bound(first, "the router's links to the nodes pass no more")
    return Bound(last, "the nodes' links back to the router pass no more")


def _supplies(index: ProblemIndex) -> tuple[Supply, ...]:
    """Nodes with the same table, whatever their region; rates cut to what a node's links pass."""
    counts: dict[tuple[float, ...], int] = {}
    for i in range(len(index)):
        width = int(index.max_layers[i])
        rates = np.minimum(index.rate[i, 1 : width + 1], index.through[i])
        key = tuple(float(r) for r in rates)
        counts[key] = counts.get(key, 0) + 1
    return tuple(Supply(rates, counts[rates]) for rates in sorted(counts))


def _flow_capped(index: ProblemIndex) -> Bound:
    """The F up to which sum_i max_k k min(T_i(k), F) >= L F.

    A node that holds k layers does at most min(T_i(k), F) tokens/s of each, and L F token-layers
    per second are to be done. Both sides are concave in F and equal at 0, so one F divides them.
    """
    supplies = _supplies(index)
    reason = "each layer can use at most the flow itself of any node's throughput"
    high = math.fsum(max(s.rates, default=0.0) * s.count for s in supplies)
    low = 0.0
    room = sum(
        s.count * max((k for k, rate in enumerate(s.rates, 1) if rate > 0), default=0)
        for s in supplies
    )
    if high <= 0 or room < index.num_layers:
        return Bound(0.0, f"the nodes hold {room} of {index.num_layers} layers")

    def enough(flow: float) -> bool:
        work = math.fsum(
            s.count * max(k * min(rate, flow) for k, rate in enumerate(s.rates, 1))
            for s in supplies
        )
        return work >= index.num_layers * flow * (1 - 1e-12)

    if enough(high):
        return Bound(high, reason)
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return Bound(high, reason)
