"""A node that becomes slow under load: its share follows, the cluster serves what it still can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest

from bench.simulator.native import Progress, Simulation, Workload
from bench.simulator.settings import Fault, FaultKind, SimSettings
from bench.traces.types import Lengths
from helix_mq.ids import ROUTER, NodeId

REPLICAS = {"a": (0, 2), "b": (0, 2)}
A = NodeId("a")
SLOW_S, END_S, FACTOR = 30.0, 90.0, 3.0
SETTINGS = SimSettings(warmup_s=0.0, duration_s=END_S)


class Watched:
    """One run at full load; the flow and A's share of it at every second, tokens in a window."""

    def __init__(self, make: Callable[..., Any], nodes: Any, log: Any, *faults: Fault) -> None:
        self.log = log
        self.flow: dict[float, float] = {}
        self.share: dict[float, float] = {}
        problem, placement, times = make(nodes, kv_tokens=4000.0, bytes_per_s=1e9)
        settings = replace(SETTINGS, faults=faults)
        self._run = Simulation(problem, placement, times, settings, log)
        self._run.run(Workload(repeat(Lengths(20, 60))), self._look)
        self._run.check()

    def _look(self, at: Progress) -> None:
        flow = self._run.control.core.cluster.flow
        self.flow[at.simulated_s] = flow.tokens_per_s
        out = dict(flow.weights.edges[ROUTER])
        self.share[at.simulated_s] = out.get(A, 0.0) / sum(out.values())

    def tokens_per_s(self, first_s: float, end_s: float) -> float:
        log = self.log.token_log
        return sum(1 for _, at_s in log if first_s <= at_s < end_s) / (end_s - first_s)


@pytest.fixture
def alone(make_cluster: Callable[..., Any]) -> float:
    """Tokens/s of one such node at full load, all by itself."""
    from tests.bench.simulator.conftest import LogRecorder

    return Watched(make_cluster, {"b": (0, 2)}, LogRecorder()).tokens_per_s(SLOW_S, END_S)


def test_a_node_slowed_by_3_loses_its_share_and_the_rest_of_the_flow_is_served(
    make_cluster: Callable[..., Any], log: Any, alone: float
) -> None:
    slow = Fault(SLOW_S, FaultKind.SLOW, "a", factor=FACTOR)
    run = Watched(make_cluster, REPLICAS, log, slow)
    assert run.share[SLOW_S - 1] == pytest.approx(0.5)
    assert run.share[SLOW_S + 5] <= 0.3, "of a quarter, five seconds after it became slow"
    assert run.share[END_S] == pytest.approx(0.25, abs=0.02)
    before = run.flow[SLOW_S - 1]
    assert run.flow[END_S] == pytest.approx(before * (1 + 1 / FACTOR) / 2, rel=0.03)
    possible = alone * (1 + 1 / FACTOR)
    assert run.tokens_per_s(SLOW_S + 15, END_S) >= 0.9 * possible


def test_a_node_that_is_itself_again_gets_its_share_back(
    make_cluster: Callable[..., Any], log: Any
) -> None:
    slow = Fault(SLOW_S, FaultKind.SLOW, "a", factor=FACTOR)
    normal = Fault(SLOW_S + 20, FaultKind.SLOW, "a", factor=1.0)
    run = Watched(make_cluster, REPLICAS, log, slow, normal)
    assert run.share[SLOW_S + 20] <= 0.3
    # What is left of the slowdown may be less than the factor that is worth another flow.
    assert run.share[END_S] == pytest.approx(0.5, abs=0.03)


def test_a_node_so_slow_that_it_gets_no_work_is_tried_again(
    make_cluster: Callable[..., Any], log: Any
) -> None:
    slow = Fault(SLOW_S, FaultKind.SLOW, "a", factor=60.0)
    normal = Fault(SLOW_S + 10, FaultKind.SLOW, "a", factor=1.0)
    run = Watched(make_cluster, REPLICAS, log, slow, normal)
    assert min(run.share.values()) < 0.05
    assert run.share[END_S] > 0.4
