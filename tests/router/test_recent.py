"""Percentiles of the last minutes: near the exact ones, in bounded memory, forgotten in time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.clock import VirtualClock
from router.recent import SLOT_S, SLOTS, Percentiles, Recent


@given(st.lists(st.floats(1e-4, 1000.0), min_size=1, max_size=300))
def test_percentiles_are_near_the_exact_ones(gaps: list[float]) -> None:
    clock = VirtualClock(1000.0)
    recent = Recent(clock)
    for gap_s in gaps:
        recent.token(clock.now_s(), gap_s, None)
    found, ordered = recent.itl(), sorted(gaps)
    assert found.count == len(gaps)
    for share, value in ((0.5, found.p50_s), (0.9, found.p90_s), (0.99, found.p99_s)):
        exact = ordered[min(len(gaps) - 1, max(0, -int(-share * len(gaps) // 1) - 1))]
        assert value == pytest.approx(exact, rel=0.06)


def test_first_tokens_and_gaps_are_apart_and_old_ones_are_forgotten() -> None:
    clock = VirtualClock(5.0)
    recent = Recent(clock)
    recent.token(clock.now_s(), None, 0.4)
    for _ in range(3):
        clock.advance(0.1)
        recent.token(clock.now_s(), 0.1, 99.0)
    assert recent.ttft().count == 1
    assert recent.ttft().p50_s == pytest.approx(0.4, rel=0.05)
    assert recent.itl().count == 3
    clock.advance(SLOT_S)
    recent.token(clock.now_s(), 0.2, None)
    history = recent.history()
    assert [slot.output_tokens for slot in history] == [4, 1]
    assert history[1].at_s - history[0].at_s == SLOT_S
    assert history[0].at_s == pytest.approx(clock.wall_s() - 15.3)
    assert recent.output_tokens_per_s() == pytest.approx(5 / 15.3)
    clock.advance(SLOT_S * SLOTS)
    assert recent.ttft() == recent.itl() == Percentiles()
    assert recent.history() == ()


def test_absurd_times_stay_within_bounds() -> None:
    clock = VirtualClock()
    recent = Recent(clock)
    for gap_s in (0.0, -1.0, 1e12):
        recent.token(clock.now_s(), gap_s, None)
    assert recent.itl().count == 3
    for _ in range(10 * SLOTS):
        clock.advance(SLOT_S)
        recent.token(clock.now_s(), 1.0, None)
    assert len(recent.history()) == SLOTS
