"""Figures in sentences: small flows are shown, not rounded to nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.explain import explain
from solver.figures import grouped, percent, shown
from solver.flow import max_flow
from solver.heuristics import petals
from tests.solver.test_extremes import slow_regions


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.0"), (0.031, "0.031"), (1.53e-5, "1.5e-05"), (1289.62, "1289.6")]
)
def test_rates(value: float, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (1.53e-5, "1.5e-05"), (4.26, "4.3"), (1289.62, "1,290")]
)
def test_whole_figures(value: float, text: str) -> None:
    assert grouped(value) == text


def test_gaps() -> None:
    assert percent(0.1659) == "16.6%"
    assert percent(5.78e7) == "5.8e+09%"


@given(st.floats(1e-300, 1e18), st.integers(0, 2))
def test_what_is_not_nothing_is_not_shown_as_nothing(value: float, decimals: int) -> None:
    assert float(shown(value, decimals)) == pytest.approx(value, rel=0.06)
    assert float(grouped(value, decimals).replace(",", "")) == pytest.approx(value, rel=0.06)


def test_the_cap_of_a_slow_link_is_told() -> None:
    problem = slow_regions()
    placement = petals(problem)
    flow = max_flow(problem, placement)
    assert 0 < flow.tokens_per_s < 1e-3
    told = explain(problem, placement, flow).text()
    assert "at 0 tokens/s" not in told
    assert f"{flow.tokens_per_s:.2g} tokens/s" in told
