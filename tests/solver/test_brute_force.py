"""Methods against all placements there are: small random clusters, with and without overlaps."""

from __future__ import annotations

import itertools
import random

import pytest

from helix_mq.errors import HelixError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.flow import max_flow
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode
from solver.search import solve
from solver.search_types import METHODS, NoPlacement, SolveOptions
from solver.verify import verify


def random_problem(seed: int, nodes: int, layers: int) -> Problem:
    """Uneven speeds; some links missing, some without bandwidth, some thin."""
    rng = random.Random(seed)
    names = [NodeId(f"n{i}") for i in range(nodes)]
    machines = []
    for name in names:
        most = rng.randint(1, layers)
        speed = rng.choice((100.0, 300.0, 1000.0))
        table = tuple(speed / k * rng.uniform(0.8, 1.0) for k in range(1, most + 1))
        machines.append(ProblemNode(name, f"t{speed:.0f}", "", most, table, (), 1e6, 1e6, 1))
    links = []
    for a, b in itertools.permutations([SOURCE, *names, SINK], 2):
        if a == SINK or b == SOURCE or (a, b) == (SOURCE, SINK):
            continue
        kind = rng.random()
        if kind < 0.15:
            continue
        width = 0.0 if kind < 0.2 else rng.choice((2_000.0, 20_000.0, 1e6))
        links.append(ProblemLink(a, b, width, 0.001))
    return Problem(f"random-{seed}", layers, 2, 100, tuple(machines), tuple(links))


def best_by_trying_all(problem: Problem, partial: bool) -> float:
    choices = []
    for node in problem.nodes:
        ranges: list[LayerRange | None] = [None]
        ranges += [
            LayerRange(first, end)
            for first in range(problem.num_layers)
            for end in range(first + 1, min(first + node.max_layers, problem.num_layers) + 1)
        ]
        choices.append(ranges)
    best = 0.0
    for pick in itertools.product(*choices):
        held = [r for r in pick if r is not None]
        if not held or min(r.first for r in held) or max(r.end for r in held) < problem.num_layers:
            continue
        slices = {n.name: r for n, r in zip(problem.nodes, pick, strict=True) if r is not None}
        placement = Placement(problem.num_layers, slices)
        if placement.missing():
            continue
        best = max(best, max_flow(problem, placement, partial_inference=partial).tokens_per_s)
    return best


@pytest.mark.parametrize("partial", [True, False], ids=["partial", "whole slices"])
@pytest.mark.parametrize("seed", range(8))
def test_the_formulation_finds_the_optimum(seed: int, partial: bool) -> None:
    problem = random_problem(seed, nodes=3, layers=4)
    optimum = best_by_trying_all(problem, partial)
    options = SolveOptions(method="milp", time_limit_s=30, partial_inference=partial)
    if optimum == 0.0:
        with pytest.raises(NoPlacement):
            solve(problem, options)
        return
    result = solve(problem, options)
    assert result.objective_tokens_per_s == pytest.approx(optimum, rel=1e-4)
    assert result.upper_bound_tokens_per_s >= optimum * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(100, 102))
@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_with_a_plan_that_holds_or_in_words(method: str, seed: int) -> None:
    problem = random_problem(seed, nodes=5, layers=6)
    try:
        result = solve(problem, SolveOptions(method=method, time_limit_s=0.4))  # type: ignore[arg-type]
    except HelixError as e:
        assert len(str(e)) > 20
        return
    report = verify(problem, result.placement, claimed_tokens_per_s=result.objective_tokens_per_s)
    assert report.ok, report.faults
    assert result.upper_bound_tokens_per_s >= result.objective_tokens_per_s * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(200, 202))
def test_bounds_hold_against_the_true_optimum(seed: int) -> None:
    problem = random_problem(seed, nodes=4, layers=3)
    optimum = best_by_trying_all(problem, True)
    if optimum == 0.0:
        return
    result = solve(problem, SolveOptions(method="auto", time_limit_s=30))
    assert result.objective_tokens_per_s <= optimum * (1 + 1e-6)
    assert result.upper_bound_tokens_per_s >= optimum * (1 - 1e-6)
    assert result.objective_tokens_per_s == pytest.approx(optimum, rel=1e-4)
