"""What nodes did lately, from counters that only ever rise, or begin anew."""

from __future__ import annotations

import pytest

from helix_mq.ids import NodeId
from helix_mq.messages.control import Heartbeat, LinkReport
from router.node_rates import LinkRate, NodeRate, NodeRates

A, B = NodeId("a"), NodeId("b")


def beat(steps: int, tokens: int, sent: int = 0, blocked_s: float = 0.0) -> Heartbeat:
    link = LinkReport("b", sent, 0, 0, blocked_s)
    return Heartbeat(
        "a", 1, 1, 1, 0, 0, 0, 0, 0, steps, 0.02 * steps, tokens, tokens, 0, (link,), 0.01 * steps
    )


def test_rates_over_the_last_seconds() -> None:
    rates = NodeRates()
    for second in range(20):
        # Idle for ten seconds, then ten steps a second with 5 tokens each.
        steps = 10 * max(0, second - 10)
        rates.beat(beat(steps, 5 * steps, 1000 * second, 0.25 * second), float(second))
    rate = rates.node(A)
    assert rate.tokens_per_s == pytest.approx(50)
    assert rate.steps_per_s == pytest.approx(10)
    assert rate.busy_share == pytest.approx(0.2)
    assert (rate.step_s, rate.expected_step_s) == (pytest.approx(0.02), pytest.approx(0.01))
    assert rates.link(A, B) == LinkRate(1000.0, 0.25)


def test_a_process_that_begins_anew_has_no_rate_until_its_second_beat() -> None:
    rates = NodeRates()
    rates.beat(beat(100, 1000, 5000), 1.0)
    assert rates.node(A) == NodeRate()
    rates.beat(beat(0, 0), 2.0)
    assert rates.node(A) == NodeRate()
    assert rates.link(A, B) == LinkRate()
    rates.beat(beat(10, 10, 100), 3.0)
    assert rates.node(A).tokens_per_s == pytest.approx(10)
    assert rates.link(A, B).bytes_per_s == pytest.approx(100)


def test_fast_beats_and_idle_nodes() -> None:
    rates = NodeRates()
    for tenth in range(100):
        rates.beat(beat(tenth, tenth), tenth / 10)
    assert rates.node(A).tokens_per_s == pytest.approx(10)
    for second in range(11, 20):
        rates.beat(beat(99, 99), float(second))
    assert rates.node(A) == NodeRate()
    rates.keep({B})
    assert rates.node(A) == NodeRate()
    assert rates.link(A, B) == LinkRate()
