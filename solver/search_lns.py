"""Large-neighbourhood search: Helix's programme on a few nodes, the others fixed where they are.

The neighbourhood is what holds the layers of the min cut, their neighbours and idle nodes. HiGHS
finds the best way to place those; the judge decides on all links. Needs a placement to start from.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from solver.flow import max_flow
from solver.milp import MAX_LINKS
from solver.milp_highs import run_highs
from solver.milp_model import HelixModel
from solver.search_chain import Candidate
from solver.search_index import ProblemIndex
from solver.search_judge import Judge
from solver.search_types import Budget, MilpOptions

NEIGHBOURS = 7
STEP_LIMIT_S = 4.0
FAILURES = 12
"""So many neighbourhoods in a row without a better placement end the search."""


def improve_by_parts(
    index: ProblemIndex,
    judge: Judge,
    start: Candidate,
    bound: float,
    budget: Budget,
    *,
    partial_inference: bool,
    seed: int,
    offer: Callable[[Candidate], None],
) -> Candidate:
    """The best placement found from `start`, whose flow may reach `bound` at most."""
    links = int((index.link > 0).sum())
    if links > MAX_LINKS // 10 or len(index) < 2:
        return start
    options = MilpOptions(break_symmetry=False)
    model = HelixModel(index, options, partial_inference=partial_inference, flow_bound=bound)
    linear, chain, inverse = model.lower()
    rng = random.Random(seed)
    best, failures = start, 0
    while not budget.over() and failures < FAILURES and best.tokens_per_s < bound * (1 - 1e-6):
        free = _neighbourhood(index, best, partial_inference, rng, NEIGHBOURS + failures // 3)
        vector = model.start(index.placement(best.first, best.end))
        low, high = linear.col_lower.copy(), linear.col_upper.copy()
        fixed = model.columns_of(np.setdiff1d(np.arange(len(index)), free))
        low[fixed] = high[fixed] = vector[fixed]
        run = run_highs(
            replace(linear, col_lower=low, col_upper=high),
            budget.part(STEP_LIMIT_S),
            start=vector,
            rel_gap=1e-4,
            seed=seed,
        )
        failures += 1
        if run.solution is None:
            continue
        first, end = model.unpack(run, chain, inverse)
        value = judge.tokens_per_s(first, end)
        if value > best.tokens_per_s * (1 + 1e-7):
            best, failures = Candidate(value, first, end), 0
            offer(best)
    return best


def _neighbourhood(
    index: ProblemIndex, now: Candidate, partial: bool, rng: random.Random, size: int
) -> np.ndarray:
    """Nodes of the min cut, then those that share or touch their layers, in random order."""
    flow = max_flow(index.problem, index.placement(now.first, now.end), partial_inference=partial)
    cut = {end for edge in flow.min_cut for end in (edge.src, edge.dst)}
    core = [i for i, name in enumerate(index.names) if name in cut]
    rng.shuffle(core)
    core = core[: max(1, size // 2)]
    low = min((int(now.first[i]) for i in core), default=0)
    high = max((int(now.end[i]) for i in core), default=index.num_layers)
    idle = now.end <= now.first
    touches = (now.first <= high) & (now.end >= low)
    near = [i for i in np.flatnonzero(idle | touches).tolist() if i not in core]
    rng.shuffle(near)
    return np.array(sorted((core + near)[:size]), dtype=np.int64)
