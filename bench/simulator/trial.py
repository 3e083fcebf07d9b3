"""A short simulation for the planner: how much a placement serves when it is kept full."""

from __future__ import annotations

import math

from bench.simulator.native import Workload, simulate
from bench.simulator.records import Recorder
from bench.simulator.settings import SimSettings
from bench.simulator.stats import report
from bench.traces.workload import open_workload
from helix_mq.layers import Placement
from solver.judging import Trial
from solver.objective import ServingModel
from solver.problem import Problem

WARMUP_S = 180.0
"""Until a cluster is full: the prompts of all that fit must be computed first."""
DURATION_S = 60.0
SPREAD = 0.8
"""Of the logarithm of lengths, about that of published conversations."""


def run_trial(problem: Problem, placement: Placement, model: ServingModel) -> Trial:
    """Lengths are drawn log-normally around the workload's means, the same for every placement."""
    work = model.workload
    source = open_workload(
        f"synthetic:prompt={_lognormal(work.input_tokens)},output={_lognormal(work.output_tokens)}",
        0,
    )
    settings = SimSettings(warmup_s=WARMUP_S, duration_s=DURATION_S)
    recorder = Recorder(WARMUP_S, DURATION_S)
    simulate(problem, placement, model.step_times, Workload(source.lengths()), settings, recorder)
    found = report(recorder)
    return Trial(
        decode_tokens_per_s=found.decode_tokens_per_s,
        itl_p50_s=found.itl.p50,
        ttft_p50_s=found.ttft.p50,
        requests_in_flight=found.running.mean,
    )


def _lognormal(mean: float) -> str:
    return f"lognormal({math.log(mean) - SPREAD**2 / 2:.6f},{SPREAD})"
