"""Ranking by simulation: the one that serves most is taken, whatever the estimate says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.simulator.trial import run_trial
from helix_mq.layers import Placement
from solver.judging import TRIALS, Trial, find_simulator
from solver.objective import ServingModel, StepTimes, Workload
from solver.problem import Problem
from solver.search import solve
from solver.search_types import NoPlacement, SolveOptions

TIMES = StepTimes(
    prefill=((1.0, 1e-4), (1000.0, 0.1)), decode=((1.0, 0.010), (2.0, 0.010), (100.0, 0.012))
)
WORKLOAD = Workload(100.0, 50.0)


class Contrary:
    """Says that placements with fewer nodes serve more; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Placement] = []

    def __call__(
        self,
        problem: Problem,
        placement: Placement,
        model: ServingModel,
        stop: Callable[[], bool],
    ) -> Trial:
        self.asked.append(placement)
        return Trial(1000.0 / len(placement.slices), 0.1, 1.0, 10.0)


def test_the_verdict_of_the_simulation_counts(make_problem: Callable[..., Problem]) -> None:
    decided = 0
    for seed in range(6):
        problem = make_problem(seed, nodes=8, layers=4, wide=True)
        model = ServingModel({n.type_name: TIMES for n in problem.nodes}, WORKLOAD)
        judge = Contrary()
        options = SolveOptions(time_limit_s=5, objective="serving", serving=model, simulate=judge)
        try:
            result = solve(problem, options)
        except NoPlacement:
            continue
        assert 1 <= len(judge.asked) <= TRIALS
        fewest = min(len(p.slices) for p in judge.asked)
        assert len(result.placement.slices) == fewest
        assert result.trial is not None
        assert result.trial.decode_tokens_per_s == pytest.approx(1000.0 / fewest)
        decided += len({len(p.slices) for p in judge.asked}) > 1
    assert decided, "some choice was to be made"


def test_the_native_simulator_is_found_and_tries_out(
    make_problem: Callable[..., Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_simulator() is run_trial
    monkeypatch.setattr("bench.simulator.trial.MOST_ROWS", 5e4)
    problem = make_problem(1, nodes=4, layers=3, wide=True)
    placement = solve(problem, SolveOptions(method="blocks", time_limit_s=2)).placement
    times = StepTimes(prefill=((1.0, 1e-3), (100.0, 0.1)), decode=((1.0, 0.1), (100.0, 0.5)))
    model = ServingModel({n.type_name: times for n in problem.nodes}, WORKLOAD)
    trial = run_trial(problem, placement, model)
    assert trial is not None
    assert trial.decode_tokens_per_s > 0
    assert trial.itl_p50_s > 0
    assert trial == run_trial(problem, placement, model), "the same every time"


class Countdown:
    """Stops at the nth time that it is asked."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize("calls", [1, 2, 30])
def test_a_trial_that_is_stopped_does_not_count(
    make_problem: Callable[..., Problem], calls: int
) -> None:
    problem = make_problem(1, nodes=4, layers=3, wide=True)
    placement = solve(problem, SolveOptions(method="blocks", time_limit_s=2)).placement
    model = ServingModel({n.type_name: TIMES for n in problem.nodes}, WORKLOAD)
    assert run_trial(problem, placement, model, Countdown(calls)) is None


def test_requests_that_never_fit_do_not_keep_a_trial_from_its_end(
    make_problem: Callable[..., Problem],
) -> None:
    problem = make_problem(1, nodes=4, layers=3, wide=True)
    nodes = tuple(replace(n, kv_tokens_by_layers=(48.0,) * n.max_layers) for n in problem.nodes)
    problem = replace(problem, nodes=nodes)
    placement = solve(problem, SolveOptions(method="blocks", time_limit_s=2)).placement
    work = Workload(1e5, 50.0)
    model = ServingModel({n.type_name: TIMES for n in problem.nodes}, work)
    assert run_trial(problem, placement, model, Countdown(1000)) is None


def test_without_a_trial_in_time_the_estimate_chooses(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(1, nodes=6, layers=4, wide=True)
    model = ServingModel({n.type_name: TIMES for n in problem.nodes}, WORKLOAD)
    options = SolveOptions(
        time_limit_s=2, objective="serving", serving=model, simulate=lambda *_: None
    )
    result = solve(problem, options)
    assert result.trial is None
    assert any("the estimate chose" in note for note in result.notes)
