"""Bounds hold for every placement there is, and prove what they are known to prove."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.bounds import best_bound, quick_bound
from solver.bounds_configurations import Supply, is_feasible
from solver.problem import Problem
from solver.reference_json import ReferenceCluster
from solver.search_index import ProblemIndex

MakeProblem = Callable[..., Problem]


def never() -> bool:
    return False


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), wide=st.booleans())
def test_no_placement_beats_the_bounds(
    make_problem: MakeProblem, optimum: Callable[[Problem, bool], float], seed: int, wide: bool
) -> None:
    problem = make_problem(seed, nodes=4, layers=4, max_layers=3, wide=wide)
    index = ProblemIndex(problem)
    if len(index) == 0:
        return
    best = optimum(problem, True)
    assert quick_bound(index).tokens_per_s >= best * (1 - 1e-9)
    for known in (best, best / 3):
        bound = best_bound(index, known, stop=never)
        assert bound.tokens_per_s >= best * (1 - 1e-9)
        assert bound.tokens_per_s <= quick_bound(index).tokens_per_s
        assert bound.reason


def test_equal_nodes_in_a_row_meet_the_flow_capped_bound(make_problem: MakeProblem) -> None:
    """Two nodes of 10 tokens/s with two layers each, four layers: 10, and no more."""
    supplies = (Supply((20.0, 10.0), 2),)
    assert is_feasible(supplies, 4, 10.0, stop=never)
    assert not is_feasible(supplies, 4, 10.0 * (1 + 1e-6), stop=never)


def test_whole_nodes_bound_what_fractions_do_not() -> None:
    """Layers need two of these nodes each for a flow of 11, though 2.2 nodes' work would do."""
    supplies = (Supply((10.0,), 4),)
    assert not is_feasible(supplies, 3, 11.0, stop=never)
    assert is_feasible(supplies, 2, 11.0, stop=never)
    assert is_feasible(supplies, 2, 20.0, stop=never)


def test_stopping_early_never_claims_a_proof() -> None:
    supplies = (Supply((10.0,), 4), Supply((7.0, 3.0), 3))
    assert is_feasible(supplies, 9, 1000.0, stop=lambda: True)


@pytest.mark.parametrize(
    ("name", "known", "gap"),
    [
        ("single24_llama70b", 2045.6410473362616, 2e-6),
        ("cluster10_llama30b", 286.5874097546421, 2e-6),
        ("single24_llama30b", 1517.7373827672375, 2e-6),
        ("cluster42_llama70b", 5977.73, 0.02),
    ],
)
def test_bounds_on_the_published_clusters(
    reference: Callable[[str], ReferenceCluster], name: str, known: float, gap: float
) -> None:
    index = ProblemIndex(reference(name).problem)
    bound = best_bound(index, known, stop=never)
    assert known <= bound.tokens_per_s <= known * (1 + gap)
