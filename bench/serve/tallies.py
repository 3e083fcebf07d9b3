"""Counters of a load process, small whatever the load: gaps between events, tokens per second."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from bench.serve.types import Counts
from bench.simulator.records_tallies import Histogram
from helix_mq.errors import PeerError

MAX_SECONDS = 1 << 20


class Gaps:
    """Durations: quantiles within 1 %; count, mean, deviation, least and most are exact."""

    def __init__(self) -> None:
        self.histogram = Histogram()
        self.squares = 0.0

    def add(self, value_s: float) -> None:
        self.histogram.add(value_s)
        self.squares += value_s * value_s

    @property
    def deviation_s(self) -> float:
        count = self.histogram.count
        if not count:
            return 0.0
        mean = self.histogram.total / count
        return math.sqrt(max(0.0, self.squares / count - mean * mean))

    def counts(self) -> Counts:
        """As it goes to another process."""
        h = self.histogram
        buckets = {i: n for i, n in enumerate(h.counts) if n}
        smallest = h.smallest if h.count else 0.0
        return Counts(buckets, h.count, h.total, self.squares, smallest, h.largest)

    def merge(self, counts: Counts) -> None:
        """Adds what another process counted. PeerError when it cannot be so."""
        h = self.histogram
        known = all(0 <= i < len(h.counts) and n > 0 for i, n in counts.buckets.items())
        if not known or sum(counts.buckets.values()) != counts.count:
            raise PeerError("a load process sent counts that do not add up")
        if not counts.count:
            return
        for index, number in counts.buckets.items():
            h.counts[index] += number
        h.count += counts.count
        h.total += counts.total
        h.smallest = min(h.smallest, counts.smallest)
        h.largest = max(h.largest, counts.largest)
        self.squares += counts.squares


class BySecond:
    """An amount per second since the start."""

    def __init__(self) -> None:
        self.amounts: list[float] = []

    def add(self, at_s: float, amount: float) -> None:
        second = min(MAX_SECONDS, max(0, int(at_s)))
        if second >= len(self.amounts):
            self.amounts.extend([0.0] * (second + 1 - len(self.amounts)))
        self.amounts[second] += amount

    def merge(self, amounts: Iterable[float]) -> None:
        for second, amount in enumerate(amounts):
            if amount:
                self.add(second, amount)


def add_served(gaps: Gaps, by_second: BySecond, at_s: Sequence[float], tokens: int) -> None:
    """A request that was served, by the times of its events. Where an event has several tokens, all
    of them came at its time: the gap before it counts once, and of their number each event has
    the same share."""
    for earlier, later in pairwise(at_s):
        gaps.add(later - earlier)
    for when in at_s:
        by_second.add(when, tokens / len(at_s))
