"""Neighbourhood searches and the exact programme of uniform networks improve, and never lie."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from helix_mq.clock import VirtualClock
from solver.bounds import quick_bound
from solver.flow import max_flow
from solver.heuristics import petals
from solver.problem import Problem
from solver.reference_json import ReferenceCluster
from solver.search_chain import Candidate
from solver.search_index import ProblemIndex
from solver.search_intervals import close_gap
from solver.search_judge import Judge
from solver.search_lns import improve_by_parts
from solver.search_local import improve
from solver.search_pools import make_pool, pods_of, pools_of
from solver.search_serving import fill_idle
from solver.search_types import Budget

Reference = Callable[[str], ReferenceCluster]


LOOKS = 50


class WorkClock(VirtualClock):
    """A second per look at it: a search that asks its budget every so many steps gets so many
    steps, on a fast machine as on a busy one."""

    def now_s(self) -> float:
        self.advance(1.0)
        return super().now_s()


def from_petals(index: ProblemIndex, judge: Judge) -> Candidate:
    first, end = index.arrays(petals(index.problem))
    return Candidate(judge.tokens_per_s(first, end), first, end)


def true_flow(index: ProblemIndex, candidate: Candidate) -> float:
    placement = index.placement(candidate.first, candidate.end)
    return max_flow(index.problem, placement).tokens_per_s


def test_annealing_improves_on_a_slow_network(reference: Reference) -> None:
    index = ProblemIndex(reference("3cluster24_llama70b").problem)
    judge = Judge(index)
    offered: list[float] = []
    best = improve(
        index,
        judge,
        from_petals(index, judge),
        Budget(LOOKS, clock=WorkClock()),
        seed=1,
        patience_s=LOOKS,
        offer=lambda candidate: offered.append(candidate.tokens_per_s),
    )
    assert offered == sorted(offered)
    assert offered[-1] == best.tokens_per_s > 1000
    assert true_flow(index, best) == pytest.approx(best.tokens_per_s, rel=1e-6)
    size = best.end - best.first
    assert (size >= 0).all()
    assert (size <= index.max_layers).all()


def test_programmes_on_parts_improve(make_problem: Callable[..., Problem]) -> None:
    index = ProblemIndex(make_problem(8, nodes=10, layers=6))
    judge = Judge(index)
    start = from_petals(index, judge)
    bound = quick_bound(index).tokens_per_s
    best = improve_by_parts(
        index,
        judge,
        start,
        bound,
        Budget(2),
        partial_inference=True,
        seed=0,
        offer=lambda candidate: None,
    )
    assert best.tokens_per_s > start.tokens_per_s * 1.01
    assert true_flow(index, best) == pytest.approx(best.tokens_per_s, rel=1e-6)


@pytest.mark.parametrize("seed", [60, 62, 63])
def test_intervals_meet_the_optimum_of_a_uniform_network(
    make_problem: Callable[..., Problem],
    optimum: Callable[[Problem, bool], float],
    seed: int,
) -> None:
    problem = make_problem(seed, nodes=5, layers=5, max_layers=3, wide=True)
    best = optimum(problem, True)
    if best <= 0:
        return
    index = ProblemIndex(problem)
    judge = Judge(index)
    bound = quick_bound(index).tokens_per_s
    answer = close_gap(index, judge, best / 2, bound, Budget(20), 0)
    assert answer.best is not None
    assert answer.best.tokens_per_s == pytest.approx(best, rel=1e-4)
    assert best * (1 - 1e-9) <= answer.bound_tokens_per_s <= best * (1 + 1e-4)


def test_pools_follow_regions_and_pods_share_a_large_pool(reference: Reference) -> None:
    geo = ProblemIndex(reference("3cluster24_llama70b").problem)
    pools = pools_of(geo)
    assert [len(pool.nodes) for pool in pools] == [4, 10, 10]
    assert all(geo.wide_among(pool.nodes) for pool in pools)
    assert len(pools_of(ProblemIndex(reference("cluster42_llama70b").problem))) == 1
    pool = make_pool(geo, range(len(geo)))
    assert pods_of(geo, pool) == [pool]


def test_idle_nodes_are_put_to_use_without_losing_flow(reference: Reference) -> None:
    index = ProblemIndex(reference("single24_llama70b").problem)
    judge = Judge(index)
    homogeneous = reference("single24_llama70b").published["homogeneous"].placement
    first, end = index.arrays(homogeneous)
    before = Candidate(judge.tokens_per_s(first, end), first, end)
    assert (end <= first).any()
    after = fill_idle(index, judge, before)
    assert (after.end > after.first).all()
    assert after.tokens_per_s >= before.tokens_per_s
    assert np.array_equal(after.first[end > first], first[end > first])
