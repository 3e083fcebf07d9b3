"""Slowdowns from counters of heartbeats; link capacities from what senders report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.ids import NodeId
from helix_mq.messages.control import Heartbeat, LinkReport
from router.link_speeds import FORGET_S, LinkSpeeds
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
