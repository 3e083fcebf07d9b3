"""Nodes and links that die, slow down and come back: the production core's answer to them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bench.simulator.native import Simulation, Workload
from bench.simulator.settings import Fault, FaultKind, Mode, NodeSettings, SimSettings
from bench.traces.types import Arrival, Lengths
from helix_mq.errors import ConfigError

TWINS = {"a1": (0, 2), "a2": (0, 2), "b1": (2, 4), "b2": (2, 4)}
"""Any one of them may go."""

BASE = SimSettings(
    mode=Mode.ONLINE,
    warmup_s=0.0,
    duration_s=30.0,
    drain=True,
    node=NodeSettings(load_s=2.0),
)


def steady(count: int = 120, every_s: float = 0.25) -> Workload:
    draw = random.Random(5)
    return Workload(
        [
            Arrival(i * every_s, Lengths(draw.randint(5, 120), draw.randint(5, 40)))
            for i in range(count)
        ]
    )


def run_with(make_cluster: Callable[..., Any], log: Any, *faults: Fault) -> Simulation:
    run = Simulation(*make_cluster(TWINS), replace(BASE, faults=faults), log)
    result = run.run(steady())
    run.check()
    assert result.submitted == 120
    assert result.pages_held == 0
    for number, arrival in enumerate(steady().requests, start=1):
        assert isinstance(arrival, Arrival)
        _, ok, _ = log.end_log[str(number)]
        got = sum(1 for r, _ in log.token_log if r == str(number))
        assert got == arrival.lengths.output_tokens or not ok
    assert result.finished + result.failed == 120
    return run


def moved(log: Any, node: str, after_s: float, until_s: float = 1e9) -> bool:
    return any(n == node and after_s < start_s < until_s for n, start_s, *_ in log.step_log)


@pytest.mark.parametrize("victim", sorted(TWINS))
def test_a_silent_node_costs_no_request(
    make_cluster: Callable[..., Any], log: Any, victim: str
) -> None:
    run_with(make_cluster, log, Fault(10.0, FaultKind.KILL, victim))
    assert all(ok for _, ok, _ in log.end_log.values())
    assert moved(log, victim, 9.0, 10.0)
    assert not moved(log, victim, 10.0)


def test_a_node_that_comes_back_serves_again(make_cluster: Callable[..., Any], log: Any) -> None:
    kill, back = Fault(8.0, FaultKind.KILL, "a1"), Fault(15.0, FaultKind.RESTORE, "a1")
    run_with(make_cluster, log, kill, back)
    assert all(ok for _, ok, _ in log.end_log.values())
    assert not moved(log, "a1", 8.0, 17.0)
    assert moved(log, "a1", 17.0)


def test_a_node_that_restarts_before_it_is_missed_costs_no_request(
    make_cluster: Callable[..., Any], log: Any
) -> None:
    kill, back = Fault(8.0, FaultKind.KILL, "b1"), Fault(8.5, FaultKind.RESTORE, "b1")
    run_with(make_cluster, log, kill, back)
    assert all(ok for _, ok, _ in log.end_log.values())


def test_with_a_stage_gone_requests_wait_until_it_is_back(
    make_cluster: Callable[..., Any], log: Any
) -> None:
    faults = [Fault(10.0, FaultKind.KILL, n) for n in ("b1", "b2")]
    run_with(make_cluster, log, *faults, Fault(20.0, FaultKind.RESTORE, "b1"))
    assert all(ok for _, ok, _ in log.end_log.values())
    assert not [at_s for _, at_s in log.token_log if 10.1 < at_s < 22.0]


def test_a_cut_link_between_nodes_costs_no_request(
    make_cluster: Callable[..., Any], log: Any
) -> None:
    cut = Fault(10.0, FaultKind.CUT, "a1", "b1")
    run_with(make_cluster, log, cut, Fault(12.0, FaultKind.RESTORE, "a1", "b1"))
    assert all(ok for _, ok, _ in log.end_log.values())


def test_a_cut_link_to_the_router_costs_no_request(
    make_cluster: Callable[..., Any], log: Any
) -> None:
    cut = Fault(10.0, FaultKind.CUT, "@router", "a1")
    run_with(make_cluster, log, cut, Fault(12.0, FaultKind.RESTORE, "@router", "a1"))
    assert all(ok for _, ok, _ in log.end_log.values())


def test_a_slow_node_takes_longer_steps(make_cluster: Callable[..., Any], log: Any) -> None:
    run_with(make_cluster, log, Fault(10.0, FaultKind.SLOW, "a1", factor=3.0))

    def decode_step_s(after_s: float, until_s: float) -> float:
        return min(
            end_s - start_s
            for node, start_s, end_s, rows, tokens, _ in log.step_log
            if node == "a1" and rows == 1 and not tokens and after_s < start_s < until_s
        )

    assert decode_step_s(10.0, 1e9) == pytest.approx(3 * decode_step_s(0.0, 9.0))


def test_a_node_joins_later(make_cluster: Callable[..., Any], log: Any) -> None:
    run_with(make_cluster, log, Fault(10.0, FaultKind.JOIN, "b2"))
    assert all(ok for _, ok, _ in log.end_log.values())
    assert not moved(log, "b2", 0.0, 12.0)
    assert moved(log, "b2", 12.0)


def test_a_fault_of_an_unknown_node_is_named(make_cluster: Callable[..., Any], log: Any) -> None:
    with pytest.raises(ConfigError, match="no node of the placement"):
        Simulation(
            *make_cluster(TWINS), replace(BASE, faults=(Fault(1.0, FaultKind.KILL, "zz"),)), log
        )
    with pytest.raises(ConfigError, match="both ends"):
        Fault(1.0, FaultKind.CUT, "a1")


def test_prefill_held_back_for_a_link_that_breaks_goes_on_when_it_is_back(
    make_cluster: Callable[..., Any], log: Any
) -> None:
    """On the one way there is, a prompt takes the link for most of a second."""
    cluster = make_cluster({"a": (0, 2), "b": (2, 4)}, bytes_per_s=2e5)
    faults = (Fault(3.0, FaultKind.CUT, "a", "b"), Fault(4.0, FaultKind.RESTORE, "a", "b"))
    settings = replace(BASE, faults=faults, duration_s=120.0, drain=False)
    run = Simulation(*cluster, settings, log)
    result = run.run(steady(count=20, every_s=0.2))
    assert (result.finished, result.failed) == (20, 0)
