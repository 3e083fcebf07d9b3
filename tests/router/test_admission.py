"""The waiting queue against a sorted list, and what Retry-After is made of."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from helix_mq.errors import QueueFull
from helix_mq.ids import RequestId
from router.admission import ThroughputMeter, WaitingQueue


class QueueAgainstAList(RuleBasedStateMachine):
    """Requests keep their (priority, arrival) when they come back from a broken route."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue(1000)
        self.keys: dict[int, tuple[int, float]] = {}
        self.waiting: set[int] = set()
        self.ever = 0

    @rule(priority=st.integers(0, 1), arrived=st.integers(0, 5))
    def push_new(self, priority: int, arrived: int) -> None:
        self.ever += 1
        self.keys[self.ever] = (priority, float(arrived))
        self._push(self.ever)

    @rule(pick=st.integers(0, 1 << 16))
    def push_back(self, pick: int) -> None:
        gone = sorted(set(self.keys) - self.waiting)
        if gone:
            self._push(gone[pick % len(gone)])

    @rule(times=st.integers(1, 5))
    def take_the_head(self, times: int) -> None:
        for _ in range(times):
            head = self.queue.head()
            if head is not None:
                self.queue.remove(head)
                self.waiting.discard(head)

    @rule(pick=st.integers(0, 1 << 16))
    def cancel_any(self, pick: int) -> None:
        if self.keys:
            request = sorted(self.keys)[pick % len(self.keys)]
            self.queue.remove(RequestId(request))
            self.waiting.discard(request)

    @invariant()
    def head_and_length_agree(self) -> None:
        assert len(self.queue) == len(self.waiting)
        expected = min(self.waiting, key=lambda r: (*self.keys[r], r), default=None)
        assert self.queue.head() == expected
        assert all((RequestId(r) in self.queue) == (r in self.waiting) for r in self.keys)

    def _push(self, request: int) -> None:
        self.queue.push(RequestId(request), *self.keys[request])
        self.waiting.add(request)


QueueAgainstAList.TestCase.settings = settings(
    max_examples=30, stateful_step_count=60, deadline=None
)
TestQueue = QueueAgainstAList.TestCase


def test_the_heap_does_not_grow_with_requests_that_come_and_go() -> None:
    queue = WaitingQueue(10)
    queue.push(RequestId(0), 0, 0.0)
    for request in range(1, 10_000):
        queue.push(RequestId(request), 1, float(request))
        queue.remove(RequestId(request))
    assert len(queue) == 1
    assert len(queue._heap) <= 130


def test_a_full_queue_says_when_to_come_back() -> None:
    queue = WaitingQueue(1)
    queue.check_room(2.0)
    queue.push(RequestId(1), 0, 0.0)
    with pytest.raises(QueueFull, match="1 requests are waiting already; try again in 3 s") as e:
        queue.check_room(2.2)
    assert e.value.retry_after_s == 2.2
    queue.push(RequestId(2), 0, 0.0)
    assert len(queue) == 2, "what comes back from a broken route is never refused"


def test_retry_after_is_the_time_for_half_the_queue() -> None:
    meter = ThroughputMeter(half_life_s=20.0)
    assert meter.retry_after_s(0.0, 50) == 5.0, "nothing is known yet"
    for tick in range(2_000):
        meter.finished(tick * 0.1)
    assert meter.retry_after_s(200.0, 100) == pytest.approx(5.0, rel=0.05)
    assert meter.retry_after_s(200.0, 0) == 1.0
    assert meter.retry_after_s(200.0, 10**6) == 60.0
    assert meter.retry_after_s(10_000.0, 100) == 5.0, "what was long ago says nothing"
