"""How a measured value is spread: mean, percentiles and the curve a plot draws. Pure.

Percentiles are nearest-rank: the smallest value that at least p of all do not exceed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.simulator.records_tallies import Histogram

PERCENTILES = (5, 25, 50, 75, 90, 95, 99)
CURVE_POINTS = 201
"""Quantiles 0, 0.5%, … 100%."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Of `count` values; all zero if there are none. `curve`: CURVE_POINTS quantiles."""

    count: int
    mean: float
    p5: float
    p25: float
    p50: float
    p75: float
    p90: float
    p95: float
    p99: float
    max: float
    curve: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, float]:
        """Without the curve; in the values' unit."""
        named = {f"p{p}": getattr(self, f"p{p}") for p in PERCENTILES}
        return {"count": self.count, "mean": self.mean, **named, "max": self.max}


NOTHING = Spread(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def of_values(values: Iterable[float]) -> Spread:
    """Exact. The sum is of sorted values, so that their order does not show."""
    ordered = sorted(values)
    count = len(ordered)

    def quantile(share: float) -> float:
        return ordered[max(0, math.ceil(count * share) - 1)]

    return _spread(count, sum(ordered), quantile) if count else NOTHING


def of_histogram(histogram: Histogram) -> Spread:
    """Percentiles within 1%; mean and maximum exact."""
    if not histogram.count:
        return NOTHING
    return _spread(histogram.count, histogram.total, histogram.quantile)


def _spread(count: int, total: float, quantile: Callable[[float], float]) -> Spread:
    p5, p25, p50, p75, p90, p95, p99 = (quantile(p / 100) for p in PERCENTILES)
    curve = tuple(quantile(i / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS))
    mean = total / count
    return Spread(count, mean, p5, p25, p50, p75, p90, p95, p99, curve[-1], curve)
