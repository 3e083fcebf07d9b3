"""Slowdowns from counters of heartbeats; link capacities from what senders report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from helix_mq.ids import ROUTER, NodeId
from helix_mq.messages.control import Heartbeat, LinkReport
from router.link_speeds import FORGET_S, LEAST_BYTES_PER_S, LinkSpeeds
from router.live_problem import UNMEASURED_BYTES_PER_S
from router.speeds import LEAST, MOST, NodeSpeed

A, B = NodeId("a"), NodeId("b")
EDGE = (A, B)


def beat(steps: int, step_s: float, expected_s: float) -> Heartbeat:
    return Heartbeat("a", 1, 0, 1, 0, 0, 0, 0, 0, steps, step_s, 0, 0, 0, (), expected_s)


class Node:
    """Counts steps as a node would, a beat every second, all of its time spent in steps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.speed = NodeSpeed(0.0)
        self._steps, self._step_s, self._expected_s = 0, 0.0, 0.0
        self.speed.beat(beat(0, 0.0, 0.0), 0.0)

    def second(self, slowdown: float, steps: int = 20) -> bool:
        self.now_s += 1.0
        if steps:
            self._steps += steps
            self._step_s += 1.0
            self._expected_s += 1.0 / slowdown
        self.speed.beat(beat(self._steps, self._step_s, self._expected_s), self.now_s)
        return self.speed.changed(self.now_s)


def test_a_node_as_fast_as_it_measured_changes_nothing() -> None:
    node = Node()
    assert not any(node.second(1.0) for _ in range(30))
    assert node.speed.slowdown == 1.0


def test_three_times_as_slow_is_known_within_five_seconds() -> None:
    node = Node()
    for _ in range(5):
        node.second(3.0)
    assert node.speed.slowdown > 2.4
    for _ in range(10):
        node.second(3.0)
    assert node.speed.slowdown == pytest.approx(3.0, rel=0.1)


def test_scatter_makes_no_new_flows() -> None:
    node = Node()
    ratios = [0.9, 1.1, 1.0, 1.12, 0.88] * 6
    assert not any(node.second(r) for r in ratios)


def test_recovery_is_believed_later_than_slowing() -> None:
    slow, fast = Node(), Node()
    for _ in range(20):
        slow.second(1.0)
        fast.second(3.0)
    slow.second(3.0)
    fast.second(1.0)
    assert slow.speed.measured - 1.0 > 3.0 - fast.speed.measured


def test_a_node_without_work_is_trusted_again() -> None:
    node = Node()
    for _ in range(20):
        node.second(50.0)
    assert node.speed.slowdown > 40
    for _ in range(100):
        node.second(1.0, steps=0)
    assert node.speed.slowdown < 1.3


def test_a_node_that_expects_nothing_is_taken_as_it_is() -> None:
    speed = NodeSpeed(0.0)
    for second in range(10):
        speed.beat(beat(20 * second, 5.0 * second, 0.0), float(second))
    assert not speed.changed(10.0)


def test_one_short_step_says_nothing() -> None:
    speed = NodeSpeed(0.0)
    speed.beat(beat(0, 0.0, 0.0), 0.0)
    speed.beat(beat(1, 0.1, 0.001), 1.0)
    assert speed.measured == 1.0


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**62), st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0.0, 100.0)
        ),
        max_size=30,
    )
)
def test_whatever_a_node_says_it_stays_within_bounds(
    said: list[tuple[int, float, float, float]],
) -> None:
    speed, now_s = NodeSpeed(0.0), 0.0
    for steps, step_s, expected_s, wait_s in said:
        now_s += wait_s
        speed.beat(beat(steps, step_s, expected_s), now_s)
        speed.changed(now_s)
        assert LEAST <= speed.slowdown <= MOST


def report(
    sent: float, rate: float, backlog: int = 0, blocked_s: float = 0.0, trip_s: float = 0.02
) -> list[LinkReport]:
    return [LinkReport("b", int(sent), 1, backlog, blocked_s, 0.0, rate, trip_s)]


def fill(speeds: LinkSpeeds, rate: float, seconds: int = 4, **more: float) -> bool:
    changed = False
    for s in range(seconds):
        blocked_s = more.get("blocked_s", 0.0) * s
        speeds.report(A, report(s * rate, rate, int(more.get("backlog", 1e6)), blocked_s), s)
        changed |= speeds.changed(float(s))
    return changed


def test_a_full_link_is_as_wide_as_it_shows() -> None:
    speeds = LinkSpeeds()
    assert fill(speeds, 2.5e6)
    assert speeds.measured()[EDGE].bytes_per_s == pytest.approx(2.5e6)
    assert speeds.measured()[EDGE].latency_s == pytest.approx(0.01)


def test_a_link_with_little_to_do_is_not_slow() -> None:
    speeds = LinkSpeeds()
    assert not fill(speeds, 1e5, backlog=0)
    assert speeds.measured()[EDGE].bytes_per_s == 0.0


def test_a_receiver_without_credit_is_no_slow_link() -> None:
    speeds = LinkSpeeds()
    assert not fill(speeds, 1e5, blocked_s=0.9)


def test_what_was_found_is_forgotten() -> None:
    speeds = LinkSpeeds()
    fill(speeds, 2.5e6)
    assert speeds.changed(5.0 + FORGET_S)
    assert speeds.measured()[EDGE].bytes_per_s == 0.0


def probed(rate: float, sent: float = 0.0, **more: float) -> list[LinkReport]:
    return [replace(said, probed_bytes_per_s=rate) for said in report(sent, 1e5, **more)]


def test_what_probes_found_counts_both_ways() -> None:
    speeds = LinkSpeeds()
    for now_s, rate in enumerate((12.5e6, 125e6, 2.5e6)):
        speeds.report(A, probed(rate), now_s)
        assert speeds.changed(float(now_s))
        assert speeds.measured()[EDGE].bytes_per_s == rate
        assert speeds.planning()[EDGE].bytes_per_s == rate
    speeds.report(A, probed(2.6e6), 3)
    assert not speeds.changed(3.0), "scatter"
    assert speeds.changed(4.0 + FORGET_S)
    assert speeds.measured()[EDGE].bytes_per_s == 0.0
    assert speeds.planning()[EDGE].bytes_per_s == UNMEASURED_BYTES_PER_S


def test_a_full_link_knows_better_than_its_probes_for_a_minute() -> None:
    speeds = LinkSpeeds()
    speeds.report(A, probed(12.5e6), 0)
    for s in range(1, 5):
        (said,) = report(2e6 * s, 2e6, backlog=10**6)
        speeds.report(A, [replace(said, probed_bytes_per_s=12.5e6)], s)
    assert speeds.changed(4.0)
    found = speeds.measured()[EDGE].bytes_per_s
    assert found < 6e6
    speeds.report(A, probed(12.5e6, 8e6), 5)
    speeds.changed(5.0)
    assert speeds.measured()[EDGE].bytes_per_s == found
    speeds.report(A, probed(12.5e6, 8e6), 5 + FORGET_S)
    assert speeds.changed(5.0 + FORGET_S)
    assert speeds.measured()[EDGE].bytes_per_s == 12.5e6


def test_what_is_ample_for_the_flow_anyhow_changes_nothing() -> None:
    speeds = LinkSpeeds(activation_bytes=16_384)
    flow = 1000.0
    speeds.report(A, probed(1e9), 0)
    assert not speeds.changed(0.0, flow), "as good as the limitless link it counted as"
    speeds.report(A, probed(3e8), 1)
    assert not speeds.changed(1.0, flow)
    speeds.report(A, probed(3e7), 2)
    assert speeds.changed(2.0, flow)
    speeds.report(A, probed(1e9), 3)
    assert speeds.changed(3.0, flow)


def test_a_plan_that_thinks_too_little_of_a_link_is_put_right() -> None:
    speeds = LinkSpeeds(16_384, lambda edge: 1e6 if edge == EDGE else 1e9)
    speeds.report(A, probed(1e9), 0)
    assert speeds.changed(0.0, 1000.0)
    assert speeds.measured()[EDGE].bytes_per_s == 1e9


def test_the_routers_links_carry_tokens_and_are_ample_sooner() -> None:
    speeds = LinkSpeeds(activation_bytes=16_384)
    speeds.report(ROUTER, probed(1e6), 0)
    assert not speeds.changed(0.0, 1000.0)
    assert speeds.planning()[ROUTER, B].bytes_per_s == 1e6
    speeds.report(ROUTER, probed(1e3), 1)
    assert speeds.changed(1.0, 1000.0)


@given(st.floats(0, 1e300), st.floats(0, 1e300), st.floats(0, 1e6))
def test_no_report_makes_a_link_worthless(rate: float, busy: float, sent: float) -> None:
    speeds = LinkSpeeds()
    for now_s in range(4):
        (said,) = report(sent * now_s, busy, backlog=1)
        speeds.report(A, [replace(said, probed_bytes_per_s=rate)], now_s)
        speeds.changed(float(now_s))
    found = speeds.measured()[EDGE].bytes_per_s
    assert found == 0 or found >= LEAST_BYTES_PER_S
    assert speeds.planning()[EDGE].bytes_per_s >= LEAST_BYTES_PER_S
