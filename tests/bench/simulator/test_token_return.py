"""Direct return in the simulation: chosen as production does it, never later, nothing lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.simulator.native import SimResult, Simulation, Workload
from bench.simulator.records import Recorder
from bench.simulator.settings import (
    Fault,
    FaultKind,
    Mode,
    NodeSettings,
    Options,
    SimSettings,
    settings_of,
)
from bench.simulator.stats import report
from bench.traces.types import Arrival, Lengths
from helix_mq.errors import ConfigError
from helix_mq.token_return import TokenReturn
from solver.problem import SINK, SOURCE, Problem

MakeCluster = Callable[..., Any]
STAGES = {"a": (0, 2), "b": (2, 4), "c": (4, 6)}
BASE = SimSettings(mode=Mode.ONLINE, warmup_s=0.0, duration_s=30.0, drain=True)
ANY_CLUSTER = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def returning(way: TokenReturn, base: SimSettings = BASE) -> SimSettings:
    return replace(base, core=replace(base.core, token_return=way))


def placed(problem: Problem, at_s: Mapping[str, float]) -> Problem:
    """The latency of each link is the distance of its ends on a line; the router is at 0."""

    def place(name: str) -> float:
        return 0.0 if name in (SOURCE, SINK) else at_s[name]

    links = tuple(
        replace(k, latency_s=abs(place(k.src) - place(k.dst)) + 1e-4) for k in problem.links
    )
    return replace(problem, links=links)


def far(make_cluster: MakeCluster, slices: Mapping[str, tuple[int, int]], away_s: float) -> Any:
    """Nodes beside each other, so far from the router."""
    problem, placement, times = make_cluster(slices)
    return placed(problem, dict.fromkeys(slices, away_s)), placement, times


def serve(cluster: Any, chosen: SimSettings, work: Workload) -> tuple[SimResult, Recorder]:
    recorder = Recorder(warmup_s=0.0, duration_s=1e6)
    run = Simulation(*cluster, chosen, recorder)
    result = run.run(work)
    run.check()
    assert result.pages_held == 0
    return result, recorder


def some(count: int = 40, seed: int = 0) -> Workload:
    draw = random.Random(seed)
    return Workload(
        [Arrival(i * 0.2, Lengths(draw.randint(1, 100), draw.randint(1, 30))) for i in range(count)]
    )


def tpot_s(recorder: Recorder) -> float:
    return report(recorder).tpot.mean


def test_tokens_go_straight_where_the_router_is_far(make_cluster: MakeCluster) -> None:
    cluster = far(make_cluster, STAGES, 0.04)
    one = Workload([Arrival(0.0, Lengths(8, 20))])
    _, by_router = serve(cluster, returning("router"), one)
    _, auto = serve(cluster, BASE, one)
    assert report(by_router).direct == 0
    assert report(auto).direct == 1
    # Two legs of 40.1 ms and a few bytes, less the 0.1 ms between the nodes.
    assert tpot_s(by_router) - tpot_s(auto) == pytest.approx(0.0801, rel=1e-3)


def test_tokens_go_by_the_router_where_it_is_near(make_cluster: MakeCluster) -> None:
    cluster = far(make_cluster, STAGES, 0.0001)
    assert report(serve(cluster, BASE, some())[1]).direct == 0
    assert report(serve(cluster, returning("direct"), some())[1]).direct == 40


def test_a_node_with_the_whole_model_feeds_itself(make_cluster: MakeCluster) -> None:
    cluster = far(make_cluster, {"a": (0, 6)}, 0.04)
    one = Workload([Arrival(0.0, Lengths(8, 20))])
    result, auto = serve(cluster, BASE, one)
    assert (result.tokens, report(auto).direct) == (20, 1)
    # Six layers of 10 ms each, and nothing else.
    assert tpot_s(auto) == pytest.approx(0.06, rel=1e-6)
    assert result.rows == 20


def test_each_route_is_chosen_for_itself(make_cluster: MakeCluster) -> None:
    """Two nodes beside the router, two far from it: routes that end near it save nothing, nor do
    those that begin there."""
    slices = {"first": (0, 2), "last": (2, 4), "far-first": (0, 2), "far-last": (2, 4)}
    problem, placement, times = make_cluster(slices)
    at_s = {name: 0.04 if name.startswith("far") else 0.0 for name in slices}
    cluster = (placed(problem, at_s), placement, times)
    _, recorder = serve(cluster, BASE, some())
    direct = report(recorder).direct
    assert direct is not None
    assert 0 < direct < 40, direct


def test_a_link_from_last_to_first_that_breaks_costs_no_request(
    make_cluster: MakeCluster,
) -> None:
    """The router is told, routes those requests anew, and closes the link for a while: meanwhile
    tokens go by the router, as through all of the run where the link stays broken."""
    cut = Fault(4.0, FaultKind.CUT, "c", "a")
    cluster = far(make_cluster, STAGES, 0.04)
    result, recorder = serve(cluster, replace(BASE, faults=(cut,)), some(60))
    assert (result.finished, result.failed) == (60, 0)
    ways = {int(r.request): r.direct for r in recorder.records}
    assert ways[1] is True
    assert ways[60] is False


def test_nodes_that_die_and_come_back_are_measured_again(make_cluster: MakeCluster) -> None:
    slices = {**STAGES, "a2": (0, 2), "c2": (4, 6)}
    faults = tuple(
        Fault(at_s, kind, node)
        for node, at_s in (("a", 3.0), ("c2", 9.0))
        for at_s, kind in ((at_s, FaultKind.KILL), (at_s + 6.0, FaultKind.RESTORE))
    )
    chosen = replace(BASE, faults=faults, node=NodeSettings(load_s=1.0))
    result, recorder = serve(far(make_cluster, slices, 0.04), chosen, some(120))
    assert (result.finished, result.failed) == (120, 0)
    assert all(r.direct for r in recorder.records if r.arrival_s > 17.0)


AWAY_S = st.floats(-0.05, 0.05)


@given(st.lists(AWAY_S, min_size=3, max_size=3), st.integers(1, 60), st.integers(1, 12))
@ANY_CLUSTER
def test_straight_is_never_later_on_the_same_path(
    make_cluster: MakeCluster, at_s: list[float], prompt: int, output: int
) -> None:
    """Where links keep the triangle inequality: alone on the path, token by token. But for the few
    nanoseconds that the token for the router waits for the row that leaves the card before it."""
    problem, placement, times = make_cluster(STAGES)
    cluster = (placed(problem, dict(zip(STAGES, at_s, strict=True))), placement, times)
    came: dict[str, list[float]] = {}
    for way in ("router", "direct", "auto"):
        log: list[float] = []

        class Noting(Recorder):
            def on_token(
                self, request: str, at_s: float, count: int, log: list[float] = log
            ) -> None:
                super().on_token(request, at_s, count)
                log.append(at_s)

        work = Workload([Arrival(0.0, Lengths(prompt, output))])
        Simulation(*cluster, returning(way), Noting(0.0, 1e6)).run(work)
        came[way] = log
    assert len(came["router"]) == len(came["direct"]) == len(came["auto"]) == output
    for by_router, straight, auto in zip(*(came[w] for w in came), strict=True):
        assert straight <= by_router + 1e-6
        assert straight - 1e-6 <= auto <= by_router + 1e-6


@given(data=st.data())
@ANY_CLUSTER
def test_whatever_the_way_every_request_gets_its_tokens(
    make_cluster: MakeCluster, data: st.DataObject
) -> None:
    slices = {"a": (0, 3), "b": (3, 6), "c": (0, 4), "d": (2, 6), "e": (0, 6)}
    problem, placement, times = make_cluster(
        slices, kv_tokens=float(data.draw(st.sampled_from([4000, 100_000])))
    )
    at_s = {name: data.draw(AWAY_S) for name in slices}
    way: TokenReturn = data.draw(st.sampled_from(["auto", "direct", "router"]))
    draw = random.Random(data.draw(st.integers(0, 99)))
    requests = [Lengths(draw.randint(1, 200), draw.randint(1, 30)) for _ in range(25)]
    chosen = replace(returning(way), mode=Mode.OFFLINE)
    cluster = (placed(problem, at_s), placement, times)
    result, recorder = serve(cluster, chosen, Workload(requests))
    assert result.finished == 25
    assert result.tokens == sum(r.output_tokens for r in requests)
    assert all(r.tokens == r.output_tokens for r in recorder.records)
    assert result.event_hash == serve(cluster, chosen, Workload(requests))[0].event_hash


def test_the_option_is_checked() -> None:
    assert settings_of(Options()).core.token_return == "auto"
    assert settings_of(Options(token_return="router")).core.token_return == "router"
    with pytest.raises(ConfigError, match="token_return='straight': take one of auto, direct"):
        settings_of(Options(token_return="straight"))
