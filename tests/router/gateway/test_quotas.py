"""What a key may ask for in a minute and at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.api_keys import KeyLimits
from helix_mq.clock import VirtualClock
from helix_mq.errors import InvalidRequest
from router.gateway.faults import RateLimited
from router.gateway.quotas import Quotas, SlidingMinute

ARRIVALS = st.lists(st.floats(0.01, 40), min_size=1, max_size=60)


@given(gaps=ARRIVALS, limit=st.integers(1, 5))
def test_no_minute_holds_more_than_the_limit_and_retry_after_is_true(
    gaps: list[float], limit: int
) -> None:
    clock = VirtualClock()
    quotas = Quotas(clock)
    limits = KeyLimits(requests_per_min=limit)
    passed: list[float] = []
    for gap in gaps:
        clock.advance(gap)
        try:
            quotas.enter("a", limits).close()
        except RateLimited as refused:
            assert refused.param == "requests_per_min"
            assert refused.retry_after_s is not None
            assert 0 < refused.retry_after_s <= 61
            early = [t for t in passed if clock.now_s() - t < 59]
            assert early or len(passed) >= limit
            clock.advance(refused.retry_after_s)
            quotas.enter("a", limits).close()
        passed.append(clock.now_s())
        assert sum(clock.now_s() - t < 60 for t in passed) <= limit


def test_nobody_waits_much_longer_than_a_minute() -> None:
    minute = SlidingMinute()
    minute.add(100.9, 3)
    minute.add(101.0, 1)
    assert minute.total(160.9) == 4
    assert minute.below_in_s(4, 160.9) == pytest.approx(0.1)
    assert minute.total(161.0) == 1
    assert minute.total(162.0) == 0
    assert minute.below_in_s(1, 162.0) == 0


def test_tokens_may_go_over_once_and_are_waited_off() -> None:
    clock = VirtualClock()
    quotas = Quotas(clock)
    limits = KeyLimits(tokens_per_min=100)
    lease = quotas.enter("a", limits)
    lease.begin(1, 90)
    quotas.enter("a", limits).close()
    for _ in range(200):
        lease.tokens(1)
    lease.close()
    with pytest.raises(RateLimited, match="tokens_per_min = 100") as refused:
        quotas.enter("a", limits)
    quotas.enter("another", limits).close()
    assert refused.value.retry_after_s is not None
    clock.advance(refused.value.retry_after_s)
    quotas.enter("a", limits).close()


def test_sequences_at_a_time() -> None:
    quotas = Quotas(VirtualClock())
    limits = KeyLimits(max_concurrent=4)
    first = quotas.enter("a", limits)
    first.begin(3, 10)
    second = quotas.enter("a", limits)
    with pytest.raises(RateLimited, match="max_concurrent = 4"):
        quotas.enter("a", limits)
    with pytest.raises(RateLimited, match="max_concurrent"):
        second.begin(2, 10)
    with pytest.raises(InvalidRequest, match="5 sequences in one request") as never:
        second.begin(5, 10)
    assert never.value.param == "n"
    second.close()
    first.close()
    first.close()
    again = quotas.enter("a", limits)
    again.begin(4, 10)
    again.close()


def test_keys_that_ask_for_nothing_are_forgotten() -> None:
    clock = VirtualClock()
    quotas = Quotas(clock)
    for number in range(5000):
        quotas.enter(f"owner{number}", KeyLimits()).close()
        clock.advance(1.0)
    assert len(quotas) <= 1024


@pytest.mark.parametrize("limits", [KeyLimits(), KeyLimits(requests_per_min=1000)])
def test_hours_of_requests_are_kept_as_one_minute(limits: KeyLimits) -> None:
    clock = VirtualClock()
    quotas = Quotas(clock)
    for _ in range(3 * 3600):
        lease = quotas.enter("a", limits)
        lease.begin(1, 10)
        lease.close()
        clock.advance(1.0)
    meter = quotas._meters["a"]
    assert len(meter.requests._slots) <= 61
    assert len(meter.tokens._slots) <= 61
