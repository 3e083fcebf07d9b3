"""Whether processes come back to what they held: memory, descriptors, threads. Pure.

Samples are taken when the cluster is whole. A life is one process. Of its rounds those are compared
in which it held the same layers, where they are enough to tell growth from warming up.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.chaos.processes import Holds

WARM_ROUNDS = 5
"""First caches fill, first routes are made: memory grows that will not grow again."""
SLACK_DESCRIPTORS = 6
"""A connection may be half closed at the moment of looking."""
SLACK_THREADS = 2
SLACK_RSS_BYTES = 16 << 20
GROWTH_RSS = 0.03
"""Above what it was, over all rounds after the warm-up: a few kernels for sizes of batches that had
not come before, half a MiB each, and KV pages never used so far."""


@dataclass(slots=True)
class Watch:
    """`samples`: by process and life, in order of time, each with the layers held then."""

    samples: dict[tuple[str, int], list[tuple[str, Holds]]] = field(default_factory=dict)

    def add(self, name: str, life: int, holds: Holds, layers: str = "") -> None:
        self.samples.setdefault((name, life), []).append((layers, holds))

    def growth(self) -> list[str]:
        """What grew, in words; empty when nothing did."""
        found = []
        for (name, life), samples in sorted(self.samples.items()):
            for layers in sorted({layers for layers, _ in samples}):
                alike = [holds for other, holds in samples if other == layers]
                what = _grown(alike)
                if what:
                    found.append(f"{name} (life {life}, {len(alike)} rounds): {what}")
        return found

    def longest(self) -> Mapping[str, Sequence[Holds]]:
        """Each name's longest-lived process."""
        best: dict[str, list[Holds]] = {}
        for (name, _), samples in sorted(self.samples.items()):
            if len(samples) > len(best.get(name, ())):
                best[name] = [holds for _, holds in samples]
        return best


def slope(values: Sequence[float]) -> float:
    """Rise per step: the median over all pairs (Theil and Sen), which single high or low samples
    do not move."""
    pairs = itertools.combinations(enumerate(values), 2)
    return median((b - a) / (j - i) for (i, a), (j, b) in pairs)


def _grown(samples: Sequence[Holds]) -> str:
    settled = samples[WARM_ROUNDS:]
    if len(settled) < 4:
        return ""
    half = len(settled) // 2
    early, late = settled[:half], settled[half:]
    words = []
    before = median(s.rss_bytes for s in early)
    rise = slope([s.rss_bytes for s in settled]) * (len(settled) - 1)
    if rise > before * GROWTH_RSS + SLACK_RSS_BYTES:
        words.append(
            f"memory rises, by {rise / 2**20:.0f} MiB in {len(settled)} rounds from "
            f"{before / 2**20:.0f} MiB"
        )
    for what, slack in (("descriptors", SLACK_DESCRIPTORS), ("threads", SLACK_THREADS)):
        least = min(getattr(s, what) for s in early)
        last = min(getattr(s, what) for s in late)
        if last > least + slack:
            words.append(f"{what} {least} > {last}")
    return ", ".join(words)
