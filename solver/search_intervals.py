"""The exact programme of a uniform network with partial inference: intervals that cover layers.

Where links never bind, a placement's max flow is its weakest layer's summed throughput (see
`search_judge`). So for a flow F the question is how many nodes of each kind hold [s, s + k) so that
every layer gets F: no flow variables, no symmetry between equal nodes. A "no" from HiGHS is a
bound, a "yes" a placement; the search closes in from both sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array

from solver.milp_highs import FloatArray, LinearModel, run_highs
from solver.search_chain import Candidate
from solver.search_index import IntArray, ProblemIndex
from solver.search_judge import Judge
from solver.search_pools import NodePool, make_pool
from solver.search_types import Budget

MAX_COLUMNS = 25_000
RESOLUTION_REL = 1e-5


@dataclass(frozen=True, slots=True)
class IntervalAnswer:
    """The best placement found, if better than what was known, and the least bound proven."""

    best: Candidate | None
    bound_tokens_per_s: float


def close_gap(
    index: ProblemIndex, judge: Judge, known: float, bound: float, budget: Budget, seed: int
) -> IntervalAnswer:
    """Search between a known flow and a bound until they meet or the budget is over.

    Only for a wide network with partial inference; with too many kinds and layers it returns at
    once.
    """
    pool = make_pool(index, range(len(index)))
    columns = _columns(pool, index.num_layers)
    best: Candidate | None = None
    if len(columns) > MAX_COLUMNS:
        return IntervalAnswer(None, bound)
    share = 0.5
    while bound > known * (1 + RESOLUTION_REL) and budget.left_s > 0.5:
        target = known + max(share * (bound - known), known * RESOLUTION_REL)
        part = budget.part(budget.left_s if share < 0.1 else budget.left_s / 3)
        model = _model(pool, columns, index.num_layers, target)
        run = run_highs(model, part, rel_gap=1.0, seed=seed)
        if run.infeasible:
            bound = target
            continue
        if run.solution is None:
            if share < 0.1:
                break
            share /= 3
            continue
        first, end = _placed(index, pool, columns, run.solution)
        value = judge.tokens_per_s(first, end)
        if value <= known:
            break
        known, best = value, Candidate(value, first, end)
    return IntervalAnswer(best, bound)


def _columns(pool: NodePool, num_layers: int) -> list[tuple[int, int, int]]:
    """(kind, first, layers) of every slice there can be."""
    return [
        (kind, first, layers)
        for kind, what in enumerate(pool.pool.kinds)
        for layers, rate in enumerate(what.rates, 1)
        if rate > 0
        for first in range(num_layers - layers + 1)
    ]


def _model(
    pool: NodePool, columns: list[tuple[int, int, int]], num_layers: int, flow: float
) -> LinearModel:
    """Rows: layers (each needs 1, in units of the flow), then kinds (no more than there are).

    Throughput above the flow counts as the flow, which tightens the relaxation. The cost, nodes
    used, only breaks ties.
    """
    rows, cols, values = [], [], []
    for c, (kind, first, layers) in enumerate(columns):
        rate = min(1.0, pool.pool.kinds[kind].rates[layers - 1] / flow)
        for layer in range(first, first + layers):
            rows.append(layer)
            cols.append(c)
            values.append(rate)
        rows.append(num_layers + kind)
        cols.append(c)
        values.append(1.0)
    counts: FloatArray = np.array([float(k.count) for k in pool.pool.kinds])
    size = num_layers + len(counts)
    return LinearModel(
        cost=np.ones(len(columns)),
        matrix=coo_array((values, (rows, cols)), shape=(size, len(columns))).tocsc(),
        row_lower=np.concatenate([np.full(num_layers, 1.0), np.zeros(len(counts))]),
        row_upper=np.concatenate([np.full(num_layers, np.inf), counts]),
        col_lower=np.zeros(len(columns)),
        col_upper=counts[[kind for kind, _, _ in columns]],
        integer=np.ones(len(columns), dtype=bool),
        names=[f"k{kind}_s{first}_n{layers}" for kind, first, layers in columns],
    )


def _placed(
    index: ProblemIndex, pool: NodePool, columns: list[tuple[int, int, int]], x: FloatArray
) -> tuple[IntArray, IntArray]:
    first = np.zeros(len(index), dtype=np.int64)
    end = np.zeros(len(index), dtype=np.int64)
    spare = [list(reversed(members)) for members in pool.members]
    for (kind, begin, layers), times in zip(columns, x, strict=True):
        for _ in range(round(float(times))):
            node = spare[kind].pop()
            first[node], end[node] = begin, begin + layers
    return first, end
