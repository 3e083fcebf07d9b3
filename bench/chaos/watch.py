"""Whether processes come back to what they held: memory, descriptors, threads. Pure.

Samples are taken when the cluster is whole. A life is one process; only lives that are long enough
to tell growth from warming up are judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.chaos.processes import Holds

WARM_ROUNDS = 5
"""First caches fill, first routes are made: memory grows that will not grow again."""
SLACK_DESCRIPTORS = 6
"""A connection may be half closed at the moment of looking."""
SLACK_THREADS = 2
SLACK_RSS_BYTES = 24 << 20
GROWTH_RSS = 0.10


@dataclass(slots=True)
class Watch:
    """`samples`: by process and life, in order of time."""

    samples: dict[tuple[str, int], list[Holds]] = field(default_factory=dict)

    def add(self, name: str, life: int, holds: Holds) -> None:
        self.samples.setdefault((name, life), []).append(holds)

    def growth(self) -> list[str]:
        """What grew, in words; empty when nothing did."""
        found = []
        for (name, life), samples in sorted(self.samples.items()):
            what = _grown(samples)
            if what:
                found.append(f"{name} (life {life}, {len(samples)} rounds): {what}")
        return found

    def longest(self) -> Mapping[str, Sequence[Holds]]:
        """Each name's longest-lived process."""
        best: dict[str, list[Holds]] = {}
        for (name, _), samples in sorted(self.samples.items()):
            if len(samples) > len(best.get(name, ())):
                best[name] = samples
        return best


def _grown(samples: Sequence[Holds]) -> str:
    settled = samples[WARM_ROUNDS:]
    if len(settled) < 4:
        return ""
    half = len(settled) // 2
    early, late = settled[:half], settled[half:]
    words = []
    before, after = (median(s.rss_bytes for s in part) for part in (early, late))
    if after > before * (1 + GROWTH_RSS) + SLACK_RSS_BYTES:
        words.append(f"memory {before / 2**20:.0f} > {after / 2**20:.0f} MiB")
    for what, slack in (("descriptors", SLACK_DESCRIPTORS), ("threads", SLACK_THREADS)):
        least = min(getattr(s, what) for s in early)
        last = min(getattr(s, what) for s in late)
        if last > least + slack:
            words.append(f"{what} {least} > {last}")
    return ", ".join(words)
