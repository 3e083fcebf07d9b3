"""The whole search: figures it must reach, time, interruption, warm starts, words for "no"."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.problem import SINK, SOURCE, Problem
from solver.reference_json import ReferenceCluster
from solver.search import solve
from solver.search_types import METHODS, Method, NoPlacement, Progress, SolveOptions
from solver.verify import verify

MakeProblem = Callable[..., Problem]
Reference = Callable[[str], ReferenceCluster]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("seed", "partial"), [(31, True), (32, False), (33, True)])
def test_every_answer_holds_or_is_refused_in_words(
    make_problem: MakeProblem, method: Method, seed: int, partial: bool
) -> None:
    problem = make_problem(seed, nodes=7, layers=6)
    options = SolveOptions(method=method, time_limit_s=0.3, partial_inference=partial, seed=seed)
    try:
        result = solve(problem, options)
    except NoPlacement as error:
        assert "layers" in error.message
        return
    report = verify(
        problem,
        result.placement,
        claimed_tokens_per_s=result.objective_tokens_per_s,
        flow=result.flow,
        partial_inference=partial,
    )
    assert report.ok, report.faults
    assert result.objective_tokens_per_s > 0
    assert result.upper_bound_tokens_per_s >= result.objective_tokens_per_s


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["no link out", "no bandwidth at all", "no nodes"])
def test_a_cluster_without_a_way_through_is_refused(
    make_problem: MakeProblem, method: Method, how: str
) -> None:
    problem = make_problem(41, nodes=4, layers=3, wide=True)
    if how == "no link out":
        problem = replace(problem, links=tuple(k for k in problem.links if k.dst != SINK))
    elif how == "no bandwidth at all":
        problem = replace(problem, links=tuple(replace(k, bytes_per_s=0.0) for k in problem.links))
    else:
        problem = replace(problem, nodes=(), links=())
    with pytest.raises(NoPlacement) as error:
        solve(problem, SolveOptions(method=method, time_limit_s=2))
    assert "3 layers" in error.value.message


def test_nodes_of_two_islands_are_not_mixed(make_problem: MakeProblem) -> None:
    """Two halves without a link between them: each is a pipeline of its own, or idle."""
    problem = make_problem(43, nodes=8, layers=4, wide=True)
    half = {node.name: i % 2 for i, node in enumerate(problem.nodes)}
    apart = replace(
        problem,
        links=tuple(
            k
            for k in problem.links
            if k.src == SOURCE or k.dst == SINK or half[k.src] == half[k.dst]
        ),
    )
    result = solve(apart, SolveOptions(time_limit_s=0.5))
    assert verify(apart, result.placement, flow=result.flow).ok
    for edge in result.flow.edges:
        if edge.tokens_per_s > 0 and edge.src in half and edge.dst in half:
            assert half[edge.src] == half[edge.dst]


def test_small_clusters_are_solved_to_proven_optimality(
    make_problem: MakeProblem, optimum: Callable[[Problem, bool], float]
) -> None:
    for seed in (55, 56):
        problem = make_problem(seed, nodes=4, layers=5, max_layers=3)
        best = optimum(problem, True)
        if best <= 0:
            with pytest.raises(NoPlacement):
                solve(problem, SolveOptions(time_limit_s=5))
            continue
        result = solve(problem, SolveOptions(time_limit_s=60))
        assert result.objective_tokens_per_s == pytest.approx(best, rel=1e-4)
        assert result.proven_optimal


def test_progress_never_falls_and_ends_at_the_answer(reference: Reference) -> None:
    points: list[Progress] = []
    options = SolveOptions(method="auto", time_limit_s=1.5)
    result = solve(reference("3cluster24_llama70b").problem, options, points.append)
    flows = [p.incumbent_tokens_per_s for p in points]
    assert flows == sorted(flows)
    assert flows[-1] == pytest.approx(result.objective_tokens_per_s, rel=1e-6)
    assert [p.seconds for p in points] == sorted(p.seconds for p in points)
    assert result.trace == tuple(points)
    assert points[-1].gap is not None


def test_a_stop_ends_the_search_with_the_best_so_far(reference: Reference) -> None:
    stop = threading.Event()
    result = solve(
        reference("cluster42_llama70b").problem,
        SolveOptions(time_limit_s=300),
        lambda point: stop.set(),
        stop,
    )
    assert result.objective_tokens_per_s > 3000


def test_a_warm_start_is_never_worse(reference: Reference) -> None:
    cluster = reference("cluster42_llama70b")
    start = cluster.published["helix_noprune42"].placement
    options = SolveOptions(method="petals", time_limit_s=0.5, warm_start=start)
    result = solve(cluster.problem, options)
    assert result.method == "warm start"
    assert result.objective_tokens_per_s == pytest.approx(4892.24, abs=0.01)


def test_a_warm_start_for_other_nodes_is_noted_and_not_used(reference: Reference) -> None:
    strange = Placement(80, {NodeId("elsewhere"): LayerRange(0, 80)})
    options = SolveOptions(method="swarm", time_limit_s=3, warm_start=strange)
    result = solve(reference("single24_llama70b").problem, options)
    assert result.method == "swarm"
    assert any("elsewhere" in note for note in result.notes)


def test_the_same_seed_gives_the_same_plan(reference: Reference) -> None:
    problem = reference("single24_llama30b").problem
    for method in ("blocks", "petals"):
        options = SolveOptions(method=method, time_limit_s=60, seed=3)
        assert solve(problem, options).placement == solve(problem, options).placement


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"method": "magic"}, "method"),
        ({"objective": "fame"}, "objective"),
        ({"objective": "serving"}, "objective"),
        ({"time_limit_s": 0.0}, "time_limit_s"),
        ({"time_limit_s": float("nan")}, "time_limit_s"),
    ],
)
def test_bad_options_are_refused(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as error:
        SolveOptions(**changes)  # type: ignore[arg-type]
    assert error.value.param == field
