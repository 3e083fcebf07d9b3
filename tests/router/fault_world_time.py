"""The virtual time of a FaultWorld: what is to happen, in order, and the one source of chance."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from helix_mq.clock import VirtualClock


class Timeline:
    """Acts run in the order of their times, those of one time as they were asked for."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.clock = VirtualClock(start_s=1000.0)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    @property
    def now_s(self) -> float:
        return self.clock.now_s()

    def later(self, after_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now_s + after_s, next(self._order), act))

    def every(self, period_s: float, act: Callable[[], None]) -> None:
        def again() -> None:
            act()
            self.later(period_s, again)

        self.later(period_s, again)

    def run_for(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self._heap and self._heap[0][0] <= end_s:
            at_s, _, act = heapq.heappop(self._heap)
            self.clock.advance(max(0.0, at_s - self.now_s))
            act()
        self.clock.advance(max(0.0, end_s - self.now_s))

    def run_until(self, condition: Callable[[], bool], within_s: float) -> bool:
        end_s = self.now_s + within_s
        while not condition() and self.now_s < end_s:
            self.run_for(0.25)
        return condition()
