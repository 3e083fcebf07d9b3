"""The best pipeline through a chain of pools: bisection on the flow, blocks at each, then nodes.

For one pool this is stage covering on a uniform network. Between pools the slow links decide how
many nodes must stand on the two sides of a crossing, and which of them. Every candidate is judged
by its max flow; what the bisection asked for is never taken on trust.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, permutations

import numpy as np

from solver.search_blocks import Block
from solver.search_cover import Columns, Crossing, choose, make_columns
from solver.search_index import IntArray, ProblemIndex
from solver.search_judge import Judge
from solver.search_pools import NodePool
from solver.search_types import Budget

RESOLUTION_REL = 2e-4
MAX_ORDERS = 24
EXTRA_LINKS = 3
"""How many links more than the fastest ones would need are tried at a crossing."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A placement as arrays, and what the judge says of it."""

    tokens_per_s: float
    first: IntArray
    end: IntArray


def best_chain(
    index: ProblemIndex,
    judge: Judge,
    pools: Sequence[NodePool],
    high: float,
    budget: Budget,
) -> Candidate | None:
    """The best placement found that leads all flow through all `pools`, in some order.

    `high` is an upper bound in tokens/s. None if no order covers the layers at any flow tried.
    """
    best: Candidate | None = None
    low, flow = 0.0, high
    while high - low > RESOLUTION_REL * high and not budget.over():
        found = _at_flow(index, judge, pools, flow, budget)
        if found is not None and (best is None or found.tokens_per_s > best.tokens_per_s):
            best = found
        if found is not None and found.tokens_per_s >= flow * (1 - 1e-6):
            low = max(flow, found.tokens_per_s)
        else:
            high = flow
        flow = (low + high) / 2
        if high < 1e-6:
            break
    return best


def _at_flow(
    index: ProblemIndex, judge: Judge, pools: Sequence[NodePool], flow: float, budget: Budget
) -> Candidate | None:
    """A placement for this flow; or the best that fell short of it, if any covers the layers."""
    columns = [make_columns(p.pool, flow, index.num_layers, budget) for p in pools]
    if sum(math.floor(c.most_layers + 1e-6) for c in columns) < index.num_layers:
        return None
    best: Candidate | None = None
    for order in islice(permutations(range(len(pools))), MAX_ORDERS):
        chain = [pools[p] for p in order]
        for extra in range(EXTRA_LINKS if len(pools) > 1 else 1):
            if budget.over():
                return best
            found = _chain_at(index, judge, chain, [columns[p] for p in order], flow, extra, budget)
            if found is None:
                break
            if best is None or found.tokens_per_s > best.tokens_per_s:
                best = found
            if best.tokens_per_s >= flow * (1 - 1e-6):
                return best
    return best


def _chain_at(
    index: ProblemIndex,
    judge: Judge,
    chain: Sequence[NodePool],
    columns: Sequence[Columns],
    flow: float,
    extra: int,
    budget: Budget,
) -> Candidate | None:
    crossings = []
    for before, after in pairwise(chain):
        fastest = float(index.link[np.ix_(before.nodes, after.nodes)].max())
        crossing = crossing_of(flow, fastest, extra, len(before.nodes), len(after.nodes))
        if crossing is None:
            return None
        crossings.append(crossing)
    chosen = choose([p.pool for p in chain], columns, crossings, index.num_layers, budget)
    if chosen is None:
        return None
    first, end = _assign(index, chain, chosen)
    return Candidate(judge.tokens_per_s(first, end), first, end)


def crossing_of(
    flow: float, fastest: float, extra: int, before: int, after: int
) -> Crossing | None:
    """Ways for `flow` tokens/s to cross over links of at most `fastest`, plus `extra` links.

    Few nodes on one side need more on the other. None where the `before` and `after` nodes of the
    two sides have too few pairs. Said before anything is listed: the flow that a search begins at
    may be 10^9 times what a slow link passes.
    """
    if fastest <= 0 or flow > fastest * before * after * (1 + 1e-9):
        return None
    links = math.ceil(flow / fastest - 1e-9)
    if links <= 1 and extra == 0:
        return Crossing(((1, 1),))
    need = max(links, 1) + extra
    sides = {(a, math.ceil(need / a)) for a in range(1, min(need, before) + 1)}
    ways = tuple(sorted(way for way in sides if way[1] <= after))
    return Crossing(ways) if ways else None


def _assign(
    index: ProblemIndex, chain: Sequence[NodePool], chosen: Sequence[Sequence[Block]]
) -> tuple[IntArray, IntArray]:
    """Nodes for the slices: any of the kind, then exchanged where that widens a crossing."""
    first = np.zeros(len(index), dtype=np.int64)
    end = np.zeros(len(index), dtype=np.int64)
    at = 0
    borders = []
    for pool, blocks in zip(chain, chosen, strict=True):
        spare = [list(reversed(members)) for members in pool.members]
        for block in blocks:
            for piece in block.slices:
                node = spare[piece.kind].pop()
                first[node], end[node] = at + piece.first, at + piece.end
            at += block.width
        borders.append(at)
    for before, after, border in zip(chain, chain[1:], borders, strict=False):
        _widen(index, before, first, end, border)
        _widen(index, after, first, end, border)
        _widen(index, before, first, end, border)
    return first, end


def _widen(
    index: ProblemIndex, pool: NodePool, first: IntArray, end: IntArray, border: int
) -> None:
    """Exchange like nodes of `pool` while the links over `border` pass more."""
    improved = True
    while improved:
        improved = False
        for members in pool.members:
            at_border = [i for i in members if border in (first[i], end[i]) and end[i] > first[i]]
            for i in at_border:
                for j in members:
                    if (first[i], end[i]) == (first[j], end[j]):
                        continue
                    now = _over(index, first, end, border)
                    _exchange(first, end, i, j)
                    if _over(index, first, end, border) > now * (1 + 1e-9):
                        improved = True
                        break
                    _exchange(first, end, i, j)


def _over(index: ProblemIndex, first: IntArray, end: IntArray, border: int) -> float:
    """Summed capacity of the links from nodes that end at `border` to nodes that begin there."""
    rates = index.rate[np.arange(len(index)), end - first]
    before = np.flatnonzero((end == border) & (end > first))
    after = np.flatnonzero((first == border) & (end > first))
    ends = np.minimum(rates[before][:, None], rates[after][None, :])
    return float(np.minimum(index.link[np.ix_(before, after)], ends).sum())


def _exchange(first: IntArray, end: IntArray, i: int, j: int) -> None:
    first[i], first[j] = first[j], first[i]
    end[i], end[j] = end[j], end[i]
