"""A short simulation for the planner: how much a placement serves when it is kept full."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile

from bench.simulator.native import Simulation, Workload
from bench.simulator.records import Recorder
from bench.simulator.settings import SimSettings
from bench.simulator.stats import report
from bench.traces.workload import open_workload
from helix_mq.layers import Placement
from solver.flow import max_flow
from solver.judging import Trial
from solver.objective import ServingModel
from solver.problem import Problem

LONGEST_S = 240.0
"""Virtual seconds, three quarters of them to fill the cluster: the prompts of all requests that fit
must be computed first."""
MOST_ROWS = 4e6
"""Fast clusters are tried for a shorter while: a row is one token's way through one node."""
SPREAD = 0.8
"""Of the logarithm of lengths, about that of published conversations."""


def _never() -> bool:
    return False


def run_trial(
    problem: Problem,
    placement: Placement,
    model: ServingModel,
    stop: Callable[[], bool] = _never,
) -> Trial | None:
    """Lengths are drawn log-normally around the workload's means, the same for every placement.

    None if `stop` ended it: what a shorter run serves cannot be compared.
    """
    work = model.workload
    source = open_workload(
        f"synthetic:prompt={_lognormal(work.input_tokens)},output={_lognormal(work.output_tokens)}",
        0,
    )
    length_s = _length_s(problem, placement, model)
    warmup_s, duration_s = 0.75 * length_s, 0.25 * length_s
    core = replace(SimSettings().core, token_return=model.token_return)
    settings = SimSettings(warmup_s=warmup_s, duration_s=duration_s, core=core)
    recorder = Recorder(warmup_s, duration_s)
    # Requests that no node has room for are refused as they come, without end and without time
    # passing, so the source is asked too.
    lengths = takewhile(lambda _: not stop(), source.lengths())
    run = Simulation(problem, placement, model.step_times, settings, recorder)
    run.run(Workload(lengths), stop=stop)
    if stop():
        return None
    found = report(recorder)
    return Trial(
        decode_tokens_per_s=found.decode_tokens_per_s,
        itl_p50_s=found.itl.p50,
        ttft_p50_s=found.ttft.p50,
        requests_in_flight=found.running.mean,
    )


def _length_s(problem: Problem, placement: Placement, model: ServingModel) -> float:
    """As long as MOST_ROWS allow at the max flow, which no cluster passes for long."""
    flow = max_flow(problem, placement)
    if flow.tokens_per_s <= 0:
        return LONGEST_S
    work = model.workload
    share = work.output_tokens / (work.input_tokens + work.output_tokens)
    rows_per_s = share * math.fsum(flow.node_flow[name] for name in sorted(flow.node_flow))
    return min(LONGEST_S, MOST_ROWS / rows_per_s)


def _lognormal(mean: float) -> str:
    """Of that mean; one so low that half of the draws would be rounded up to 1 gets that median."""
    return f"lognormal({max(0.0, math.log(mean) - SPREAD**2 / 2):.6f},{SPREAD})"
