"""The native simulation as a whole: nothing lost, nothing twice, the same every time."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.simulator.native import SimResult, Simulation, Workload, simulate
from bench.simulator.records import Recorder
from bench.simulator.settings import Mode, NodeSettings, SimSettings
from bench.simulator.speed import scale_case
from bench.traces.types import Arrival, Lengths
from helix_mq.errors import ConfigError
from nodes.batching import BatchLimits
from router.schedulers_base import METHODS

DIAMOND = {"a": (0, 3), "b": (3, 6), "c": (0, 4), "d": (2, 6)}
"""Two ways in, two ways out, and nodes that run only part of what they hold."""

OFFLINE = SimSettings(warmup_s=0.0, duration_s=1.0, drain=True)


def some_lengths(count: int, seed: int = 0) -> list[Lengths]:
    draw = random.Random(seed)
    return [Lengths(draw.randint(1, 400), draw.randint(1, 40)) for _ in range(count)]


def recorder() -> Recorder:
    return Recorder(warmup_s=0.0, duration_s=1e6)


def check_all_served(run: Simulation, result: SimResult, requests: list[Lengths], log: Any) -> None:
    run.check()
    assert result.submitted == result.finished == len(requests)
    assert result.pages_held == 0
    assert result.tokens == sum(r.output_tokens for r in requests)
    for number, lengths in enumerate(requests, start=1):
        assert sum(1 for r, _ in log.token_log if r == str(number)) == lengths.output_tokens
        assert log.end_log[str(number)][1:] == (True, "length")


@pytest.mark.parametrize("mode", list(Mode))
def test_every_request_ends_once_with_its_tokens(
    make_cluster: Callable[..., Any], log: Any, mode: Mode
) -> None:
    requests = some_lengths(60)
    run = Simulation(*make_cluster(DIAMOND), replace(OFFLINE, mode=mode, duration_s=60.0), log)
    arrivals = [Arrival(i * 0.05, r) for i, r in enumerate(requests)]
    result = run.run(Workload(requests if mode is Mode.OFFLINE else arrivals))
    check_all_served(run, result, requests, log)


@pytest.mark.parametrize("scheduler", METHODS)
def test_every_scheduler_serves_everything(
    make_cluster: Callable[..., Any], log: Any, scheduler: str
) -> None:
    requests = some_lengths(40)
    run = Simulation(*make_cluster(DIAMOND), replace(OFFLINE, scheduler=scheduler), log)
    check_all_served(run, run.run(Workload(requests)), requests, log)


def test_many_nodes_serve_everything() -> None:
    found = scale_case(nodes=32, requests=150, rate=50.0)
    assert found["submitted"] == found["finished"] == 150
    assert found["pages_held"] == 0
    assert found["rows"] >= 8 * found["tokens"]


def test_scarce_pages_delay_requests_and_lose_none(
    make_cluster: Callable[..., Any], log: Any
) -> None:
    """Room for two requests a node at best: some outgrow their bookings and are moved."""
    requests = some_lengths(40, seed=3)
    core = replace(OFFLINE.core, expected_output_tokens=4)
    run = Simulation(*make_cluster(DIAMOND, kv_tokens=3.0 * 900), replace(OFFLINE, core=core), log)
    check_all_served(run, run.run(Workload(requests)), requests, log)


def test_what_can_never_fit_is_refused(make_cluster: Callable[..., Any], log: Any) -> None:
    run = Simulation(*make_cluster(DIAMOND, kv_tokens=4.0 * 160), OFFLINE, log)
    result = run.run(Workload([Lengths(500, 5), Lengths(20, 5)]))
    assert (result.submitted, result.finished, result.failed) == (2, 1, 1)
    assert log.end_log["1"][1:] == (False, "context_length_exceeded")


def test_time_passes_where_nothing_ever_fits(make_cluster: Callable[..., Any], log: Any) -> None:
    settings = replace(OFFLINE, duration_s=20.0, drain=False)
    run = Simulation(*make_cluster(DIAMOND, kv_tokens=4.0 * 160), settings, log)
    result = run.run(Workload(repeat(Lengths(500, 5), 100_000)))
    assert 0 < result.failed == result.submitted < 1000
    assert result.simulated_s == 20.0


@given(data=st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_clusters_serve_everything(
    make_cluster: Callable[..., Any], data: st.DataObject
) -> None:
    layers = data.draw(st.integers(1, 6))
    cuts = sorted(data.draw(st.sets(st.integers(1, layers), max_size=3)) | {layers})
    slices = {
        f"s{i}": (first, end) for i, (first, end) in enumerate(zip([0, *cuts], cuts, strict=False))
    }
    for i in range(data.draw(st.integers(0, 3))):
        first = data.draw(st.integers(0, layers - 1))
        slices[f"x{i}"] = (first, data.draw(st.integers(first + 1, layers)))
    limits = BatchLimits(
        prefill_tokens=data.draw(st.integers(1, 300)),
        max_rows=data.draw(st.integers(1, 64)),
    )
    requests = some_lengths(data.draw(st.integers(1, 25)), data.draw(st.integers(0, 99)))
    chosen = replace(OFFLINE, node=NodeSettings(limits=limits, derive_budget=False, page_tokens=8))
    cluster = make_cluster(slices, kv_tokens=float(data.draw(st.sampled_from([4000, 100_000]))))
    run = Simulation(*cluster, chosen, recorder())
    result = run.run(Workload(requests))
    run.check()
    assert result.submitted == result.finished == len(requests)
    assert result.tokens == sum(r.output_tokens for r in requests)
    assert result.pages_held == 0


def test_the_same_run_has_the_same_hash_and_another_has_not(
    make_cluster: Callable[..., Any],
) -> None:
    def hash_of(requests: list[Lengths]) -> str:
        result = simulate(*make_cluster(DIAMOND), Workload(requests), OFFLINE, recorder())
        return result.event_hash

    assert hash_of(some_lengths(20)) == hash_of(some_lengths(20))
    assert hash_of(some_lengths(20)) != hash_of(some_lengths(20, seed=1))


SCRIPT = """
from bench.simulator.native import Workload, simulate
from bench.simulator.records import Recorder
from bench.simulator.settings import SimSettings
from bench.traces.types import Lengths
from helix_mq.layers import LayerRange, Placement
from solver.objective import StepTimes
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode

names = [f"node-{i}" for i in range(9)]
nodes = tuple(
    ProblemNode(n, "t", "r", 6, (900.0,) * 6, (50_000.0,) * 6, 1e9, 1e9, 1) for n in names
)
ends = [(SOURCE, n) for n in names] + [(n, SINK) for n in names]
ends += [(a, b) for a in names for b in names if a != b]
problem = Problem("p", 6, 2, 1000, nodes, tuple(ProblemLink(a, b, 1e7, 1e-3) for a, b in ends))
placement = Placement(6, {n: LayerRange(i % 3 * 2, i % 3 * 2 + 2) for i, n in enumerate(names)})
times = {"t": StepTimes(((0.0, 0.0), (100.0, 0.1)), ((0.0, 0.0), (1.0, 0.01), (99.0, 0.05)))}
work = Workload([Lengths(50 + 7 * i % 90, 5 + i % 11) for i in range(60)])
settings = SimSettings(warmup_s=0.0, duration_s=1.0, drain=True)
print(simulate(problem, placement, times, work, settings, Recorder(0.0, 1e6)).event_hash)
"""


def test_the_hash_does_not_depend_on_the_process() -> None:
    said = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        said.add(done.stdout)
    assert len(said) == 1


def test_littles_law_holds_in_what_is_recorded(make_cluster: Callable[..., Any], log: Any) -> None:
    """Requests in the system, sampled, are arrivals per second times mean time in the system."""
    draw = random.Random(1)
    at_s, arrivals = 0.0, []
    while at_s < 400.0:
        at_s += draw.expovariate(2.0)
        arrivals.append(Arrival(at_s, Lengths(draw.randint(10, 100), draw.randint(5, 30))))
    sampled: list[int] = []
    chosen = SimSettings(mode=Mode.ONLINE, warmup_s=0.0, duration_s=400.0)
    run = Simulation(*make_cluster(DIAMOND), chosen, log)
    run.run(Workload(arrivals), lambda p: sampled.append(p.running + p.waiting))
    sojourns = [
        log.end_log[r][0] - arrived_s
        for r, arrived_s in log.arrival_log.items()
        if r in log.end_log
    ]
    expected = len(log.arrival_log) / 400.0 * sum(sojourns) / len(sojourns)
    assert sum(sampled) / len(sampled) == pytest.approx(expected, rel=0.05)


def test_missing_step_times_and_kv_room_are_named(make_cluster: Callable[..., Any]) -> None:
    problem, placement, _ = make_cluster({"a": (0, 1)})
    with pytest.raises(ConfigError, match="machine type toy has no step times"):
        Simulation(problem, placement, {}, OFFLINE, recorder())
    problem, placement, times = make_cluster({"a": (0, 1)})
    bare = replace(problem, nodes=(replace(problem.nodes[0], kv_tokens_by_layers=()),))
    with pytest.raises(ConfigError, match="KV room for 1 layers is unknown"):
        simulate(bare, placement, times, Workload([Lengths(1, 1)]), OFFLINE, recorder())
    with pytest.raises(ConfigError, match="arrival times"):
        simulate(
            problem,
            placement,
            times,
            Workload([Lengths(1, 1)]),
            replace(OFFLINE, mode=Mode.ONLINE),
            recorder(),
        )
