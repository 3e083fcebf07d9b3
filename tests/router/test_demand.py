"""What is asked for: averages of what comes, at once for a burst, and what is not served yet."""

from __future__ import annotations

import pytest

from helix_mq.ids import RequestId
from router.demand import DRAIN_S, SPAN_S, Demand


def steady(demand: Demand, tokens_per_s: int, until_s: float, from_s: float = 0.0) -> float:
    asked, at_s = 0.0, from_s
    while at_s < until_s:
        at_s += 1.0
        for _ in range(tokens_per_s):
            demand.token(RequestId(0))
        asked = demand.tokens_per_s(at_s, 0)
    return asked


def test_a_steady_stream_is_its_rate_and_is_forgotten_when_it_ends() -> None:
    demand = Demand(0.0)
    assert steady(demand, 40, 8 * SPAN_S) == pytest.approx(40, rel=1e-3)
    assert demand.tokens_per_s(9 * SPAN_S, 0) == pytest.approx(40 / 2.71828, rel=1e-3)
    assert steady(demand, 10, 30 * SPAN_S, 9 * SPAN_S) == pytest.approx(10, rel=1e-3)


def test_how_often_it_is_looked_at_matters_little() -> None:
    often, seldom = Demand(0.0), Demand(0.0)
    for at_s in range(1, 41):
        for demand in (often, seldom):
            for _ in range(20):
                demand.token(RequestId(0))
        often.tokens_per_s(float(at_s), 0)
    assert often.tokens_per_s(40.0, 0) == pytest.approx(seldom.tokens_per_s(40.0, 0), rel=1e-6)


def test_a_burst_counts_at_once() -> None:
    demand = Demand(5.0)
    demand.started(RequestId(1), 1000)
    assert demand.tokens_per_s(5.0, 0) == pytest.approx(1000 / SPAN_S + 1000 / DRAIN_S)
    demand.token(RequestId(1))
    assert demand.tokens_per_s(5.0, 0) == pytest.approx(1001 / SPAN_S)


def test_prompts_that_are_not_computed_and_requests_that_wait_count() -> None:
    """Where nodes are too slow for them, what is served would never say so."""
    demand = Demand(0.0)
    for i in range(10):
        demand.started(RequestId(i), 500)
    demand.tokens_per_s(0.0, 0)
    later = demand.tokens_per_s(20 * SPAN_S, 300)
    assert later == pytest.approx(5300 / DRAIN_S, rel=1e-6)
    for i in range(9):
        demand.left(RequestId(i))
    demand.started(RequestId(9), 100)
    assert demand.tokens_per_s(40 * SPAN_S, 0) == pytest.approx(100 / DRAIN_S, rel=0.02)
    demand.token(RequestId(9))
    demand.left(RequestId(9))
    assert demand.tokens_per_s(60 * SPAN_S, 0) == pytest.approx(0.0, abs=0.01)


def test_a_clock_that_stands_or_goes_back_breaks_nothing() -> None:
    demand = Demand(10.0)
    demand.token(RequestId(1))
    first = demand.tokens_per_s(10.0, 0)
    assert demand.tokens_per_s(9.0, 0) == pytest.approx(first)
