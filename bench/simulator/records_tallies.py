"""Small counters for the recorder's hot path: O(1) per call, memory that does not grow with calls.

Nothing here knows requests or nodes. Times are virtual seconds; a `Window` is what is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from helix_mq.errors import ConfigError

BUCKET_RATIO = 1.02
"""Buckets [r^i, r^(i+1)) read at their geometric middle are at most sqrt(r) - 1 = 0.995% off."""
SMALLEST_S = 1e-7
LARGEST_S = 1e6
_PER_LOG = 1.0 / math.log(BUCKET_RATIO)
_LOG_SMALLEST = math.log(SMALLEST_S)
_BUCKETS = int((math.log(LARGEST_S) - _LOG_SMALLEST) * _PER_LOG) + 1


@dataclass(frozen=True, slots=True)
class Window:
    """The measured time [start_s, end_s), cut into `bins` equal parts."""

    start_s: float
    end_s: float
    bins: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            raise ConfigError(f"warmup_s={self.start_s} must be finite and >= 0", param="warmup_s")
        if not (math.isfinite(self.end_s) and self.end_s >= self.start_s):
            raise ConfigError(
                f"duration_s={self.end_s - self.start_s} must be finite and >= 0",
                param="duration_s",
            )
        if not 1 <= self.bins <= 100_000:
            raise ConfigError(f"bins={self.bins} is not in 1..100000", param="bins")

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def bin_s(self) -> float:
        return self.duration_s / self.bins


class Histogram:
    """Durations in logarithmic buckets; quantiles within 1%, count, sum, min and max exact."""

    __slots__ = ("count", "counts", "largest", "smallest", "total")

    def __init__(self) -> None:
        self.counts = [0] * _BUCKETS
        self.count = 0
        self.total = 0.0
        self.smallest = math.inf
        self.largest = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """`value` in seconds, not negative; below SMALLEST_S all are one."""
        self.count += count
        self.total += value * count
        if value < self.smallest:
            self.smallest = value
        if value > self.largest:
            self.largest = value
        if value <= SMALLEST_S:
            self.counts[0] += count
            return
        index = int((math.log(value) - _LOG_SMALLEST) * _PER_LOG)
        self.counts[index if index < _BUCKETS else -1] += count

    def quantile(self, share: float) -> float:
        """The value of rank ceil(count · share), as of a sorted list; 0 if empty."""
        if not self.count:
            return 0.0
        rank = max(1, math.ceil(self.count * share))
        if rank >= self.count:
            return self.largest
        index = next(i for i, seen in enumerate(accumulate(self.counts)) if seen >= rank)
        middle = SMALLEST_S * math.pow(BUCKET_RATIO, index + 0.5)
        return min(max(middle, self.smallest), self.largest)


class Series:
    """A value that holds until the next: its integral over the window, as a whole and by bin."""

    __slots__ = (
        "_at_s",
        "_bin",
        "_bin_end_s",
        "_bin_s",
        "_bin_start_s",
        "_end_s",
        "_start_s",
        "_value",
        "by_bin",
        "integral",
        "peak",
    )

    def __init__(self, window: Window) -> None:
        self._start_s, self._end_s, self._bin_s = window.start_s, window.end_s, window.bin_s
        # The bin of the last call: the next is nearly always in the same.
        self._bin, self._bin_start_s, self._bin_end_s = 0, 0.0, 0.0
        self._at_s = 0.0
        self._value = 0.0
        self.integral = 0.0
        self.peak = 0.0
        self.by_bin = [0.0] * window.bins

    def set(self, at_s: float, value: float) -> None:
        """From `at_s` on, which is not before the last call's, it is `value`."""
        if self._value and at_s > self._start_s:
            self.hold(self._at_s, at_s, self._value)
        self._at_s = at_s
        self._value = value

    def hold(self, start_s: float, end_s: float, value: float) -> None:
        """Adds `value` over [start_s, end_s), what of it lies inside the window."""
        if value > self.peak and end_s > self._start_s and start_s < self._end_s:
            self.peak = value
        if self._bin_start_s <= start_s and end_s <= self._bin_end_s:
            amount = value * (end_s - start_s)
            self.integral += amount
            self.by_bin[self._bin] += amount
        else:
            self._hold_across(max(start_s, self._start_s), min(end_s, self._end_s), value)

    def _hold_across(self, start_s: float, end_s: float, value: float) -> None:
        """As `hold`, of what is inside the window, bin by bin."""
        if end_s <= start_s:
            return
        self.integral += value * (end_s - start_s)
        first, bins, bin_s = self._start_s, self.by_bin, self._bin_s
        index = int((start_s - first) / bin_s)
        # Rounding may put a time just below the end one bin too far.
        final = len(bins) - 1
        while index < final and (edge := first + (index + 1) * bin_s) < end_s:
            if edge > start_s:
                bins[index] += value * (edge - start_s)
                start_s = edge
            index += 1
        index = min(index, final)
        bins[index] += value * (end_s - start_s)
        self._bin, self._bin_start_s = index, start_s
        self._bin_end_s = min(first + (index + 1) * bin_s, self._end_s)

    def close(self) -> None:
        """Extends the last value to the window's end; may be called again."""
        if self._at_s < self._end_s:
            self.set(self._end_s, self._value)


class NodeTally:
    """Steps of one node inside the window: seconds, rows and tokens, clipped at its edges."""

    __slots__ = (
        "busy",
        "decode_row_s",
        "decode_rows",
        "decode_rows_squared",
        "decode_steps",
        "layer_rows",
        "mixed_row_s",
        "prefill_s",
        "prefill_steps",
        "prefill_tokens",
        "steps",
        "tokens_squared",
    )

    def __init__(self, window: Window) -> None:
        self.busy = Series(window)
        self.steps = 0
        self.decode_steps = 0
        self.prefill_steps = 0
        self.decode_rows = 0
        self.decode_rows_squared = 0
        self.prefill_tokens = 0
        self.tokens_squared = 0
        self.layer_rows = 0
        self.prefill_s = 0.0
        """Of steps with prompt tokens."""
        self.decode_row_s = 0.0
        """Decode rows × seconds of their steps."""
        self.mixed_row_s = 0.0
        """Of it, in steps that also had prompt tokens: decodes held up by prompts."""


class LinkTally:
    """What one link carried: bytes and frames of transmissions that end inside the window."""

    __slots__ = ("busy_s", "frames", "sent_bytes")

    def __init__(self) -> None:
        self.busy_s = 0.0
        self.frames = 0
        self.sent_bytes = 0


class KvTally:
    """Samples of one node's pages in use, as shares of its pages."""

    __slots__ = ("peak", "samples", "total")

    def __init__(self) -> None:
        self.samples = 0
        self.total = 0.0
        self.peak = 0.0
