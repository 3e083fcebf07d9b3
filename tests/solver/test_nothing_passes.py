"""Nodes that compute nothing and NICs that pass nothing: judged alike by all, planned around."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.explain import explain
from solver.flow import CutKind, max_flow
from solver.heuristics import petals
from solver.problem import Problem, ProblemNode
from solver.search import solve
from solver.search_index import ProblemIndex
from solver.search_judge import Judge
from solver.search_types import METHODS, Method, NoPlacement, SolveOptions
from solver.verify import verify

MakeProblem = Callable[..., Problem]


def dulled(problem: Problem, seed: int) -> Problem:
    """Some nodes lose their engine, or one of their NICs, whole or all but a trickle."""
    rng = random.Random(seed)

    def dull(node: ProblemNode) -> ProblemNode:
        left = rng.choice((0.0, 1e-12))
        match rng.randrange(6):
            case 0:
                speeds = tuple(left * rate for rate in node.tokens_per_s_by_layers)
                return replace(node, tokens_per_s_by_layers=speeds)
            case 1:
                return replace(node, nic_in_bytes_per_s=left)
            case 2:
                return replace(node, nic_out_bytes_per_s=left)
            case _:
                return node

    return replace(problem, nodes=tuple(dull(node) for node in problem.nodes))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), wide=st.booleans(), partial=st.booleans())
def test_the_flow_is_the_verifiers_and_its_cut_sums_to_it(
    make_problem: MakeProblem, seed: int, wide: bool, partial: bool
) -> None:
    problem = dulled(make_problem(seed, nodes=6, layers=4, wide=wide), seed)
    placement = petals(problem, seed)
    flow = max_flow(problem, placement, partial_inference=partial)
    report = verify(
        problem,
        placement,
        claimed_tokens_per_s=flow.tokens_per_s,
        flow=flow,
        partial_inference=partial,
    )
    assert report.ok, report.faults
    told = explain(problem, placement, flow, partial_inference=partial)
    assert "cap" in told.text()
    unused = {n.name for n in problem.nodes if not flow.node_flow.get(n.name, 0.0) > 0}
    assert unused <= {idle.name for idle in told.idle}
    index = ProblemIndex(problem)
    judged = Judge(index, partial_inference=partial).tokens_per_s(*index.arrays(placement))
    assert judged == pytest.approx(flow.tokens_per_s, rel=1e-5, abs=1e-5)


def test_a_dead_nic_is_named_as_the_bottleneck(make_problem: MakeProblem) -> None:
    problem = make_problem(5, nodes=2, layers=2, wide=True)
    first, second = (replace(n, max_layers=1) for n in problem.nodes)
    problem = replace(problem, nodes=(replace(first, nic_out_bytes_per_s=0.0), second))
    flow = max_flow(problem, petals(problem, 0))
    assert flow.tokens_per_s == 0.0
    assert any(edge.kind in (CutKind.NIC_OUT, CutKind.LINK) for edge in flow.min_cut)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [71, 72])
def test_every_method_plans_around_them_or_refuses(
    make_problem: MakeProblem, method: Method, seed: int
) -> None:
    problem = dulled(make_problem(seed, nodes=7, layers=4), seed)
    try:
        result = solve(problem, SolveOptions(method=method, time_limit_s=0.3))
    except NoPlacement as error:
        assert "4 layers" in error.message
        return
    assert verify(problem, result.placement, flow=result.flow).ok
    assert result.upper_bound_tokens_per_s >= result.objective_tokens_per_s > 0


def test_what_the_nodes_hold_is_said_once(make_problem: MakeProblem) -> None:
    problem = make_problem(3, nodes=3, layers=12, max_layers=3)
    with pytest.raises(NoPlacement) as caught:
        solve(problem, SolveOptions(time_limit_s=1.0))
    message = caught.value.message
    assert message.count("the model has 12 layers") == 1
    for method in ("petals", "swarm", "homogeneous", "separate", "separate-leftovers"):
        assert message.count(f"{method}: ") == 1
