"""What is under way on a link follows its rate and round trip, on a simulated wire."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.clock import VirtualClock
from helix_mq.outlink import MIN_PIECE_BYTES
from helix_mq.pacing import FIRST_PIECE_BYTES, MIN_WINDOW_BYTES, QUEUE_S, LinkPacer

PIECE = 256 * 1024


def piece_bytes(pacer: LinkPacer) -> int:
    """As the sending end of a link cuts them."""
    least = MIN_PIECE_BYTES if pacer.measured else FIRST_PIECE_BYTES
    return max(least, int(pacer.carries_bytes_per_s * QUEUE_S / 2))


def run(
    rate: float, latency_s: float, seconds: float, probed: float = 0.0
) -> tuple[LinkPacer, float, float]:
    """A sender that always has bulk, a FIFO wire, acknowledgements half a trip later.

    Gives the pacer, bytes delivered per second in the second half, and the longest a piece stood
    in the wire's queue then.
    """
    clock = VirtualClock()
    pacer = LinkPacer(clock, lambda: probed)
    acks: list[tuple[float, int]] = []
    free_s, sent, before, delivered, longest_s = 0.0, 0, 0, 0, 0.0
    while clock.now_s() < seconds:
        while pacer.allows(size := piece_bytes(pacer)):
            now = clock.now_s()
            start = max(now, free_s)
            if now > seconds / 2:
                longest_s = max(longest_s, start - now)
            free_s = start + size / rate
            sent += size
            pacer.sent(size)
            heapq.heappush(acks, (free_s + 2 * latency_s, sent))
        at_s, total = heapq.heappop(acks)
        clock.advance(at_s - clock.now_s())
        pacer.acknowledged(total)
        if at_s <= seconds / 2:
            before = total
        delivered = total
    return pacer, (delivered - before) / (seconds / 2), longest_s


@pytest.mark.parametrize("rate", [1.25e6, 12.5e6, 125e6, 1.25e9])
@pytest.mark.parametrize("latency_s", [0.0001, 0.005, 0.05, 0.15])
def test_a_link_is_kept_full_with_a_short_queue(rate: float, latency_s: float) -> None:
    """For four minutes, in which what is remembered of the round trip is forgotten four times."""
    pacer, reached, longest_s = run(rate, latency_s, 240.0)
    assert reached >= 0.9 * rate
    floor_s = MIN_WINDOW_BYTES / rate
    assert longest_s <= 2 * 0.25 * latency_s + 5 * QUEUE_S + floor_s
    assert pacer.bytes_per_s == pytest.approx(rate, rel=0.25)
    assert 2 * latency_s <= pacer.round_trip_s <= 2 * latency_s + QUEUE_S + floor_s


@pytest.mark.parametrize("rate", [1.25e6, 12.5e6])
@pytest.mark.parametrize("latency_s", [0.0001, 0.05])
@pytest.mark.parametrize("factor", [0.1, 20.0])
def test_probes_that_are_wrong_do_little_harm(rate: float, latency_s: float, factor: float) -> None:
    """The link shares its wire now, or was measured while it did."""
    pacer, reached, longest_s = run(rate, latency_s, 60.0, factor * rate)
    assert reached >= 0.9 * rate
    assert pacer.carries_bytes_per_s <= 2.5 * rate
    floor_s = MIN_WINDOW_BYTES / rate
    assert longest_s <= 2 * (2 * 0.25 * latency_s + 5 * QUEUE_S + floor_s) + 4 * latency_s


def test_probes_count_again_when_no_window_has_been_full_for_a_while() -> None:
    clock = VirtualClock()
    pacer = LinkPacer(clock, lambda: 1e8)
    assert pacer.carries_bytes_per_s == 1e8
    total = 0
    while pacer.allows(PIECE):
        total += PIECE
        pacer.sent(PIECE)
    clock.advance(1.0)
    pacer.acknowledged(total)
    assert pacer.carries_bytes_per_s == pytest.approx(2 * total)
    clock.advance(11)
    assert pacer.carries_bytes_per_s == 1e8


def test_an_idle_link_takes_any_piece_and_idle_time_is_no_slowness() -> None:
    clock = VirtualClock()
    pacer = LinkPacer(clock)
    assert pacer.allows(1 << 40)
    pacer.sent(1 << 20)
    assert not pacer.allows(PIECE)
    clock.advance(0.1)
    pacer.acknowledged(1 << 20)
    assert pacer.under_way_bytes == 0
    rate = pacer.bytes_per_s
    assert rate == pytest.approx((1 << 20) / 0.1)
    clock.advance(5)
    pacer.sent(1 << 20)
    clock.advance(0.1)
    pacer.acknowledged(2 << 20)
    assert pacer.bytes_per_s == pytest.approx(rate)


def test_acknowledgements_read_all_at_once_do_not_make_a_link_fast() -> None:
    """The sender sends a small piece every 10 ms, is not told for 100 ms, and then all at once."""
    clock = VirtualClock()
    pacer = LinkPacer(clock)
    pacer.sent(1000)
    for _ in range(10):
        clock.advance(0.01)
        pacer.sent(1000)
    for total in range(1000, 12_000, 1000):
        clock.advance(1e-5)
        pacer.acknowledged(total)
        pacer.sent(1000)
    clock.advance(1e-5)
    pacer.acknowledged(12_000)
    assert pacer.bytes_per_s < 250_000


@given(st.lists(st.tuples(st.integers(0, 1 << 21), st.integers(-10, 1 << 22))))
def test_impossible_acknowledgements_do_nothing(steps: list[tuple[int, int]]) -> None:
    clock = VirtualClock()
    pacer = LinkPacer(clock)
    for nbytes, total in steps:
        clock.advance(0.01)
        pacer.sent(nbytes)
        before = pacer.under_way_bytes
        pacer.acknowledged(total)
        assert 0 <= pacer.under_way_bytes <= before
        assert pacer.window_bytes >= MIN_WINDOW_BYTES
