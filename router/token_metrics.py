"""Counts of what comes with every token, and their families when somebody scrapes.

Prometheus' own counters and histograms take a dozen Python calls and three locks per token; the
router has nothing else to do that is dearer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector


class TokenTimes(Collector):
    """One thread counts; any may collect."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self.tokens = 0
        self._bounds_s = tuple(bounds_s)
        self._names = (*(repr(float(bound_s)) for bound_s in self._bounds_s), "+Inf")
        self._gaps = [0] * (len(self._bounds_s) + 1)
        self._gaps_s = 0.0

    def gap(self, gap_s: float) -> None:
        """Between two tokens of a stream."""
        self._gaps[bisect_left(self._bounds_s, gap_s)] += 1
        self._gaps_s += gap_s

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        yield CounterMetricFamily(
            "helix_mq_output_tokens", "Output tokens emitted.", value=self.tokens
        )
        gaps, total_s = list(self._gaps), self._gaps_s
        buckets, count = [], 0
        for name, many in zip(self._names, gaps, strict=True):
            count += many
            buckets.append((name, count))
        times = HistogramMetricFamily(
            "helix_mq_inter_token_latency_seconds", "Between two tokens of a stream."
        )
        times.add_metric([], buckets, total_s)
        yield times
