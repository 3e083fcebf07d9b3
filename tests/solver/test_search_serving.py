"""Planning for serving: never expected to serve less than the plan for flow."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from solver.objective import ServingModel, StepTimes
from solver.problem import Problem
from solver.search import solve
from solver.search_types import NoPlacement, SolveOptions

TIMES = StepTimes(
    prefill=((0.0, 0.0), (1000.0, 0.1)), decode=((1.0, 0.010), (2.0, 0.010), (100.0, 0.012))
)


@pytest.mark.parametrize("seed", range(2))
def test_planned_for_serving_a_plan_is_expected_to_serve_no_less(
    make_problem: Callable[..., Problem], seed: int
) -> None:
    problem = make_problem(seed, nodes=8, layers=6)
    model = ServingModel({n.type_name: TIMES for n in problem.nodes})
    try:
        by_flow = solve(problem, SolveOptions(time_limit_s=0.6, serving=model))
    except NoPlacement:
        return
    # Where there is a way, one is found, whatever it is ranked by.
    by_serving = solve(problem, SolveOptions(time_limit_s=0.6, serving=model, objective="serving"))
    assert by_flow.serving is not None
    assert by_serving.serving is not None
    assert by_flow.objective_tokens_per_s >= by_serving.objective_tokens_per_s * (1 - 1e-9)
    if by_flow.method in ("petals", "swarm", "blocks"):
        least = by_flow.serving.decode_tokens_per_s * (1 - 1e-9)
        assert by_serving.serving.decode_tokens_per_s >= least
