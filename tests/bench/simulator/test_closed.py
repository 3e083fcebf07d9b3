"""Closed mode: so many requests in the system, no more and no fewer."""

from __future__ import annotations

from dataclasses import replace
from itertools import repeat

import pytest

from bench.simulator.native import Simulation, Workload
from bench.simulator.settings import Mode, Options, SimSettings, settings_of
from bench.simulator.stats import report
from bench.traces.types import Lengths
from helix_mq.errors import ConfigError
from tests.bench.simulator.conftest import LogRecorder, MakeCluster

SETTINGS = SimSettings(mode=Mode.CLOSED, warmup_s=1.0, duration_s=20.0, at_once=3)


def test_so_many_are_in_the_system_all_the_time(make_cluster: MakeCluster) -> None:
    problem, placement, times = make_cluster({"a": (0, 2), "b": (2, 4)})
    recorder = LogRecorder(SETTINGS.warmup_s, SETTINGS.duration_s)
    run = Simulation(problem, placement, times, SETTINGS, recorder)
    run.run(Workload(repeat(Lengths(10, 5))))
    run.check()
    found = report(recorder)
    assert found.finished > 20
    assert found.in_system.mean == pytest.approx(3.0, rel=1e-6)


def test_a_workload_that_ends_ends_the_run(make_cluster: MakeCluster) -> None:
    problem, placement, times = make_cluster({"a": (0, 2)})
    recorder = LogRecorder(0.0, 20.0)
    settings = replace(SETTINGS, drain=True, warmup_s=0.0)
    result = Simulation(problem, placement, times, settings, recorder).run(
        Workload([Lengths(10, 5)] * 7)
    )
    assert (result.submitted, result.finished, result.failed) == (7, 7, 0)


def test_users_who_are_all_refused_let_time_pass(make_cluster: MakeCluster) -> None:
    """A request that no node has room for is refused at once."""
    problem, placement, times = make_cluster({"a": (0, 2)}, kv_tokens=64)
    recorder = LogRecorder(0.0, 5.0)
    settings = replace(SETTINGS, warmup_s=0.0, duration_s=5.0)
    result = Simulation(problem, placement, times, settings, recorder).run(
        Workload(repeat(Lengths(10_000, 5)))
    )
    assert result.simulated_s == 5.0
    assert result.finished == 0
    assert result.failed == result.submitted > 3


def test_at_once_is_positive() -> None:
    with pytest.raises(ConfigError, match="at_once=0"):
        settings_of(Options(mode="closed", at_once=0))
