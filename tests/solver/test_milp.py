"""Helix's programme: the optimum of brute force, its options, its files, and how it is stopped."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helix_mq.errors import ConfigError
from solver.bounds import Bound
from solver.flow import max_flow
from solver.heuristics import petals
from solver.milp import solve_milp
from solver.milp_prune import kept_links
from solver.problem import Problem
from solver.reference_json import ReferenceCluster
from solver.search import solve
from solver.search_index import ProblemIndex
from solver.search_types import (
    Budget,
    MilpOptions,
    NoPlacement,
    Progress,
    SolveOptions,
    SolverMissing,
)

MakeProblem = Callable[..., Problem]
NO_BOUND = Bound(1e6, "none")
SIZES = ((5, 4, 2), (5, 8, 2), (4, 6, 3), (3, 8, 6), (2, 5, 5))
"""(nodes, layers, most layers on a node)"""


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from(SIZES),
    partial=st.booleans(),
    wide=st.booleans(),
    redundant=st.booleans(),
    symmetry=st.booleans(),
)
def test_the_optimum_is_that_of_brute_force(
    make_problem: MakeProblem,
    optimum: Callable[[Problem, bool], float],
    seed: int,
    size: tuple[int, int, int],
    partial: bool,
    wide: bool,
    redundant: bool,
    symmetry: bool,
) -> None:
    nodes, layers, most = size
    problem = make_problem(seed, nodes=nodes, layers=layers, max_layers=most, wide=wide)
    best = optimum(problem, partial)
    index = ProblemIndex(problem)
    if len(index) == 0:
        return
    options = MilpOptions(remove_redundant=not redundant, break_symmetry=symmetry)
    answer = solve_milp(index, options, NO_BOUND, Budget(60), partial_inference=partial)
    assert answer.optimal
    assert answer.placement is not None
    flow = max_flow(problem, answer.placement, partial_inference=partial).tokens_per_s
    assert flow == pytest.approx(best, rel=1e-4, abs=1e-4)
    assert answer.bound.tokens_per_s >= best * (1 - 1e-6)


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("redundant", [True, False])
@pytest.mark.parametrize("wide", [True, False])
def test_any_placement_is_a_feasible_start(
    make_problem: MakeProblem, partial: bool, redundant: bool, wide: bool
) -> None:
    """Stopped before it can search, the solver still has the start: it took it as it is."""
    problem = make_problem(11, nodes=8, layers=6, wide=wide)
    start = petals(problem, 3)
    before = max_flow(problem, start, partial_inference=partial).tokens_per_s
    stopped = threading.Event()
    seen: list[float] = []

    def improved(tokens_per_s: float, bound: float) -> None:
        seen.append(tokens_per_s)
        stopped.set()

    answer = solve_milp(
        ProblemIndex(problem),
        MilpOptions(remove_redundant=not redundant),
        NO_BOUND,
        Budget(60, stop=stopped),
        partial_inference=partial,
        start=start,
        on_improved=improved,
    )
    assert answer.placement is not None
    after = max_flow(problem, answer.placement, partial_inference=partial).tokens_per_s
    assert after >= before * (1 - 1e-6)
    assert seen[0] == pytest.approx(before, rel=1e-6, abs=1e-6)


def test_a_stopped_run_keeps_its_best_and_its_files(
    reference: Callable[[str], ReferenceCluster], tmp_path: Path
) -> None:
    problem = reference("single24_llama70b").problem
    stop = threading.Event()
    points: list[Progress] = []

    def report(point: Progress) -> None:
        points.append(point)
        if point.phase == "milp":
            stop.set()

    options = SolveOptions(
        method="milp",
        time_limit_s=60,
        warm_start=petals(problem),
        milp=MilpOptions(output_dir=tmp_path / "milp"),
    )
    result = solve(problem, options, report, stop)
    assert result.objective_tokens_per_s >= 952.1
    assert not result.proven_optimal
    assert result.upper_bound_tokens_per_s >= 2045.6
    assert (tmp_path / "milp" / "helix.lp").stat().st_size > 10_000
    kept = json.loads((tmp_path / "milp" / "solution.json").read_text("utf-8"))
    assert kept["objective_tokens_per_s"] >= 952
    assert any(name.startswith("holds_") for name in kept["variables"])
    trace = (tmp_path / "milp" / "trace.csv").read_text("utf-8").splitlines()
    assert trace[0] == "seconds,incumbent_tokens_per_s,bound_tokens_per_s"
    assert len(trace) >= 2


def test_published_subclusters_are_solved_to_their_published_optimum(
    reference: Callable[[str], ReferenceCluster],
) -> None:
    """Whole slices, as published; the A100s' programme and the table's own best agree."""
    cluster = reference("single24_a100_llama30b")
    result = solve(
        cluster.problem, SolveOptions(method="milp", time_limit_s=30, partial_inference=False)
    )
    assert result.objective_tokens_per_s == pytest.approx(1044.5333450564908, rel=1e-6)
    assert result.proven_optimal


def test_pruning_keeps_the_fastest_links_of_each_node(make_problem: MakeProblem) -> None:
    index = ProblemIndex(make_problem(2, nodes=9, layers=4))
    every = kept_links(index, MilpOptions())
    some = kept_links(index, MilpOptions(keep_links=3, keep_links_at_least=1))
    assert not (some & ~every).any()
    for i in range(len(index)):
        kept, all_links = index.link[i][some[i]], index.link[i][every[i]]
        if len(all_links) >= 3:
            assert len(kept) >= 3
            assert sorted(kept)[-3:] == sorted(all_links)[-3:]
    floor = 50_000.0 * index.problem.activation_bytes
    fast = MilpOptions(keep_links=9, keep_links_at_least=1, min_link_bytes_per_s=floor)
    slow = kept_links(index, fast) & (index.link < 50_000.0)
    assert slow.sum() < (every & (index.link < 50_000.0)).sum()


def test_a_pruned_programme_claims_no_optimum(make_problem: MakeProblem) -> None:
    problem = make_problem(21, nodes=5, layers=4, wide=True)
    options = MilpOptions(keep_links=2, keep_links_at_least=1)
    answer = solve_milp(ProblemIndex(problem), options, NO_BOUND, Budget(30))
    assert answer.placement is not None
    assert not answer.optimal
    assert answer.bound == NO_BOUND


@pytest.mark.parametrize(("solver", "words"), [("highs", "highspy"), ("scip", "pyscipopt")])
def test_a_missing_solver_is_told_with_the_remedy(
    make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch, solver: str, words: str
) -> None:
    monkeypatch.setattr("cvxpy.installed_solvers", lambda: ["CLARABEL"])
    problem = make_problem(21, nodes=3, layers=3, wide=True)
    options = SolveOptions(method="milp", milp=MilpOptions(solver=solver))  # type: ignore[arg-type]
    with pytest.raises(SolverMissing, match=words) as error:
        solve(problem, options)
    assert error.value.param == "solver"


def test_too_many_links_are_refused_with_the_remedy() -> None:
    index = object.__new__(ProblemIndex)
    index.link = np.ones((300, 300))
    with pytest.raises(NoPlacement, match="keep_links"):
        solve_milp(index, MilpOptions(), NO_BOUND, Budget(1))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"solver": "gurobi"}, "solver"),
        ({"rel_gap": -1.0}, "rel_gap"),
        ({"keep_links": 2, "keep_links_at_least": 3}, "keep_links"),
        ({"keep_links": 2}, "keep_links"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as error:
        MilpOptions(**options)  # type: ignore[arg-type]
    assert error.value.param == field


def test_an_output_directory_that_cannot_be_is_told(
    make_problem: MakeProblem, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    options = MilpOptions(output_dir=tmp_path / "file" / "milp")
    problem = make_problem(21, nodes=3, layers=3, wide=True)
    with pytest.raises(ConfigError, match="output_dir"):
        solve_milp(ProblemIndex(problem), options, NO_BOUND, Budget(5))
