"""Virtual time: a heap of events and the clock that production code reads.

Knows nothing about nodes or requests. Events at the same instant run in the order they were put in,
so a run depends on nothing but its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

WALL_AT_START_S = 1_700_000_000.0
"""Any fixed date: nodes compare deadlines in Unix time, which must not be the real one."""

Event = tuple[float, int, Callable[[Any], None], Any]


class Timeline:
    """A `helix_mq.clock.Clock` that jumps from event to event. `now` is seconds since the start."""

    __slots__ = ("_heap", "_put", "now", "ran")

    def __init__(self) -> None:
        self.now = 0.0
        self.ran = 0
        """Events that have run."""
        self._heap: list[Event] = []
        self._put = 0

    def now_s(self) -> float:
        return self.now

    def wall_s(self) -> float:
        return WALL_AT_START_S + self.now

    def at(self, time_s: float, handler: Callable[[Any], None], argument: Any) -> None:
        """Runs `handler(argument)` at `time_s`, or now if that has passed."""
        heappush(self._heap, (max(time_s, self.now), self._put, handler, argument))
        self._put += 1

    def __len__(self) -> int:
        return len(self._heap)

    def run_until(self, end_s: float) -> bool:
        """Runs all events up to and including `end_s`; False when none are left after it."""
        heap = self._heap
        ran = 0
        while heap and heap[0][0] <= end_s:
            self.now, _, handler, argument = heappop(heap)
            handler(argument)
            ran += 1
        self.ran += ran
        self.now = max(self.now, end_s)
        return bool(heap)
