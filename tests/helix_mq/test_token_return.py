"""The rule of direct return: by the sum of three round trips, and by no less than all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.token_return import LEAST_SAVED_S, goes_straight, saved_s

TRIP_S = st.floats(1e-6, 1.0)


def test_a_router_far_away_costs_its_legs_less_the_straight_one() -> None:
    assert saved_s(0.08, 0.08, 0.004) == pytest.approx(0.078)
    assert saved_s(0.08, 0.06, None) == pytest.approx(0.07)
    assert goes_straight("auto", 0.078)
    assert not goes_straight("router", 0.078)


def test_nothing_is_known_to_be_saved_while_a_link_is_not_measured() -> None:
    for trips in ((0.0, 0.08, 0.004), (0.08, 0.0, 0.004), (0.08, 0.08, 0.0), (0.0, 0.08, None)):
        assert saved_s(*trips) == 0.0
        assert not goes_straight("auto", saved_s(*trips))
        assert goes_straight("direct", saved_s(*trips))


def test_a_node_alone_feeds_itself_unless_told_otherwise() -> None:
    assert goes_straight("auto", 0.0, kept=True)
    assert goes_straight("direct", 0.0, kept=True)
    assert not goes_straight("router", 1.0, kept=True)


@given(TRIP_S, TRIP_S, TRIP_S)
def test_auto_takes_the_way_that_is_shorter_by_the_least(to: float, back: float, by: float) -> None:
    by_router_s, straight_s = (to + back) / 2, by / 2
    straight = goes_straight("auto", saved_s(to, back, by))
    if by_router_s - straight_s > LEAST_SAVED_S * 1.001:
        assert straight
    if by_router_s - straight_s < LEAST_SAVED_S * 0.999:
        assert not straight
