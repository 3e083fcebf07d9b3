"""Which tokens go straight back in a plan, against routes drawn as the flow parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.ids import ROUTER, NodeId
from helix_mq.token_return import TokenReturn, goes_straight, saved_s
from solver.flow import max_flow
from solver.heuristics import petals
from solver.objective import ServingModel, StepTimes, Workload, estimate
from solver.objective_wires import wires_of
from solver.problem import SINK, SOURCE, Problem
from solver.token_return import Straight, links_of, round_trip_s, straight_returns

MakeProblem = Callable[..., Problem]
WAYS: tuple[TokenReturn, ...] = ("auto", "direct", "router")
TIMES = StepTimes(((1.0, 1e-3), (1000.0, 0.4)), ((1.0, 1e-3), (64.0, 4e-3)))


def shares(problem: Problem, found: tuple[Straight, ...]) -> dict[tuple[NodeId, NodeId], float]:
    assert len({(w.first, w.last) for w in found}) == len(found)
    return {(w.first, w.last): w.share for w in found}


def placed(problem: Problem, at_s: dict[str, float]) -> Problem:
    """Latency is distance on a line, the router's place 0."""

    def place(name: str) -> float:
        return 0.0 if name in (SOURCE, SINK) else at_s[name]

    links = tuple(replace(k, latency_s=abs(place(k.src) - place(k.dst))) for k in problem.links)
    return replace(problem, links=links)


def test_a_trip_is_there_and_back_and_never_quite_nothing(make_problem: MakeProblem) -> None:
    problem = make_problem(1, nodes=3, layers=2, wide=True)
    far = links_of(placed(problem, {n.name: 0.01 * i for i, n in enumerate(problem.nodes)}))
    names = [n.name for n in problem.nodes]
    assert round_trip_s(far, names[2], ROUTER) == pytest.approx(0.04)
    assert round_trip_s(far, names[1], names[2]) == pytest.approx(0.02)
    assert round_trip_s(far, ROUTER, names[0]) == pytest.approx(1e-6)
    assert round_trip_s(far, names[1], "nobody") is None
    one_way = {ends: link for ends, link in far.items() if ends != (ROUTER, names[2])}
    assert round_trip_s(one_way, names[2], ROUTER) == pytest.approx(0.04)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    at_s=st.lists(st.floats(-0.05, 0.05), min_size=6, max_size=6),
    wanted=st.sampled_from(WAYS),
)
def test_pairs_are_those_that_the_rule_takes_and_shares_are_of_all_requests(
    make_problem: MakeProblem, seed: int, at_s: list[float], wanted: TokenReturn
) -> None:
    problem = make_problem(seed, nodes=6, layers=4, wide=True)
    problem = placed(problem, {n.name: a for n, a in zip(problem.nodes, at_s, strict=True)})
    placement = petals(problem, 0)
    flow = max_flow(problem, placement)
    links = links_of(problem)
    chosen = shares(problem, straight_returns(problem, placement, flow, wanted))
    every = shares(problem, straight_returns(problem, placement, flow, "direct"))
    assert math.fsum(every.values()) == pytest.approx(1.0 if flow.tokens_per_s else 0.0)
    for (first, last), share in every.items():
        trips = round_trip_s(links, last, ROUTER), round_trip_s(links, ROUTER, first)
        straight = round_trip_s(links, last, first) if first != last else None
        saved = saved_s(trips[0] or 0.0, trips[1] or 0.0, straight)
        if goes_straight(wanted, saved, kept=first == last):
            assert chosen[first, last] == share
        else:
            assert (first, last) not in chosen
    # What comes from the source over a link leaves it as prompts or as rows, by one way or other.
    wires = wires_of(problem, flow, straight_returns(problem, placement, flow, wanted))
    by_router = math.fsum(w.rows for w in wires if w.name.startswith(f"{SOURCE} "))
    straight_on = math.fsum(chosen.values())
    if flow.tokens_per_s:
        assert by_router + straight_on == pytest.approx(1.0)
        assert math.fsum(w.prompts for w in wires if w.name.startswith(f"{SOURCE} ")) == (
            pytest.approx(1.0)
        )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), at_s=st.lists(st.floats(-0.05, 0.05), min_size=6, max_size=6))
def test_auto_serves_no_less_than_the_router_alone(
    make_problem: MakeProblem, seed: int, at_s: list[float]
) -> None:
    problem = make_problem(seed, nodes=6, layers=4, wide=True)
    problem = placed(problem, {n.name: a for n, a in zip(problem.nodes, at_s, strict=True)})
    placement = petals(problem, 0)
    flow = max_flow(problem, placement)
    model = ServingModel({n.type_name: TIMES for n in problem.nodes}, Workload(200.0, 50.0))
    auto = estimate(problem, placement, flow, model)
    router = estimate(problem, placement, flow, replace(model, token_return="router"))
    assert auto.decode_tokens_per_s >= router.decode_tokens_per_s * (1 - 1e-6)
    assert router.straight_share == 0
    found = straight_returns(problem, placement, flow, "auto")
    assert auto.straight_share == pytest.approx(math.fsum(way.share for way in found))
