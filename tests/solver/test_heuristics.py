"""The published placements come out slice by slice, and what cannot be placed is told in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from solver.flow import max_flow
from solver.heuristics import petals, swarm, swarm_widths
from solver.heuristics_pipelines import homogeneous, separate
from solver.problem import Problem
from solver.reference_json import ReferenceCluster
from solver.search import solve
from solver.search_types import Method, NoPlacement, SolveOptions

Reference = Callable[[str], ReferenceCluster]
WITH_BOTH = ("single24_llama70b", "3cluster24_llama70b", "cluster42_llama70b", "single24_llama30b")


@pytest.mark.parametrize("name", WITH_BOTH)
def test_petals_and_swarm_place_as_published(reference: Reference, name: str) -> None:
    cluster = reference(name)
    problem = cluster.problem
    assert petals(problem, 0).slices == cluster.published["petals"].placement.slices
    width = swarm_widths(problem)[0]
    assert swarm(problem, width).slices == cluster.published["swarm"].placement.slices


@pytest.mark.parametrize("name", WITH_BOTH)
@pytest.mark.parametrize("method", ["petals", "swarm"])
def test_methods_reach_the_published_flow_or_more(
    reference: Reference, name: str, method: Method
) -> None:
    cluster = reference(name)
    result = solve(cluster.problem, SolveOptions(method=method, time_limit_s=5))
    published = cluster.published[method].max_flow_tokens_per_s
    assert published is not None
    assert result.objective_tokens_per_s >= published * (1 - 1e-9)


def test_homogeneous_pipelines_reach_the_published_flow(reference: Reference) -> None:
    cluster = reference("single24_llama70b")
    flow = max_flow(cluster.problem, homogeneous(cluster.problem)).tokens_per_s
    assert flow == pytest.approx(531.7025845523623)


@pytest.mark.parametrize(
    ("name", "tokens_per_s"),
    [
        ("single24_a100_llama30b", 1044.5333450564908),
        ("single24_l4_llama30b", 214.98140196132908),
        ("single24_t4_llama30b", 397.68506408357825),
    ],
)
def test_a_type_alone_reaches_the_published_flow(
    reference: Reference, name: str, tokens_per_s: float
) -> None:
    problem = reference(name).problem
    assert max_flow(problem, separate(problem)).tokens_per_s == pytest.approx(tokens_per_s)


def test_leftovers_form_a_mixed_pipeline(reference: Reference) -> None:
    problem = reference("single24_llama70b").problem
    with pytest.raises(NoPlacement, match=r"no GPU type holds.*8 L4 hold 56 \(up to 7 each\)"):
        separate(problem)
    assert not separate(problem, leftovers=True).missing()


def too_small(problem: Problem) -> Problem:
    return replace(problem, num_layers=sum(n.max_layers for n in problem.nodes) + 1)


@pytest.mark.parametrize(
    "method", ["petals", "swarm", "homogeneous", "separate", "separate-leftovers", "auto", "milp"]
)
def test_a_model_that_does_not_fit_is_refused_with_the_room_there_is(
    make_problem: Callable[..., Problem], method: Method
) -> None:
    problem = too_small(make_problem(3, nodes=4, layers=6, wide=True))
    with pytest.raises(NoPlacement) as error:
        solve(problem, SolveOptions(method=method, time_limit_s=5))
    room = sum(n.max_layers for n in problem.nodes)
    assert f"{problem.num_layers} layers" in error.value.message
    assert str(room) in error.value.message


def test_petals_depends_on_the_seed_alone(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(5, nodes=12, layers=8, wide=True)
    assert petals(problem, 1).slices == petals(problem, 1).slices
    assert any(petals(problem, 1).slices != petals(problem, seed).slices for seed in range(2, 6))
