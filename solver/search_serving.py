"""Candidates for serving, where a larger max flow may serve less: calmer plans and filled nodes.

Max flow favours narrow stages and long chains. Serving wants KV room and few, busy hops. So next to
the best placement for flow this makes the best at lower flows, puts idle nodes to use, and ranks
all by the serving estimate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from solver.flow import max_flow
from solver.judging import TRIALS
from solver.objective import ServingEstimate, ServingModel, estimate
from solver.search_chain import Candidate, best_chain
from solver.search_index import ProblemIndex
from solver.search_judge import Judge
from solver.search_pools import pools_of
from solver.search_types import Budget

SHARES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.4)
"""Of the best flow: chains are sought that pass at least so much."""


def calmer_plans(
    index: ProblemIndex, judge: Judge, best: Candidate, budget: Budget
) -> Iterator[Candidate]:
    """Placements for less flow than the best, each also with its idle nodes put to use."""
    pools = pools_of(index)
    yield fill_idle(index, judge, best)
    for share in SHARES:
        if budget.over():
            return
        found = best_chain(index, judge, pools, share * best.tokens_per_s, budget)
        if found is not None:
            yield found
            yield fill_idle(index, judge, found)


def fill_idle(index: ProblemIndex, judge: Judge, candidate: Candidate) -> Candidate:
    """Idle nodes take their most layers where coverage is weakest; never less flow than before.

    More nodes only add ways for the flow, and KV room where it is scarce.
    """
    first, end = candidate.first.copy(), candidate.end.copy()
    idle = np.flatnonzero(end <= first)
    for i in sorted(idle, key=lambda i: (-int(index.max_layers[i]), int(i))):
        width = int(index.max_layers[i])
        cover = judge.coverage(first, end)
        windows = np.lib.stride_tricks.sliding_window_view(cover, width)
        at = int(np.lexsort((windows.mean(axis=1), windows.min(axis=1)))[0])
        first[i], end[i] = at, at + width
    value = judge.tokens_per_s(first, end)
    if value < candidate.tokens_per_s * (1 - 1e-9):
        return candidate
    return Candidate(value, first, end)


def most_promising(
    found: Sequence[tuple[float, Candidate, str]],
) -> list[tuple[float, Candidate, str]]:
    """Of (estimate, candidate, method): the different ones with the highest estimates, best first.

    Second is the one of the largest flow, which the estimate may be wrong about.
    """
    ordered = sorted(found, key=lambda f: (-f[0], -f[1].tokens_per_s))
    widest = max(found, key=lambda f: f[1].tokens_per_s, default=None)
    different: dict[tuple[bytes, bytes], tuple[float, Candidate, str]] = {}
    for entry in ordered[:1] + ([widest] if widest is not None else []) + ordered[1:]:
        different.setdefault((entry[1].first.tobytes(), entry[1].end.tobytes()), entry)
    return list(different.values())[:TRIALS]


def serving_estimate(
    index: ProblemIndex, candidate: Candidate, model: ServingModel, *, partial_inference: bool
) -> ServingEstimate:
    """The estimate of a candidate, from its exact flow."""
    placement = index.placement(candidate.first, candidate.end)
    flow = max_flow(index.problem, placement, partial_inference=partial_inference)
    return estimate(index.problem, placement, flow, model)
